"""Products of int8 rows by weights of 4 bits: the bits of the documented formula, from every variant of the kernels and for any rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver import compile as compile_model
from llmos.runtime.program import Program

from .programs import V3, V4, dim, load, runnable
from .test_weight_only import Case, activations

ROWS = (1, 3, 4, 9, 19)
CASES = (
    Case(100, 160, "int4", 32, has_zero=False),
    Case(33, 640, "uint4", 128),  # columns that fill no vector
)
TILES = (  # runs that matrix registers take whole
    Case(48, 192, "int4", 64, has_zero=False),
    Case(33, 1152, "uint4", 128),  # more than one block in scratch
    Case(40, 640, "int4", 0),  # a scale a channel, and half of a run at the end
)
MORE = (
    Case(40, 77, "uint4", 64, has_zero=False),  # the last group is shorter and ends within a word
    Case(50, 100, "uint4", 40),  # groups that end between two chains of 16 bits
    Case(48, 600, "int4", 0),  # a scale a channel, a zero point with a sign
    Case(16, 1100, "uint4", 1024),  # blocks of one long group
    Case(96, 128, "uint4", 32, transposed=True),
)


class Products(torch.nn.Module):
    """A product for each case, of an input of its own."""

    def __init__(self, cases: Sequence[Case]) -> None:
        super().__init__()
        for case in cases:
            with_extremes(case)
        self.layers = torch.nn.ModuleList(case.module for case in cases)

    def forward(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        return [layer(x) for layer, x in zip(self.layers, inputs, strict=True)]


def with_extremes(case: Case) -> None:
    """Give the first column the largest numbers less the smallest zero point."""
    module, low = case.module, -8 if case.dtype == "int4" else 0
    (module.values.t() if case.transposed else module.values)[0] = low + 15
    if module.zero is not None:
        (module.zero.t() if case.transposed and case.group else module.zero)[0] = low


def rows_of(case: Case, count: int) -> np.ndarray:
    """Rows whose first two have the largest magnitudes in all elements, the third only zeros."""
    x = activations(count, case.k).copy()
    x[0], x[1], x[2] = 3, -3, 0
    return x


def reference(case: Case, x: np.ndarray) -> np.ndarray:
    """y[r, n] = (chain of fma over groups: float(Σ qx (q - z)) * scale) * sx, from rows rounded to int8."""
    module = case.module
    numbers, scales, zeros = (
        None if each is None else (each.t() if case.transposed and each.ndim > 1 else each).numpy()
        for each in (module.values, module.scales, module.zero)
    )
    assert numbers is not None and scales is not None
    sx = np.abs(x).max(1, keepdims=True) / np.float32(127)
    sx[sx == 0] = 1
    qx = np.clip(np.rint(x / sx), -127, 127).astype(np.int64)
    total, step = np.zeros((len(x), case.n), np.float32), case.group or min(256, case.k)
    for group, first in enumerate(range(0, case.k, step)):
        scale = scales[:, group] if case.group else scales
        zero = 0 if zeros is None else (zeros[:, group] if case.group else zeros).astype(np.int64)[:, None]
        sums = qx[:, first : first + step] @ (numbers[:, first : first + step].astype(np.int64) - zero).T
        exact = np.longdouble(sums.astype(np.float32)) * np.longdouble(scale) + np.longdouble(total)
        total = exact.astype(np.float32)
    return total * sx


def compiled(cases: Sequence[Case], target: str) -> Program:
    options = CompileOptions(target=runnable(target), cache=False, repro=None, accuracy_report=False, quant="w4a8")
    examples = tuple(torch.ones(2, case.k) for case in cases)
    rows = dim("rows", 1, 64)
    return load(compile_model(Products(cases), examples, dynamic_shapes={"inputs": tuple({0: rows} for _ in cases)}, options=options))


def check(cases: Sequence[Case], target: str, counts: Sequence[int] = ROWS) -> None:
    program = compiled(cases, target)
    assert sum(kernel.details["label"] == "matmul_w4a8+scale" for kernel in program.manifest.kernels) == len(cases)
    inputs = [rows_of(case, max(counts)) for case in cases]
    expected = [reference(case, x) for case, x in zip(cases, inputs, strict=True)]
    for rows in counts:
        found = program(*[x[:rows] for x in inputs])
        for case, got, want in zip(cases, found, expected, strict=True):
            np.testing.assert_array_equal(np.asarray(got), want[:rows], err_msg=f"{case}, {rows} rows")


def test_every_size_gives_the_bits_of_the_formula() -> None:
    check(CASES, V3)


@pytest.mark.slow  # emulated code is long
@pytest.mark.parametrize("target", ["x86-64-v4-amx", V4, "x86-64-v3-vnni"])
def test_every_target_gives_the_bits_of_the_formula(target: str) -> None:
    check(CASES, target)


@pytest.mark.slow
def test_matrix_tiles() -> None:
    check(TILES, "x86-64-v4-amx", (16, 17, 19, 32, 59))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["x86-64-v4-vnni", V3])
def test_other_forms_of_numbers(target: str) -> None:
    check(MORE, target)
