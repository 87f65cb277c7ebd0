"""`python benchmarks/serving.py minilm.llmos`: what batching gives a server of sentence embeddings.

The same texts go to one `llmos serve` process, first from one client that waits for each answer (batch 1, one by one), then from 32 clients
at once. Clients hold their connections open and do next to no work, since they share the machine with the server.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
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
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
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
    """One connection. A socket and no HTTP library: a client's work is taken from the server's cores."""
    requests = [_request(model, text) for text in texts]
    latencies_s = []
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for request in requests:
            start_s = time.perf_counter()
            connection.sendall(request)
            _check_answer(connection)
            latencies_s.append(time.perf_counter() - start_s)
    return latencies_s


def _request(model: str, text: str) -> bytes:
    body = json.dumps({"model": model, "input": text, "encoding_format": "base64"}).encode()
    return b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
        len(body),
        body,
    )


def _check_answer(connection: socket.socket) -> None:
    """Reads one whole answer; its embeddings are compared in the tests."""
    data = connection.recv(65536)
    while (end := data.find(b"\r\n\r\n")) < 0:
        data += connection.recv(65536)
    found = _LENGTH.search(data, 0, end + 2)
    assert found
    while len(data) < end + 4 + int(found[1]):
        data += connection.recv(65536)
    if not data.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"the server answered {data[:300]!r}")


def compare(
    artifact: Path, num_requests: int, num_clients: int = 32, options: Sequence[str] = (), rounds: int = 1
) -> tuple[Served, list[Load], list[Load]]:
    """The server, and in each round the loads of one client and of `num_clients`: they take turns, so that a busy minute slows both."""
    texts = sentences(num_requests)
    one: list[Load] = []
    many: list[Load] = []
    with serving(artifact, *options) as served:
        load(served.port, artifact.stem, texts[:64], 8)
        for _ in range(rounds):
            one.append(load(served.port, artifact.stem, texts, 1))
            many.append(load(served.port, artifact.stem, texts, num_clients))
    return served, one, many


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path, exists=True))
@click.option("--requests", "num_requests", default=500, show_default=True, type=click.IntRange(64), help="Of each load in each round.")
@click.option("--clients", default=32, show_default=True, type=click.IntRange(2))
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1))
def main(artifact: Path, num_requests: int, clients: int, rounds: int) -> None:
    """Measure a served sentence encoder."""
    served, one, many = compare(artifact, num_requests, clients, rounds=rounds)
    click.echo(f"{artifact.stem}: ready after {served.ready_s:.2f} s")
    for runs in (one, many):
        latencies_s = [latency for run in runs for latency in run.latencies_s]
        click.echo(
            f"{runs[0].num_clients:3} clients  {statistics.median(run.per_second for run in runs):7.0f} requests/s  "
            f"median {statistics.median(latencies_s) * 1e3:.2f} ms  p99 {statistics.quantiles(latencies_s, n=100)[98] * 1e3:.2f} ms"
        )
    gains = sorted(b.per_second / a.per_second for a, b in zip(one, many, strict=True))
    click.echo(f"batching gives {statistics.median(gains):.2f}x, {gains[0]:.2f}x to {gains[-1]:.2f}x in {rounds} rounds")


if __name__ == "__main__":
    main()
