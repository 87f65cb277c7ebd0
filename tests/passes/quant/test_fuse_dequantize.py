"""fuse-dequantize: products of dequantized integers become integer ones where the real numbers are the same, and stay elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.compiler.frontend import quantized as quantized  # defines llmos::dequantize
from llmos.compiler.frontend.ops import quantized_decomposed as quantized_decomposed  # imports torch's ops of that name
from llmos.passes import Upstream
from llmos.passes.quant.fuse_dequantize import FuseDequantize
from llmos.passes.quant.lower_zero_points import LowerZeroPoints
from tests.passes.ir_tests import apply, check

from .quant_tests import Program, examples, kernel_forms
from .test_lower_zero_points import DTYPES, integers

DECOMPOSED = torch.ops.quantized_decomposed


def dequantized(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, axis: int, block: int = 0) -> torch.Tensor:
    """As the importer of DequantizeLinear has it."""
    name = str(x.dtype).removeprefix("torch.")
    return torch.ops.llmos.dequantize(x, scale, zero, name, axis, block, torch.float32)  # type: ignore[no-any-return]


def expect_close(program: Program, num_products: int = 1) -> None:
    """The fused sums are within the rounding of float32 sums of products."""
    want = program.run()
    apply(program.module, FuseDequantize(), LowerZeroPoints(), Upstream("canonicalize"), Upstream("cse"))
    assert kernel_forms(program.module) == num_products
    for got, each in zip(program.run(), want, strict=True):
        np.testing.assert_allclose(got, each, rtol=0, atol=1e-5 * np.abs(each).max(initial=1e-6))


@settings(max_examples=examples(10, 25), deadline=None)
@given(
    left=st.sampled_from(list(DTYPES)),
    right=st.sampled_from(list(DTYPES)),
    zeros=st.booleans(),
    per_row=st.booleans(),
    per_column=st.booleans(),
    batch=st.lists(st.integers(1, 3), max_size=1),
    rows=st.integers(1, 5),
    k=st.sampled_from([1, 7, 64, 300]),
    n=st.sampled_from([2, 32]),
    transposed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_numbers(
    left: str,
    right: str,
    zeros: bool,
    per_row: bool,
    per_column: bool,
    batch: list[int],
    rows: int,
    k: int,
    n: int,
    transposed: bool,
    seed: int,
) -> None:
    x, w = integers(left, *batch, rows, k, seed=seed), integers(right, *((n, k) if transposed else (k, n)), seed=seed + 1)
    made = torch.Generator().manual_seed(seed)
    sx = torch.rand([rows] if per_row else [], generator=made) + 0.01
    sw = torch.rand([n] if per_column else [], generator=made) + 0.01
    zx, zw = (integers(dtype, *scale.shape, seed=seed + 2) if zeros else None for dtype, scale in ((left, sx), (right, sw)))
    weights = [each for each in (w, sw, zw) if each is not None]
    inputs = [each for each in (x, sx, zx) if each is not None]

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        w, sw, *zw = tensors[: len(weights)]
        x, sx, *zx = tensors[len(weights) :]
        a = dequantized(x, sx, zx[0] if zx else None, -2)
        b = dequantized(w, sw, zw[0] if zw else None, 0 if transposed else 1)
        return torch.nn.functional.linear(a, b) if transposed else a @ b

    expect_close(Program.of(function, weights, *inputs, dynamic=False))


def test_the_ir() -> None:
    def function(w: torch.Tensor, sw: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        a = dequantized(x, torch.full((), 0.5), torch.full((), 3, dtype=torch.uint8), 1)
        return a @ dequantized(w, sw, None, 1)

    program = Program.of(function, [integers("int8", 64, 32), torch.rand(32)], integers("uint8", 4, 64))
    check(
        apply(program.module, FuseDequantize()),
        """
        CHECK: llmos.dequantize = {dtype = "uint8", operands = ["input"], range = array<i64: 0, 255>, zero_point = 3 : i64}
        CHECK: llmos.dequantize = {dtype = "int8", operands = ["input"], range = array<i64: -128, 127>}
        CHECK: ins(%{{.*}}, %{{.*}} : tensor<?x64xi32>, tensor<64x32xi32>)
        CHECK: arith.sitofp
        CHECK: arith.mulf
        CHECK: arith.mulf
        CHECK-NOT: uitofp
        """,
    )


def test_a_linear_layer_of_torchao() -> None:
    w, scales, zeros, bias = integers("int8", 32, 64), torch.rand(32), torch.zeros(32, dtype=torch.int64), torch.randn(32)

    def function(w: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, bias: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        numbers = DECOMPOSED.quantize_per_tensor.default(x, 0.03, -5, -128, 127, torch.int8)
        a = DECOMPOSED.dequantize_per_tensor.default(numbers, 0.03, -5, -128, 127, torch.int8)
        b = DECOMPOSED.dequantize_per_channel.default(w, scales, zeros, 0, -127, 127, torch.int8)
        return torch.nn.functional.linear(a, b, bias)

    expect_close(Program.of(function, (w, scales, zeros, bias), torch.randn(3, 5, 64)))


def test_what_the_weight_is_dequantized_for_besides_stays() -> None:
    def function(w: torch.Tensor, sw: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        b = dequantized(w, sw, None, 1)
        return dequantized(x, torch.full((), 0.5), None, 1) @ b, b + 1

    expect_close(Program.of(function, [integers("int8", 64, 32), torch.rand(32)], integers("uint8", 4, 64)))


def half(x: torch.Tensor) -> torch.Tensor:
    return dequantized(x, torch.full((), 0.5), None, 1)


X, W = ("uint8", 4, 64), ("int8", 64, 32)


@pytest.mark.parametrize(
    ("function", "weights", "inputs"),
    [
        (lambda x, y: half(x) @ half(y), [], [X, W]),  # of two activations
        (lambda w, x: x.to(torch.float32) * 0.3 @ half(w), [W], [X]),  # of a float
        (lambda w, s, x: half(x) @ dequantized(w, s, None, 0, 32), [W, ("float32", 2, 32)], [X]),  # a scale for a group of the sums
        (lambda w, s, x: half(x) @ dequantized(w, s, None, 0), [W, ("float32", 64)], [X]),  # a scale that varies along the sums
        (lambda w, x: half(x) @ half(w), [("int8", 40_000, 32)], [("uint8", 2, 40_000)]),  # sums that int32 may not hold
    ],
)
def test_what_stays(function: Any, weights: list[tuple[Any, ...]], inputs: list[tuple[Any, ...]]) -> None:
    made = [[integers(dtype, *shape) if dtype in DTYPES else torch.rand(*shape) for dtype, *shape in each] for each in (weights, inputs)]
    program = Program.of(function, made[0], *made[1], dynamic=False)
    before = str(program.module)
    assert str(apply(program.module, FuseDequantize())) == before
