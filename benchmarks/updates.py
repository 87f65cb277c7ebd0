"""Updating an array of the caller in place: `benchmarks/updates.py`. A call on 256 MiB writes a row, from Python and from C.

The artifact has two entries over one table of weights. Target: under 1 ms a call, whatever the size of the array.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

import llmos
from llmos.compiler.backends.options import CompileOptions
from llmos.runtime.native.binding import core
from llmos.runtime.program import Program

WIDTH, CALLS = 64, 200
SIZES = {"256 KiB": 1 << 10, "256 MiB": 1 << 20}  # rows of WIDTH floats
EXAMPLE = Path(__file__).parents[1] / "runtime" / "native" / "examples" / "run.c"


class Step(nn.Module):
    """A row of a cache becomes a projection of a token's embedding."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.table = table

    def forward(self, cache: torch.Tensor, ids: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        row = self.table(ids)
        cache.index_copy_(0, at, row)
        return row.sum(1)


def build(path: Path) -> None:
    table = nn.Embedding(1000, WIDTH)
    inputs = {"step": (torch.zeros(8, WIDTH), torch.tensor([1]), torch.tensor([1])), "embed": (torch.tensor([1, 2]),)}
    shapes = {"step": ({0: torch.export.Dim("rows", min=2, max=1 << 24)}, None, None)}
    options = CompileOptions(target="native", repro=None)
    llmos.compile({"step": Step(table), "embed": table}, inputs, dynamic_shapes=shapes, options=options).save(path)


def from_python_ms(program: Program, rows: int) -> float:
    cache, ids, at = np.zeros((rows, WIDTH), np.float32), np.array([1]), np.array([1])
    address, fastest = cache.ctypes.data, float("inf")
    for _ in range(CALLS):
        begin = time.perf_counter()
        program["step"](cache, ids, at)
        fastest = min(fastest, time.perf_counter() - begin)
    assert cache.ctypes.data == address and cache[1].any() and not cache[2].any()
    return fastest * 1e3


def from_c_ms(example: Path, path: Path, rows: int) -> float:
    command = [str(example), str(path), "--entry", "step", "--times", str(CALLS), str(rows)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"([0-9.]+) ms", printed)
    assert found is not None, printed
    return float(found[1])


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="llmos-updates-") as folder:
        path, example, library = Path(folder) / "lm.llmos", Path(folder) / "run", core().path
        build(path)
        subprocess.run(
            ["cc", "-O2", f"-I{EXAMPLE.parents[1] / 'include'}", EXAMPLE, library, f"-Wl,-rpath,{library.parent}", "-o", example],
            check=True,
        )
        program = llmos.load(path)
        print(f"{len(program.manifest.entries)} entries, {len(program.manifest.weights)} weight; ms a call, fastest of {CALLS}")
        for size, rows in SIZES.items():
            python_ms, c_ms = from_python_ms(program, rows), from_c_ms(example, path, rows)
            print(f"{size:>8}: {python_ms:.4f} from Python, {c_ms:.4f} from C  (target: under 1)")


if __name__ == "__main__":
    main()
