"""`python benchmarks/serving_ablation.py`: what each part of the server gives, added in turn, for texts, chats and images.

It begins with eager torch behind a plain FastAPI handler, one request at a time (`serving_baseline.py`); then the compiled model, then
dynamic batching, quantization, and for the chat model keys and values in int8 and the prefix cache. The load is the same for all: so many
clients that wait for their answers, with the same requests. Each has a server of its own, and clients share the machine with it.

Artifacts are compiled into build/serving on first use. Exits with 1 where the last row misses a target.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from served import LLMOS, Served, run, serving, started

from llmos.runtime.bench.load import ClosedLoop, Workload
from llmos.runtime.bench.report import summary
from llmos.runtime.bench.workload import InferWorkload, Length, TextWorkload

FOLDER = Path("build") / "serving"
BASELINE = Path(__file__).with_name("serving_baseline.py")
TARGETS = {"p50": -0.62, "p95": -0.63, "throughput": 1.67}
BATCHED = "+ dynamic batching"


@dataclass(frozen=True)
class Step:
    """A row of the table. compile: options that make its artifact; None for the baseline. serve: options of its server."""

    name: str
    compile: tuple[str, ...] | None = ()
    serve: tuple[str, ...] = ()


@dataclass(frozen=True)
class Subject:
    """A model of the table. api: as in `llmos bench serve`. num_clients: that wait for their answers."""

    name: str
    api: str
    num_clients: int
    steps: tuple[Step, ...]
    dynamic: tuple[str, ...] = ()
    more: tuple[str, ...] = field(default=("--target", "native", "--no-accuracy-report"))

    def source(self) -> Path:
        """Return what the model is compiled from, made on first use."""
        if self.name == "minilm":
            from llmos.compiler.devtools.demo import minilm

            return minilm()
        if self.name == "smollm2":
            from smollm2 import directory

            return directory(FOLDER)
        from networks import export

        return export(self.name, FOLDER)

    def workload(self, port: int, model: str) -> Workload:
        """Return the requests of its clients."""
        if self.api == "infer":
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/{model}") as answer:
                return InferWorkload(model, json.load(answer)["inputs"], Length.parse("1"))
        if self.api == "embeddings":
            return TextWorkload("embeddings", model, Length.parse("4:60"), Length.parse("1"))
        more = {"temperature": 0}
        return TextWorkload("chat", model, Length.parse("16:48"), Length.parse("24"), shared_prefix=96, stream=False, more=more)


ALONE = ("--max-running", "1", "--no-prefix-cache")
SUBJECTS = (
    Subject(
        "minilm",
        "embeddings",
        16,
        (
            Step("baseline", None),
            Step("compiled", (), ("--max-batch-size", "1")),
            Step(BATCHED),
            Step("+ quantization (w8a8)", ("--quant", "w8a8")),
        ),
    ),
    Subject(
        "smollm2",
        "chat",
        8,
        (
            Step("baseline", None),
            Step("compiled", (), ALONE),
            Step(BATCHED, (), ("--no-prefix-cache",)),
            Step("+ quantization (w8a8)", ("--quant", "w8a8"), ("--no-prefix-cache",)),
            Step("+ keys and values in int8", ("--quant", "w8a8", "--kv", "int8"), ("--no-prefix-cache",)),
            Step("+ prefix cache", ("--quant", "w8a8", "--kv", "int8")),
        ),
    ),
    Subject(
        "resnet18",
        "infer",
        8,
        (
            Step("baseline", None),
            Step("compiled", (), ("--max-batch-size", "1")),
            Step(BATCHED),
            Step("+ quantization (w8a8-static)", ("--quant", "w8a8-static", "--calibrate", str(FOLDER / "images.npy"))),
        ),
        dynamic=("--dynamic", "batch"),
    ),
)


def artifact(subject: Subject, step: Step) -> Path:
    """Return the artifact of a step, compiled on first use."""
    assert step.compile is not None
    words = [word.lstrip("-").replace(":", "-") for word in step.compile if "/" not in word]
    path = FOLDER / f"{'-'.join([subject.name, *words])}.llmos"
    if path.exists():
        return path
    images = FOLDER / "images.npy"
    if str(images) in step.compile and not images.exists():
        np.save(images, np.random.default_rng(0).standard_normal((16, 3, 224, 224), np.float32))
    start_s = time.perf_counter()
    command = [*LLMOS, "compile", "-q", str(subject.source()), "-o", str(path), *subject.more, *subject.dynamic, *step.compile]
    if subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode:
        raise click.ClickException(f"{subject.name} was not compiled")
    click.echo(f"{path} compiled in {time.perf_counter() - start_s:.0f} s", err=True)
    return path


@contextmanager
def server(subject: Subject, step: Step) -> Iterator[tuple[Served, str]]:
    """Start the server of a step; give it and its model's name."""
    if step.compile is None:
        with started([sys.executable, str(BASELINE), subject.api, str(subject.source())]) as served:
            yield served, "baseline"
        return
    path = artifact(subject, step)
    with serving(path, *step.serve) as served:
        yield served, path.stem


