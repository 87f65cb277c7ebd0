"""`python benchmarks/serving.py minilm.llmos`: what batching gives a server of sentence embeddings.

The same texts go to one `llmos serve` process, first from one client that waits for each answer (batch 1, one by one), then from 32 clients
at once. Clients hold their connections open and do next to no work, since they share the machine with the server.
"""

from __future__ import annotations

import http.client
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

TEXT = "the quick brown fox jumps over a lazy dog while two happy people walk home along the river in the evening sun"
SERVE = "from llmos.runtime.cli import main; main()"
_ADDRESS = re.compile(r"serving .* on http://127\.0\.0\.1:(\d+)")


@dataclass(frozen=True)
class Served:
    """A server that is ready. ready_s: from starting the process to the first good answer of its health route."""

    port: int
    ready_s: float


@dataclass(frozen=True)
class Load:
    """One run of a load. latencies_s: of each request."""

    num_clients: int
    duration_s: float
    latencies_s: tuple[float, ...]

    @property
    def per_second(self) -> float:
        return len(self.latencies_s) / self.duration_s


def sentences(count: int) -> list[str]:
    """Texts of 3 to 10 words, as search queries are; the same in each run."""
    words = TEXT.split()
    return [" ".join(words[(number * 5 + word) % len(words)] for word in range(3 + number % 8)) for number in range(count)]


@contextmanager
def serving(artifact: Path, *options: str) -> Iterator[Served]:
    """`llmos serve` on a free port, stopped when the block ends."""
    command = [sys.executable, "-c", SERVE, "serve", f"{artifact.stem}={artifact}", "--port", "0", "--no-access-log", *options]
    start_s = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if found := _ADDRESS.search(line):
                break
        else:
            raise SystemExit("the server did not start: " + "".join(lines))
        port = int(found[1])
        _wait_until_ready(port)
        yield Served(port, time.perf_counter() - start_s)
    finally:
        process.terminate()
        process.wait(30)


def _wait_until_ready(port: int) -> None:
    for _ in range(1000):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/v2/health/ready")
        if connection.getresponse().status == 200:
            return
        time.sleep(0.005)
    raise SystemExit("the server is not ready after 5 s")


def load(port: int, model: str, texts: Sequence[str], num_clients: int) -> Load:
    """Sends each text once, as one request of /v1/embeddings, from so many clients at a time."""
    shares = [texts[first::num_clients] for first in range(num_clients)]
    start_s = time.perf_counter()
    with ThreadPoolExecutor(num_clients) as pool:
        parts = list(pool.map(lambda share: _client(port, model, share), shares))
    return Load(num_clients, time.perf_counter() - start_s, tuple(latency for part in parts for latency in part))


def _client(port: int, model: str, texts: Sequence[str]) -> list[float]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    latencies_s = []
    for text in texts:
        start_s = time.perf_counter()
        connection.request("POST", "/v1/embeddings", json.dumps({"model": model, "input": text, "encoding_format": "base64"}))
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise SystemExit(f"the server answered {response.status}: {body[:200]!r}")
        latencies_s.append(time.perf_counter() - start_s)
    return latencies_s


def compare(artifact: Path, num_requests: int, num_clients: int = 32, options: Sequence[str] = ()) -> tuple[Served, Load, Load]:
    """The server, and the loads of one client and of `num_clients`."""
    texts = sentences(num_requests)
    with serving(artifact, *options) as served:
        load(served.port, artifact.stem, texts[:64], 8)
        return served, load(served.port, artifact.stem, texts, 1), load(served.port, artifact.stem, texts, num_clients)


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path, exists=True))
@click.option("--requests", "num_requests", default=2000, show_default=True, type=click.IntRange(64))
@click.option("--clients", default=32, show_default=True, type=click.IntRange(2))
def main(artifact: Path, num_requests: int, clients: int) -> None:
    """Measure a served sentence encoder."""
    served, one, many = compare(artifact, num_requests, clients)
    click.echo(f"{artifact.stem}: ready after {served.ready_s:.2f} s")
    for run in (one, many):
        p99 = statistics.quantiles(run.latencies_s, n=100)[98]
        click.echo(
            f"{run.num_clients:3} clients  {run.per_second:7.0f} requests/s  "
            f"median {statistics.median(run.latencies_s) * 1e3:.2f} ms  p99 {p99 * 1e3:.2f} ms"
        )
    click.echo(f"batching gives {many.per_second / one.per_second:.2f}x")


if __name__ == "__main__":
    main()
