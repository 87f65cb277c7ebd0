"""What starting and calling cost: `python benchmarks/startup.py minilm.llmos`.

The command line's help; import of llmos and load of the artifact in a fresh process; load of an artifact with 90 MB of weights beside the
hashes of those bytes by OpenSSL; what Python adds to a call; a server until it answers. Medians. Exits with 1 where a figure misses its
target (docs/performance.md).
"""

from __future__ import annotations

import hashlib
import http.client
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch

import llmos
from llmos.compiler.backends.options import CompileOptions

HELP = "import llmos.runtime.cli.command as m; m.run(['--help'])"
LOAD = "import sys, time; s = time.perf_counter(); import llmos; llmos.load(sys.argv[1]); print(time.perf_counter() - s)"


@dataclass(frozen=True)
class Figure:
    """A line of the report, in milliseconds."""

    name: str
    value_ms: float
    target_ms: float

    def __str__(self) -> str:
        verdict = "met" if self.value_ms <= self.target_ms else "missed"
        return f"| {self.name} | {self.value_ms:.3f} ms | {self.target_ms:g} ms | {verdict} |"


class Large(torch.nn.Module):
    """90 MiB of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4096, (90 << 20) // (4 * 4096), bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


class Add(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + b


def median_ms(function: Callable[[], object], runs: int) -> float:
    """Of calls after one that is not counted."""
    function()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def process_figures(artifact: Path, runs: int) -> list[Figure]:
    """Fresh processes; that of the load counts from the first line that Python runs."""
    show_help = median_ms(lambda: subprocess.run([sys.executable, "-c", HELP], check=True, capture_output=True), runs)
    loads = [float(subprocess.check_output([sys.executable, "-c", LOAD, str(artifact)])) * 1e3 for _ in range(runs)]
    return [Figure("llmos --help", show_help, 300), Figure("import llmos and load", statistics.median(loads), 200)]


def call_figures(folder: Path, runs: int) -> list[Figure]:
    large, small = folder / "large.llmos", folder / "add.llmos"
    options = CompileOptions(target="native", accuracy_report=False)
    llmos.compile(Large(), (torch.zeros(1, 4096),), options=options).save(large)
    llmos.compile(Add(), (torch.ones(8), torch.ones(8)), options=options).save(small)
    data = np.zeros(90 << 20, np.uint8)
    hashes = median_ms(lambda: hashlib.sha256(data).digest(), runs)
    figures = [Figure(f"load of 90 MiB (hashes alone on one thread {hashes:.1f} ms)", median_ms(lambda: llmos.load(large), runs), 60)]
    a = np.ones(8, np.float32)
    with llmos.load(small) as program:
        figures.append(Figure("a call of one small kernel from Python", median_ms(lambda: program(a, a), 2000), 0.02))
    return figures


def server_figure(artifact: Path, port: int) -> Figure:
    """From the start of the process to the first answer of the ready probe."""

    def start_once() -> None:
        command = [sys.executable, "-m", "llmos.runtime.cli", "serve", str(artifact), "--port", str(port)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                wait_until_ready(port)
            finally:
                process.terminate()

    return Figure("server ready", median_ms(start_once, 5), 1000)


def wait_until_ready(port: int, timeout_s: float = 30) -> None:
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
        try:
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.01)
        finally:
            connection.close()
    raise click.ClickException(f"the server did not become ready within {timeout_s:g} s")


@click.command()
@click.argument("artifact", type=click.Path(exists=True, path_type=Path))
@click.option("--runs", default=9, show_default=True)
@click.option("--port", default=8071, show_default=True, help="A free port of this machine.")
def main(artifact: Path, runs: int, port: int) -> None:
    """Measure."""
    with tempfile.TemporaryDirectory(prefix="llmos-startup-") as folder:
        figures = [*process_figures(artifact, runs), *call_figures(Path(folder), runs), server_figure(artifact, port)]
    click.echo("| what | median | target | |\n|---|---|---|---|")
    click.echo("\n".join(map(str, figures)))
    sys.exit(0 if all(figure.value_ms <= figure.target_ms for figure in figures) else 1)


if __name__ == "__main__":
    main()
