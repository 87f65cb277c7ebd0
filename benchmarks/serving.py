"""`python benchmarks/serving.py minilm.llmos --chat smollm2.llmos`: what a server costs and gives.

    batching      32 clients against one, of short texts
    overhead      one client's median over that of the same texts in a process without a server
    overload      ten times as many arrivals as the server can answer: what is answered, and how fast the rest is refused
    telemetry     requests a second of 32 clients with metrics, access log and all traces on, over those with all of it off
    restart       from starting a process, after kill -9 of the one before, to its first good answer
    first-token   the time to the first token of 100 chats at a time, beside that of one (--chat)

Each is measured against `llmos serve` in a process of its own; clients share the machine with it. Exits with 1 where a figure misses its
target (docs/serving.md).
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from served import run, serving

from llmos.runtime.bench.load import ClosedLoop, OpenLoop
from llmos.runtime.bench.report import summary
from llmos.runtime.bench.workload import Length, TextWorkload

IN_PROCESS = """
import json, statistics, sys, time
from pathlib import Path
from llmos.runtime.server.core.language import load_served
from llmos.runtime.text.tokenizer import TextEncoder
model = load_served(Path(sys.argv[1]))
encoder = TextEncoder(model)
names = [spec.name for spec in model.signature.inputs]
for line in sys.stdin:
    times = []
    for text in json.loads(line):
        start = time.perf_counter()
        (ids,) = encoder.encode([text])
        inputs = encoder.inputs(ids)
        model([inputs[name] for name in names])
        times.append(time.perf_counter() - start)
    print(statistics.median(times), flush=True)
"""
COLLECTOR = """
import time
from concurrent.futures import ThreadPoolExecutor
import grpc
class Any(grpc.GenericRpcHandler):
    def service(self, call):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")
