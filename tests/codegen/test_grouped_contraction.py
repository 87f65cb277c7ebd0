"""Rows by the matrix of their group: beside torch, the same bits as by all groups' matrices, and whatever else a group holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import llmos.compiler.frontend.grouped_linear  # noqa: F401  registers the op
from llmos.compiler.driver import compile as compile_model
from llmos.runtime.program import Program

from .programs import V3, V4, dim, load, options, runnable

ROWS = 70
NUM_GROUPS = 5
GROUPS = ((0, 0, 0, 0, 70), (5, 5, 5, 69, 70), (1, 2, 40, 41, 70), (70, 70, 70, 70, 70))  # ends of each


class Grouped(torch.nn.Module):
    """A product by groups, with what a model computes before and behind it."""

    def __init__(self, groups: int, columns: int, k: int) -> None:
        super().__init__()
        torch.manual_seed(groups * columns + k)
        self.weight = torch.nn.Parameter(torch.randn(groups * columns, k))
        self.bias = torch.nn.Parameter(torch.randn(groups * columns)) if columns % 3 else None

    def forward(self, x: torch.Tensor, begins: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = torch.ops.llmos.grouped_linear(torch.tanh(x), self.weight, self.bias, begins, ends)
        return made * 2


def bounds(ends: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([0, *ends[:-1]], np.int32), np.array(ends, np.int32)


def program_of(module: Grouped, groups: int, k: int, target: str = V4, quant: str = "") -> Program:
    example = (torch.randn(3, k), torch.zeros(groups, dtype=torch.int32), torch.full((groups,), 3, dtype=torch.int32))
    chosen = options(runnable(target))
    chosen = type(chosen)(**{**vars(chosen), "quant": quant})
    return load(compile_model(module.eval(), example, dynamic_shapes=({0: dim("rows", 1, 200)}, None, None), options=chosen))


def kinds(program: Program) -> set[str]:
    return {kernel.kind for kernel in program.manifest.kernels if "contraction" in kernel.kind}


@pytest.mark.parametrize(
    ("columns", "k", "target"), [(64, 40, V4), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((96, 70, V3), (48, 33, V4)))]
)
def test_rows_are_multiplied_by_the_matrix_of_their_group(columns: int, k: int, target: str) -> None:
    module = Grouped(NUM_GROUPS, columns, k)
    program = program_of(module, NUM_GROUPS, k, target)
    assert kinds(program) == {"grouped_contraction"}
    x = np.random.default_rng(k).standard_normal((ROWS, k)).astype(np.float32)
    for ends in GROUPS:
        with torch.no_grad():
            own = module(torch.from_numpy(x), *map(torch.from_numpy, bounds(ends))).numpy()
        np.testing.assert_allclose(program(x, *bounds(ends)), own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "quant", ["", *(pytest.param(each, marks=pytest.mark.slow) for each in ("w8a8", "w4a16:g32", "w4a8:g32", "w8a16"))]
)
def test_bits_are_those_of_a_row_alone(quant: str) -> None:
    groups, columns, k = 5, 64, 96
    program = program_of(Grouped(groups, columns, k), groups, k, quant=quant)
    assert kinds(program) == {"grouped_contraction"}
    [kernel] = [kernel for kernel in program.manifest.kernels if kernel.kind == "grouped_contraction"]
    assert kernel.details.get("arithmetic") == ("int8" if quant == "w8a8" else None)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((ROWS, k)).astype(np.float32)
    for own in (np.zeros(ROWS, int), np.sort(rng.integers(0, groups, ROWS)), np.full(ROWS, groups - 1)):
        ends = np.cumsum(np.bincount(own, minlength=groups)).astype(np.int32)
        together = np.asarray(program(x, *bounds(tuple(ends))))
        for row in (0, 1, 33, ROWS - 1):
            alone_ends = np.where(np.arange(groups) < own[row], 0, 1).astype(np.int32)
            np.testing.assert_array_equal(program(x[row : row + 1], *bounds(tuple(alone_ends)))[0], together[row])


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["w8a8", "w4a16:g32"])
def test_quantized_products_are_near_the_float_ones(quant: str) -> None:
    groups, columns, k, ends = 3, 64, 128, (10, 10, ROWS)
    module = Grouped(groups, columns, k)
    x = np.random.default_rng(2).standard_normal((ROWS, k)).astype(np.float32)
    with torch.no_grad():
        own = module(torch.from_numpy(x), *map(torch.from_numpy, bounds(ends))).numpy()
    made = np.asarray(program_of(module, groups, k, quant=quant)(x, *bounds(ends)))
    cosine = (made * own).sum(1) / np.linalg.norm(made, axis=1) / np.linalg.norm(own, axis=1)
    assert cosine.min() > (0.999 if quant == "w8a8" else 0.98)


def test_columns_that_fill_no_panel_are_taken_from_the_product_by_all() -> None:
    module = Grouped(3, 20, 32)
    program = program_of(module, 3, 32)
    assert kinds(program) == {"contraction"}
    x, ends = np.random.default_rng(3).standard_normal((9, 32)).astype(np.float32), (4, 4, 9)
    with torch.no_grad():
        own = module(torch.from_numpy(x), *map(torch.from_numpy, bounds(ends))).numpy()
    np.testing.assert_allclose(program(x, *bounds(ends)), own, rtol=1e-4, atol=1e-4)


def test_bounds_outside_of_the_rows_write_nothing_there() -> None:
    program = program_of(Grouped(3, 64, 32), 3, 32)
    x = np.random.default_rng(4).standard_normal((9, 32)).astype(np.float32)
    begins, ends = np.array([-5, 2, 1 << 30], np.int32), np.array([2, 1 << 30, -7], np.int32)
    want = np.asarray(program(x, *bounds((2, 9, 9))))
    np.testing.assert_array_equal(program(x, begins, ends), want)
    program.check_integrity()
