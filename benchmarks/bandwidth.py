"""How near moves, depthwise convolutions and elementwise chains come to the memory's bandwidth: `python benchmarks/bandwidth.py`.

The yardstick is a copy between two large arrays, measured in the same run on as many threads. Bytes are those of each input and output
once; what stays in a cache between runs may pass 100 %.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F

import llmos
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver import compile as compile_model


class Call(torch.nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


@dataclass(frozen=True)
class Case:
    """A function of one tensor of a shape."""

    shape: tuple[int, ...]
    function: Callable[[torch.Tensor], torch.Tensor]


class Depthwise(torch.nn.Module):
    """A 3x3 convolution of each channel by itself, on [n, height, width, channels]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()


CASES: Mapping[str, Case] = {
    "transpose 1024x1024": Case((1024, 1024), lambda x: x.t().contiguous()),
    "transpose 1000x1000": Case((1000, 1000), lambda x: x.t().contiguous()),
    "channels last 3x512x512": Case((4, 3, 512, 512), lambda x: x.permute(0, 2, 3, 1).contiguous()),
    "channels first 64x112x112": Case((4, 112, 112, 64), lambda x: x.permute(0, 3, 1, 2).contiguous()),
    "exp(x) * sin(x)": Case((2048, 2048), lambda x: torch.exp(x) * torch.sin(x)),
    "x + x * 2": Case((2048, 2048), lambda x: x + torch.relu(x * 2)),
    "concat": Case((8, 64, 64, 48), lambda x: torch.cat([x, x * 2], -1)),
    "slice": Case((8, 64, 64, 96), lambda x: x[..., 32:64].contiguous()),
    "pad": Case((8, 62, 62, 96), lambda x: F.pad(x, (0, 0, 1, 1, 1, 1))),
    "gather": Case((4096, 512), lambda x: x[torch.arange(4095, -1, -1)]),
    "depthwise 3x3": Case((4, 112, 112, 64), Depthwise(64)),
    "global mean": Case((4, 56, 56, 256), lambda x: x.mean((1, 2))),
    "mean of rows": Case((8192, 512), lambda x: x.mean(-1)),
}


def median_s(call: Callable[[], object], runs: int) -> float:
    times = []
    for _ in range(runs + 3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


def copy_bandwidth(threads: int, runs: int) -> float:
    """Bytes read and written a second by `threads` threads that copy 64 MB each."""
    arrays = [(np.ones(16 << 20, np.float32), np.empty(16 << 20, np.float32)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        seconds = median_s(lambda: list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), arrays)), runs)
    return 2 * sum(a.nbytes for a, _ in arrays) / seconds


@click.command()
@click.option("--only", multiple=True, help="Names of cases; all by default.")
@click.option("--runs", default=30, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(only: tuple[str, ...], runs: int, threads: int) -> None:
    """Print the share of the bandwidth that each case reaches."""
    bandwidth = copy_bandwidth(threads, runs)
    click.echo(f"copy: {bandwidth / 1e9:.1f} GB/s\n| case | us | GB/s | of copy |\n|---|---|---|---|")
    for name, case in CASES.items():
        if only and name not in only:
            continue
        x = torch.randn(case.shape)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "case.llmos"
            compile_model(Call(case.function).eval(), (x,), options=CompileOptions(target="native", repro=None)).save(path)
            program = llmos.load(path)
        y, array = program(x.numpy()), x.numpy()
        seconds = median_s(lambda program=program, array=array: program(array), runs)  # type: ignore[misc]
        moved = (array.nbytes + y.nbytes) / seconds
        click.echo(f"| {name} | {seconds * 1e6:.0f} | {moved / 1e9:.1f} | {moved / bandwidth:.0%} |")


if __name__ == "__main__":
    main()