server = grpc.server(ThreadPoolExecutor(2), handlers=[Any()])
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
time.sleep(3600)
"""
SHORT = Length.parse("3:10")
PASSAGE = Length.parse("32:64")
OVERHEAD_MS, OVERLOAD_RATIO, REFUSAL_MS, READY_S = 0.3, 1.5, 50.0, 1.0
TELEMETRY_SHARE = 0.03


@dataclass(frozen=True)
class Figure:
    """A line of the report. ok: whether it meets its target; None where it has none."""

    text: str
    ok: bool | None = None

    def __str__(self) -> str:
        return self.text + {None: "", True: " (met)", False: " (missed)"}[self.ok]


def texts_of(name: str, length: Length) -> TextWorkload:
    """Return embeddings of random texts."""
    return TextWorkload("embeddings", name, length, SHORT)


def batching(artifact: Path, chat: Path | None) -> Iterator[Figure]:
    """Measure many clients against one, in turns, so that a busy minute slows both."""
    workload = texts_of(artifact.stem, SHORT)
    rates: dict[int, list[float]] = {1: [], 32: []}
    with serving(artifact) as served:
        run(served.port, ClosedLoop(8, 60, 64), workload)
        for seed in range(5):
            for clients, found in rates.items():
                found.append(summary(run(served.port, ClosedLoop(clients, 60, 400), workload, seed), None)["requests_per_s"])
    gains = sorted(many / one for one, many in zip(rates[1], rates[32], strict=True))
    middle = {clients: statistics.median(found) for clients, found in rates.items()}
    text = f"{middle[32]:.0f} requests/s of 32 clients, {middle[1]:.0f} of one: {statistics.median(gains):.2f}x"
    yield Figure(f"batching: {text}, {gains[0]:.2f}x to {gains[-1]:.2f}x in {len(gains)} rounds")


def overhead(artifact: Path, chat: Path | None) -> Iterator[Figure]:
    """Measure the same texts in a process that loads the artifact and over HTTP, in turns."""
    workload = texts_of(artifact.stem, SHORT)
    count, differences, alone = 200, [], []
    command = [sys.executable, "-c", IN_PROCESS, str(artifact)]
    with serving(artifact) as served, subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        for seed in range(9):
            calls = workload.calls(random.Random(seed))
            texts = [json.loads(next(calls).body)["input"] for _ in range(count)]
            process.stdin.write(json.dumps(texts) + "\n")
            process.stdin.flush()
            own_ms = float(process.stdout.readline()) * 1e3
            over_http = summary(run(served.port, ClosedLoop(1, 60, count), workload, seed), None)
            if seed:  # the first round warms both up
                alone.append(own_ms)
                differences.append(over_http["e2e_ms"]["p50"] - own_ms)
        process.stdin.close()
    extra_ms = statistics.median(differences)
    text = f"overhead at one client: {extra_ms:.2f} ms over {statistics.median(alone):.2f} ms in process (target {OVERHEAD_MS} ms)"
    yield Figure(text, extra_ms < OVERHEAD_MS)


def overload(artifact: Path, chat: Path | None) -> Iterator[Figure]:
    """Measure light load, then ten times what the server can answer, with a queue that keeps latencies."""
    workload = texts_of(artifact.stem, PASSAGE)
    with serving(artifact) as served:
        run(served.port, ClosedLoop(8, 60, 64), workload)
        capacity = summary(run(served.port, ClosedLoop(32, 6.0), workload), None)["requests_per_s"]
        light = summary(run(served.port, OpenLoop(capacity / 5, 10.0), workload, 1), None)
    unloaded_ms = light["e2e_ms"]["p99"]
    with serving(artifact, "--max-wait-ms", str(unloaded_ms / 2)) as served:
        run(served.port, ClosedLoop(1, 60, 64), workload)
        found = summary(run(served.port, OpenLoop(capacity * 10, 8.0, timeout_s=30), workload, 2), None, 8.0)
    ratio = found["e2e_ms"]["p99"] / unloaded_ms
    yield Figure(f"capacity {capacity:.0f} requests/s; at a fifth of it p50 {light['e2e_ms']['p50']:.1f}, p99 {unloaded_ms:.1f} ms")
    answered = f"{found['num_ok']} of {found['num_requests']} answered ({found['requests_per_s']:.0f}/s), {found['num_errors']} errors"
    yield Figure(f"overload, 10x: {answered}", found["num_errors"] == 0)
    text = f"answered at p99 {found['e2e_ms']['p99']:.1f} ms, {ratio:.2f}x of unloaded (target {OVERLOAD_RATIO}x)"
    yield Figure(f"overload, 10x: {text}", ratio <= OVERLOAD_RATIO)
    refused = found["rejected_ms"] or {"p50": 0.0, "p99": 0.0, "max": 0.0}
    text = (
        f"refused after p50 {refused['p50']:.1f}, p99 {refused['p99']:.1f}, max {refused['max']:.1f} ms (target {REFUSAL_MS:g} ms at p99)"
    )
    yield Figure(f"overload, 10x: {text}; the client's own lag p99 {found['client_lag_ms']['p99']:.1f} ms", refused["p99"] <= REFUSAL_MS)


def telemetry(artifact: Path, chat: Path | None) -> Iterator[Figure]:
    """Measure a server that traces every request beside one that writes nothing, in turns. The collector only takes what comes."""
    workload = texts_of(artifact.stem, PASSAGE)
    with subprocess.Popen([sys.executable, "-c", COLLECTOR], stdout=subprocess.PIPE, text=True) as collector:
        assert collector.stdout
        endpoint = f"http://127.0.0.1:{int(collector.stdout.readline())}"
        try:
            with serving(artifact) as off, serving(artifact, "--access-log", "--otlp-endpoint", endpoint) as on:
                ratios = []
                for seed in range(9):
                    rates = [summary(run(each.port, ClosedLoop(32, 2.5), workload, seed), None)["requests_per_s"] for each in (off, on)]
                    ratios.append(rates[1] / rates[0])
        finally:
            collector.kill()
    cost = 1 - statistics.median(ratios[1:])
    text = f"{cost:.1%} fewer requests/s of 32 clients (target {TELEMETRY_SHARE:.0%})"
    yield Figure(f"telemetry, every request traced: {text}", cost < TELEMETRY_SHARE)


def restart(artifact: Path, chat: Path | None) -> Iterator[Figure]:
    """Measure starts after kill -9."""
    ready_s = []
    for _ in range(6):
        with serving(artifact) as served:
            ready_s.append(served.ready_s)
            served.process.kill()
    middle = statistics.median(ready_s[1:])
    yield Figure(f"kill -9 and ready again: {middle:.2f} s, at most {max(ready_s[1:]):.2f} s (target {READY_S:g} s)", middle < READY_S)


def first_token(artifact: Path, chat: Path | None) -> Iterator[Figure]:
    """Measure chats, one at a time and a hundred."""
    if chat is None:
        yield Figure("first token: left out, --chat names the artifact of a chat model")
        return
    workload = TextWorkload("chat", chat.stem, Length.parse("16:64"), Length.parse("16"))
    with serving(chat, "--max-running", "128") as served:
        run(served.port, ClosedLoop(1, 60, 2), workload, 1)
        one, many = (summary(run(served.port, ClosedLoop(n, 60, count), workload), None) for n, count in ((1, 20), (100, 300)))
    for clients, found in ((1, one), (100, many)):
        ttft, tpot = found["ttft_ms"], found["tpot_ms"]
        rate = f"{found['output_tokens_per_s']:.0f} tokens/s"
        text = f"p50 {ttft['p50']:.0f}, p95 {ttft['p95']:.0f} ms; a token behind it p50 {tpot['p50']:.1f} ms; {rate}"
        yield Figure(f"first token of {clients} chats at a time: {text}", found["num_errors"] == 0)


FIGURES: dict[str, Callable[[Path, Path | None], Iterator[Figure]]] = {
    "batching": batching,
    "overhead": overhead,
    "overload": overload,
    "telemetry": telemetry,
    "restart": restart,
    "first-token": first_token,
}


def chosen(only: str) -> Sequence[str]:
    """Return the names of the figures that are asked for."""
    names = only.split(",") if only else list(FIGURES)
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        raise click.UsageError(f"there is no figure {unknown[0]}: there are {', '.join(FIGURES)}")
    return names


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path, exists=True))
@click.option("--chat", type=click.Path(path_type=Path, exists=True), help="Artifact of a chat model.")
@click.option("--only", default="", help=f"Of {', '.join(FIGURES)}.")
def main(artifact: Path, chat: Path | None, only: str) -> None:
    """Measure a served sentence encoder."""
    missed: list[Any] = []
    for name in chosen(only):
        for figure in FIGURES[name](artifact, chat):
            click.echo(str(figure))
            missed += [figure] if figure.ok is False else []
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
