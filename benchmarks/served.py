"""Servers in processes of their own, for the benchmarks of serving, and the load on them."""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop

from llmos.runtime.bench.client import Address, HttpClient
from llmos.runtime.bench.load import ClosedLoop, OpenLoop, Workload
from llmos.runtime.bench.samples import Sample

LLMOS = (sys.executable, "-c", "from llmos.runtime.cli import main; main()")
_ADDRESS = re.compile(r"serving .* on http://127\.0\.0\.1:(\d+)")


@dataclass(frozen=True)
class Served:
    """A server that is ready. ready_s: from starting the process to the first good answer of its health route."""

    process: subprocess.Popen[str]
    port: int
    ready_s: float


@contextmanager
def serving(artifact: Path, *options: str) -> Iterator[Served]:
    """`llmos serve` on a free port, stopped when the block ends. The model is named as the file."""
    with started([*LLMOS, "serve", f"{artifact.stem}={artifact}", "--port", "0", "--no-access-log", *options]) as served:
        yield served


@contextmanager
def started(command: Sequence[str]) -> Iterator[Served]:
    """A command that says where it serves, stopped when the block ends. What it writes to stdout, such as an access log, is dropped."""
    start_s = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
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
        yield Served(process, port, time.perf_counter() - start_s)
    finally:
        process.terminate()
        process.wait(60)


def _wait_until_ready(port: int) -> None:
    for _ in range(1000):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.005)
    raise SystemExit("the server is not ready after 5 s")


def run(port: int, load: OpenLoop | ClosedLoop, workload: Workload, seed: int = 0) -> list[Sample]:
    """Put load on a server. Return what each request saw."""

    async def all_of_it() -> list[Sample]:
        client = HttpClient(Address("127.0.0.1", port))
        samples = await load.run(client, workload, seed)
        client.close()
        return samples

    return uvloop.run(all_of_it())