def measure(subject: Subject, step: Step, duration_s: float) -> dict[str, Any]:
    """Return the figures of a step. The first request of each client is not counted: it finds an empty queue."""
    with server(subject, step) as (served, model):
        workload = subject.workload(served.port, model)
        run(served.port, ClosedLoop(1, 60, 3), workload, seed=1)
        samples = run(served.port, ClosedLoop(subject.num_clients, duration_s, least_requests=3 * subject.num_clients), workload)
    samples.sort(key=lambda sample: sample.due_s)
    found = summary(samples[subject.num_clients :], None)
    if found["num_errors"] or found["num_rejected"]:
        raise click.ClickException(f"{subject.name}, {step.name}: {found['errors']}, {found['num_rejected']} refused")
    return {"model": subject.name, "step": step.name, "num_clients": subject.num_clients, **found}


def against(base: dict[str, Any], found: dict[str, Any]) -> dict[str, float]:
    """Return how figures differ from the baseline's: -0.62 is 62 % less."""
    changes = {name: found["e2e_ms"][name] / base["e2e_ms"][name] - 1 for name in ("p50", "p95")}
    return {**changes, "throughput": found["requests_per_s"] / base["requests_per_s"] - 1}


def line(found: dict[str, Any], change: dict[str, float]) -> str:
    """Return a row of the table, in Markdown."""
    p50, p95 = (f"{found['e2e_ms'][name]:.1f} ms ({change[name]:+.0%})" for name in ("p50", "p95"))
    tokens = f", {found['output_tokens_per_s']:.0f} tokens/s" if found["output_tokens_per_s"] else ""
    return f"| {found['step']} | {p50} | {p95} | {found['requests_per_s']:.1f}/s ({change['throughput']:+.0%}){tokens} |"


def table(subject: Subject, duration_s: float) -> list[dict[str, Any]]:
    """Measure a model and print its table. Return its rows."""
    click.echo(f"\n| {subject.name}, {subject.num_clients} clients | p50 | p95 | throughput |\n|---|---|---|---|")
    rows: list[dict[str, Any]] = []
    for step in subject.steps:
        found = measure(subject, step, duration_s)
        found["change"] = against(rows[0] if rows else found, found)
        rows.append(found)
        click.echo(line(found, found["change"]))
    return rows


def misses(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the targets that the last row misses."""
    change = rows[-1]["change"]
    return [
        f"{rows[-1]['model']}: {name} {change[name]:+.0%}, where {target:+.0%} is the target"
        for name, target in TARGETS.items()
        if (change[name] > target if target < 0 else change[name] < target)
    ]


@click.command()
@click.option("--models", default="minilm,smollm2,resnet18", show_default=True)
@click.option("--duration-s", default=12.0, show_default=True, type=click.FloatRange(1), help="Of the load on each server.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all figures to a file.")
def main(models: str, duration_s: float, json_path: Path | None) -> None:
    """Measure."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    asked = models.split(",")
    tables = [table(subject, duration_s) for subject in SUBJECTS if subject.name in asked]
    if json_path is not None:
        json_path.write_text(json.dumps([row for rows in tables for row in rows], indent=1))
    missed = [text for rows in tables for text in misses(rows)]
    click.echo("\n" + ("\n".join(missed) or "every target is met"))
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
