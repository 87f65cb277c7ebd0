"""quantize-tables: looked-up rows are within half a step of the table's, and other weights stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from llmos.compiler.ir.bindings import ir
from llmos.passes.fold_weight_computation import FoldWeightComputation
from llmos.passes.quant.quantize_tables import QuantizeTables
from tests.passes.ir_tests import apply, check, functions, generics

from .quant_tests import run

SMALL = QuantizeTables(min_rows=1, min_columns=1)
embedding = torch.nn.functional.embedding


def lookup(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return embedding(ids, table)


def module_of(function: Any, ids: torch.Tensor, *tables: torch.Tensor, step: QuantizeTables = SMALL) -> ir.Module:
    return apply(generics(function, ids, weights=tables), step)


def test_the_ir() -> None:
    table = torch.randn(300, 16)
    module = apply(module_of(lookup, torch.randint(0, 300, (2, 3)), table, step=QuantizeTables()), FoldWeightComputation())
    check(
        module,
        """
        CHECK: func.func @main(%{{.*}}: tensor<?x3xi64>
        CHECK: tensor.extract %{{.*}} : tensor<300x16xi8>
        CHECK: arith.sitofp
        CHECK: tensor.extract %{{.*}} : tensor<300xf32>
        CHECK: arith.mulf
        CHECK: func.func private @fold(
        CHECK: llmos.quantize = {dtype = "int8"
        """,
    )
    kinds = {str(argument.type) for argument in functions(module)[0].regions[0].blocks[0].arguments}
    assert {"tensor<300x16xi8>", "tensor<300xf32>"} <= kinds


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 5), (300, 16), (257, 33)])
def test_rows_are_rounded_to_half_a_step(rows: int, columns: int) -> None:
    table = torch.randn(rows, columns) * 10 ** torch.randint(-3, 4, (rows, 1)).float()
    table[0] = 0.0
    ids = torch.randint(0, rows, (4, 3))
    (got,) = run(module_of(lookup, ids, table), [ids], [table])
    want = lookup(table, ids)
    assert (np.abs(got - want.numpy()) <= 0.501 * want.abs().amax(-1, keepdim=True).numpy() / 127).all()


def test_rows_of_floats_of_8_bits() -> None:
    table, ids = torch.randn(300, 16) * 10 ** torch.randint(-3, 4, (300, 1)).float(), torch.randint(0, 300, (4, 3))
    (got,) = run(module_of(lookup, ids, table, step=QuantizeTables(float8=True)), [ids], [table])
    scale = table.abs().amax(-1, keepdim=True) / 448
    np.testing.assert_array_equal(got, lookup((table / scale).to(torch.float8_e4m3fn).to(torch.float32) * scale, ids))


def test_a_row_that_is_not_finite_gives_nan() -> None:
    table, ids = torch.randn(4, 8), torch.arange(4).reshape(2, 2)
    table[1, 2], table[3, 0] = float("nan"), float("inf")
    (got,) = run(module_of(lookup, ids, table), [ids], [table])
    assert np.isnan(got[0, 1]).all() and np.isnan(got[1, 1]).all() and np.isfinite(got[:, 0]).all()


@pytest.mark.parametrize(
    "function",
    [
        lambda table, ids: embedding(ids, table) @ table.T,  # stored for a product too
        lambda table, ids: embedding(ids, table) + table.sum(0),
    ],
)
def test_a_table_that_is_read_otherwise_stays(function: Any) -> None:
    ids, table = torch.randint(0, 300, (2, 3)), torch.randn(300, 16)
    module = generics(function, ids, weights=(table,))
    before = str(module)
    assert str(apply(module, QuantizeTables())) == before


@pytest.mark.parametrize("shape", [(255, 64), (300, 15)])
def test_a_small_table_stays(shape: tuple[int, int]) -> None:
    ids, table = torch.randint(0, 200, (2, 3)), torch.randn(shape)
    module = generics(lookup, ids, weights=(table,))
    before = str(module)
    assert str(apply(module, QuantizeTables())) == before
