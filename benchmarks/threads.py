"""What the thread pool gives and costs: `python benchmarks/threads.py bert.llmos minilm.llmos --input-shape batch=1,tokens=128`.

A launch that all threads must come to, and what idle threads use, from a small C program over the core; the first artifact on one thread
and on all, in turns, beside multiply-adds that touch no memory, which is what the machine gives; the threads of a process that runs every
artifact given, which is one pool. Exits with 1 where a figure misses its target.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

import llmos
from llmos.compiler.bench.inputs import make_inputs, parse_shape
from llmos.compiler.bench.peak import measure_limits
from llmos.runtime.artifact.reader import Artifact
from llmos.runtime.native.binding import set_num_threads
from llmos.runtime.program import Program

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parent / "runtime" / "native"
MAX_LAUNCH_US, MAX_IDLE_US, MIN_SPEEDUP_OF_TWO = 3.0, 200.0, 1.9


@dataclass(frozen=True)
class Figure:
    """A line of the report. `met`: whether it is as good as `target`."""

    name: str
    value: str
    target: str
    met: bool

    def __str__(self) -> str:
        return f"| {self.name} | {self.value} | {self.target} | {'met' if self.met else 'missed'} |"


def pool_figures(num_threads: int) -> list[Figure]:
    """Of the pool alone. The pool's threads are all but the calling one."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise click.ClickException("the pool's figures need a C compiler: install one (for example: apt install gcc)")
    with tempfile.TemporaryDirectory(prefix="llmos-threads-") as folder:
        program = Path(folder) / "fork_join"
        sources = [str(HERE / "fork_join.c"), *map(str, sorted(NATIVE.glob("*.c")))]
        include = ["-I", str(NATIVE), "-I", str(NATIVE / "include")]
        subprocess.run([compiler, "-std=gnu11", "-O2", *include, *sources, "-o", str(program), "-lpthread", "-ldl"], check=True)
        printed = subprocess.run([program, str(num_threads)], check=True, capture_output=True, text=True).stdout
    alone_ns, together_ns, idle_us = map(int, printed.split())
    idle_each = idle_us / max(1, num_threads - 1)
    value = f"{together_ns / 1e3:.2f} us ({alone_ns / 1e3:.2f} us where the caller has done it all)"
    return [
        Figure("fork and join of all threads, median", value, f"{MAX_LAUNCH_US:g} us", together_ns / 1e3 <= MAX_LAUNCH_US),
        Figure("processor time of an idle thread", f"{idle_each:.0f} us", f"{MAX_IDLE_US:g} us", idle_each <= MAX_IDLE_US),
    ]


def speedup(program: Program, inputs: Sequence[np.ndarray], num_threads: int, runs: int) -> Figure:
    """All threads over one, in turns."""
    times: dict[int, list[float]] = {1: [], num_threads: []}
    for _ in range(runs):
        for count, seconds in times.items():
            set_num_threads(count)
            program(*inputs)
            start = time.perf_counter()
            program(*inputs)
            seconds.append(time.perf_counter() - start)
    one, all_threads = (statistics.median(times[count]) for count in (1, num_threads))
    target = MIN_SPEEDUP_OF_TWO * num_threads / 2
    machine = statistics.median(measure_limits(num_threads).flops_per_s / measure_limits(1).flops_per_s for _ in range(5))
    value = f"{one / all_threads:.2f}x ({one * 1e3:.1f} ms, {all_threads * 1e3:.1f} ms; multiply-adds alone {machine:.2f}x)"
    return Figure(f"{num_threads} threads over one", value, f"{target:.2f}x", one / all_threads >= target)


def threads_of_all(artifacts: Sequence[Path], num_threads: int) -> Figure:
    """Threads of a process that has loaded and run them all, beside those that Python and numpy have before."""
    lines = [
        "import sys, os, numpy, llmos",
        "from llmos.runtime.native.binding import set_num_threads",
        "before = len(os.listdir('/proc/self/task'))",
        f"set_num_threads({num_threads})",
        "programs = [llmos.load(path) for path in sys.argv[1:]]",
        "zeros = lambda p: [numpy.zeros([1 if isinstance(d, str) else d for d in s.shape], s.dtype) for s in p['main'].inputs]",
        "[p(*zeros(p)) for p in programs]",
        "print(len(os.listdir('/proc/self/task')) - before)",
    ]
    command = [sys.executable, "-c", "\n".join(lines), *map(str, artifacts)]
    made = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    name = f"threads made for {len(artifacts)} artifacts"
    return Figure(name, str(made), f"{num_threads - 1}", made <= num_threads - 1)


@click.command()
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--input-shape", "shape", default="", help="Sizes of the first artifact's call, such as batch=1,tokens=128.")
@click.option("--threads", default=2, show_default=True)
@click.option("--runs", default=20, show_default=True)
def main(artifacts: tuple[Path, ...], shape: str, threads: int, runs: int) -> None:
    """Measure."""
    manifest = Artifact.open(artifacts[0]).manifest
    inputs = make_inputs(manifest.entries[0], parse_shape(shape, manifest), {})
    figures = pool_figures(threads)
    with llmos.load(artifacts[0]) as program:
        figures.append(speedup(program, inputs, threads, runs))
    figures.append(threads_of_all(artifacts, threads))
    click.echo("| what | measured | target | |\n|---|---|---|---|")
    click.echo("\n".join(map(str, figures)))
    sys.exit(0 if all(figure.met for figure in figures) else 1)


if __name__ == "__main__":
    main()
