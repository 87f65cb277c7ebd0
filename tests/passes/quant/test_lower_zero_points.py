"""lower-zero-points: every integer product with a weight in the kernels' form, with the same numbers, overflow included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.compiler.frontend import quantized as quantized  # defines llmos::dequantize
from llmos.passes import Upstream
from llmos.passes.fold_weight_computation import FoldWeightComputation
from llmos.passes.quant.lower_zero_points import LowerZeroPoints
from tests.passes.ir_tests import apply, check, parse

from .quant_tests import Program, examples, kernel_forms

DTYPES = {"int8": torch.int8, "uint8": torch.uint8}


def integers(dtype: str, *shape: int, seed: int = 0) -> torch.Tensor:
    kind = DTYPES[dtype]
    made = torch.Generator().manual_seed(seed)
    return torch.randint(torch.iinfo(kind).min, torch.iinfo(kind).max + 1, shape, dtype=kind, generator=made)


def centered(x: torch.Tensor, zero: torch.Tensor | None, axis: int) -> torch.Tensor:
    """As the importer of MatMulInteger and QLinearMatMul has it."""
    return torch.ops.llmos.dequantize(x, None, zero, str(x.dtype).removeprefix("torch."), axis, 0, torch.int32)  # type: ignore[no-any-return]


def expect_same(program: Program, num_products: int = 1) -> str:
    want = program.run()
    apply(program.module, LowerZeroPoints(), Upstream("canonicalize"), Upstream("cse"))
    assert kernel_forms(program.module) == num_products
    for got, each in zip(program.run(), want, strict=True):
        np.testing.assert_array_equal(got, each)
    return str(program.module)


@settings(max_examples=examples(10, 25), deadline=None)
@given(
    left=st.sampled_from(list(DTYPES)),
    right=st.sampled_from(list(DTYPES)),
    left_zero=st.sampled_from(["none", "constant", "input", "weight", "input rows"]),
    right_zero=st.sampled_from(["none", "weight", "weight columns"]),
    batch=st.lists(st.integers(1, 3), max_size=2),
    rows=st.integers(1, 5),
    k=st.sampled_from([1, 2, 7, 64, 300]),
    n=st.sampled_from([2, 3, 32]),
    dynamic=st.booleans(),
    seed=st.integers(0, 99),
)
def test_numbers(
    left: str, right: str, left_zero: str, right_zero: str, batch: list[int], rows: int, k: int, n: int, dynamic: bool, seed: int
) -> None:
    x, w = integers(left, *batch, rows, k, seed=seed), integers(right, k, n, seed=seed + 1)
    zx = integers(left, *([rows] if left_zero == "input rows" else []), seed=seed + 2)
    zw = integers(right, *([n] if right_zero == "weight columns" else []), seed=seed + 3)
    constant = int(zx) if left_zero == "constant" else 0

    def function(w: torch.Tensor, zw: torch.Tensor, weight_zero: torch.Tensor, x: torch.Tensor, zx: torch.Tensor) -> torch.Tensor:
        zeros = {"none": None, "constant": torch.full((), constant, dtype=x.dtype), "weight": weight_zero}
        return centered(x, zeros.get(left_zero, zx), -2) @ centered(w, None if right_zero == "none" else zw, -1)

    is_dynamic = dynamic and left_zero != "input rows" and x.shape[0] > 1 and zx.ndim == 0
    inputs = (x, zx) if not is_dynamic else (x, zx.reshape(1).expand(x.shape[0]).contiguous())

    def given_rows(*tensors: torch.Tensor) -> torch.Tensor:
        *rest, zero = tensors
        return function(*rest, zero[0])  # type: ignore[arg-type]

    expect_same(Program.of(given_rows if is_dynamic else function, (w, zw, zx.reshape(-1)[0].clone()), *inputs, dynamic=is_dynamic))


def test_the_ir_of_two_signed_factors() -> None:
    x, w = integers("int8", 17, 64), integers("int8", 64, 32)
    program = Program.of(lambda w, x: torch._int_mm(x, w), (w,), x)
    expect_same(program)
    check(
        apply(program.module, FoldWeightComputation()),
        """
        CHECK: arith.xori
        CHECK: arith.extui
        CHECK: arith.extsi
        CHECK: arith.subi
        CHECK-NOT: arith.muli
        CHECK: return
        CHECK: func.func private @fold(
        CHECK: arith.extsi
        CHECK: arith.muli
        """,
    )


def test_zeros_that_fit_the_form_need_no_sum_of_rows() -> None:
    """128 of an unsigned weight is 0 of a signed one."""
    x, w = integers("uint8", 5, 64), integers("uint8", 64, 32)
    program = Program.of(lambda w, x: centered(x, None, 0) @ centered(w, torch.full((), 128, dtype=torch.uint8), 1), (w,), x)
    assert "arith.subi" not in expect_same(program)


def test_products_of_one_activation_share_its_sums() -> None:
    x, w = integers("int8", 5, 64), [integers("uint8", 64, 32, seed=seed) for seed in (1, 2)]
    program = Program.of(lambda a, b, x: (centered(x, None, 0) @ centered(a, None, 1), centered(x, None, 0) @ centered(b, None, 1)), w, x)
    text = expect_same(program, num_products=2)
    assert text.count("ins(%arg0 : tensor<?x64xi8>)") == 1  # one flip of signs


def test_what_a_sum_starts_from_is_added() -> None:
    x, w, start = integers("int8", 5, 64), integers("int8", 64, 32), torch.randint(-(1 << 31), 1 << 31, (5, 32), dtype=torch.int32)
    program = Program.of(lambda w, x, start: start + centered(x, None, 0) @ centered(w, None, 1), (w,), x, start, dynamic=False)
    expect_same(program)


QUANTIZED_MATMUL = """
module {
  func.func @main(%x: tensor<4x64xi8> {llmos.kind = "input", llmos.name = "x", llmos.dtype = "int8", llmos.shape = [4, 64]},
                  %w: tensor<64x32xi8> {llmos.kind = "weight", llmos.name = "weight0", llmos.dtype = "int8"})
      -> (tensor<4x32xi32> {llmos.name = "y", llmos.dtype = "int32"}) {
    %zx = arith.constant 3 : i32
    %zw = arith.constant -7 : i32
    %start = arith.constant 5 : i32
    %empty = tensor.empty() : tensor<4x32xi32>
    %init = linalg.fill ins(%start : i32) outs(%empty : tensor<4x32xi32>) -> tensor<4x32xi32>
    %y = linalg.quantized_matmul ins(%x, %w, %zx, %zw : tensor<4x64xi8>, tensor<64x32xi8>, i32, i32)
        outs(%init : tensor<4x32xi32>) -> tensor<4x32xi32>
    return %y : tensor<4x32xi32>
  }
}
"""


def test_zero_points_inside_the_product() -> None:
    module = apply(parse(QUANTIZED_MATMUL), Upstream("linalg-generalize-named-ops", anchor="func.func"))
    x, w = integers("int8", 4, 64), integers("int8", 64, 32, seed=1)
    program = Program(module, {"weight0": w.numpy()}, (x,))
    expect_same(program)
    want = 5 + (x.to(torch.int32) - 3) @ (w.to(torch.int32) + 7)
    np.testing.assert_array_equal(program.run()[0], want.numpy())


def wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.int32)


@pytest.mark.parametrize(
    ("function", "weights", "inputs"),
    [
        (lambda x, y: centered(x, None, 0) @ centered(y, None, 0), [], [("int8", 4, 64), ("int8", 64, 32)]),  # of two activations
        (
            lambda w, x: centered(x, None, 0) @ centered(w, None, 0),
            [("int8", 3, 64, 8)],
            [("int8", 3, 4, 64)],
        ),  # a matrix for each of a batch
        (lambda w, x: wide(wide(x) * 3) @ wide(w), [("int8", 64, 32)], [("int8", 4, 64)]),  # not of 8 bits
        (lambda w, z, x: (wide(x) - wide(z)) @ centered(w, None, 0), [("int8", 64, 32), ("int8", 64)], [("int8", 4, 64)]),  # along k
    ],
)
def test_what_stays(function: Any, weights: list[tuple[Any, ...]], inputs: list[tuple[Any, ...]]) -> None:
    made = [[integers(dtype, *shape) for dtype, *shape in each] for each in (weights, inputs)]
    program = Program.of(function, made[0], *made[1], dynamic=False)
    before = str(program.module)
    assert str(apply(program.module, LowerZeroPoints())) == before


def test_once_more_changes_nothing() -> None:
    program = Program.of(lambda w, x: torch._int_mm(x, w), (integers("int8", 64, 32),), integers("int8", 17, 64))
    before = str(apply(program.module, LowerZeroPoints(), Upstream("canonicalize"), Upstream("cse")))
    assert str(apply(program.module, LowerZeroPoints(), Upstream("canonicalize"), Upstream("cse"))) == before
