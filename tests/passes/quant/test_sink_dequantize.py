"""sink-dequantize: numbers are moved instead of floats, each with its own scale and zero point, and keep their bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from llmos.compiler.frontend import quantized as quantized  # defines llmos::dequantize
from llmos.compiler.ir.bindings import ir
from llmos.passes import Upstream
from llmos.passes.quant.sink_dequantize import SinkDequantize
from tests.passes.ir_tests import apply, check

from .quant_tests import Program
from .test_lower_zero_points import integers

A, B = integers("uint8", 2, 3, 6, 8), integers("uint8", 2, 5, 6, 8, seed=1)


def dequantize(x: torch.Tensor, scale: Any, zero: Any) -> torch.Tensor:
    scales = scale if isinstance(scale, torch.Tensor) else torch.full((), scale)
    zeros = zero if isinstance(zero, torch.Tensor) else torch.full((), zero, dtype=x.dtype)
    name = str(x.dtype).removeprefix("torch.")
    return torch.ops.llmos.dequantize(x, scales, zeros, name, 1, 0, torch.float32)  # type: ignore[no-any-return]


def sunk(function: Any, *inputs: torch.Tensor, weights: tuple[torch.Tensor, ...] = ()) -> ir.Module:
    program = Program.of(function, weights, *inputs, dynamic=False)
    want = program.run()
    apply(program.module, SinkDequantize(), Upstream("canonicalize"), Upstream("cse"))
    for got, each in zip(program.run(), want, strict=True):
        np.testing.assert_array_equal(got, each)
    return program.module


def expect_moved_bytes(module: ir.Module) -> None:
    """All moves of activations are of bytes, and each result is dequantized by the last op that makes it."""
    main = module.body.operations[0].operation.regions[0].blocks[0]
    large = [op.operation for op in main.operations if any(getattr(r.type, "rank", 0) >= 3 for r in op.operation.results)]
    moves = [op for op in large if op.name not in ("linalg.generic", "tensor.empty")]
    assert moves
    assert all(str(op.results[0].type.element_type) == "i8" for op in moves)


def test_channels_keep_their_own_parameters() -> None:
    def function(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([dequantize(a, 0.1, 3), dequantize(b, 0.7, 200)], 1)
        return joined.reshape(2, 4, 2, 6, 8).transpose(1, 2).reshape(2, 8, 6, 8)[:, 1:6:2]

    module = sunk(function, A, B)
    expect_moved_bytes(module)
    check(module, 'CHECK: llmos.dequantize = {dtype = "uint8", operands = ["input", "zero_point", "scale"]')


def test_the_same_parameters_stay_numbers() -> None:
    module = sunk(lambda a, b: torch.cat([dequantize(a, 0.1, 3), dequantize(b, 0.1, 3)], 1), A, B)
    expect_moved_bytes(module)
    check(module, 'CHECK: llmos.dequantize = {dtype = "uint8", operands = ["input"]')


def test_scales_of_channels_that_are_weights() -> None:
    def function(s: torch.Tensor, z: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.cat([dequantize(b, 0.5, 7), dequantize(a, s, z)], 1).transpose(1, 3)[..., 2:]

    expect_moved_bytes(sunk(function, A, B, weights=(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([9, 8, 7], dtype=torch.uint8))))


def test_numbers_of_two_signs_stay_apart() -> None:
    def function(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.cat([dequantize(a, 0.1, 3), dequantize(b, 0.1, -3)], 1)

    check(sunk(function, A, integers("int8", 2, 5, 6, 8)), "CHECK: tensor.concat {{.*}} -> tensor<2x8x6x8xf32>")


def test_scales_that_only_a_call_knows_stay_apart() -> None:
    def function(a: torch.Tensor, b: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return torch.cat([dequantize(a, s, 3), dequantize(b, 0.1, 3)], 1)

    check(sunk(function, A, B, torch.full((), 0.3)), "CHECK: tensor.concat {{.*}} -> tensor<2x8x6x8xf32>")


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (2, 2, 0), ((3, 2), 1, (1, 0))])
def test_maxima_of_windows(dtype: str, kernel: Any, stride: int, padding: Any) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.max_pool2d(dequantize(x, 0.1, 3), kernel, stride, padding)

    check(sunk(function, integers(dtype, 2, 3, 6, 8)), f"CHECK: arith.max{'ui' if dtype == 'uint8' else 'si'}\nCHECK: mulf")


def test_maxima_below_a_scale_that_isnt_known_stay() -> None:
    def function(x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.max_pool2d(dequantize(x, s, 3), 2)

    check(sunk(function, A, torch.full((), -0.1)), "CHECK: arith.maximumf")


def test_a_window_of_padding_alone_stays() -> None:
    """With a dilation, a window of two taps lies on padding at both ends."""

    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.max_pool2d(dequantize(x, 0.1, 3), 2, 1, 1, dilation=3)

    check(sunk(function, integers("uint8", 1, 2, 4, 4)), "CHECK: arith.maximumf")
