"""hoist-quantize: numbers are moved instead of floats, and keep their bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from llmos.compiler.frontend import quantized as quantized  # defines llmos::quantize
from llmos.compiler.ir.bindings import ir
from llmos.passes.quant.hoist_quantize import HoistQuantize
from tests.passes.ir_tests import apply, check, generics

from .quant_tests import run


def quantize(x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
    """To uint8, by one number, or by one for each index of axis 1."""
    step, zero = torch.full((), 0.05) if scale is None else scale, torch.full((), 3, dtype=torch.uint8)
    return torch.ops.llmos.quantize(x, step, zero, "uint8", 1, 0, False)  # type: ignore[no-any-return]


A, B = (torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))


def hoisted(function: Any, *inputs: torch.Tensor, weights: tuple[torch.Tensor, ...] = ()) -> ir.Module:
    module = generics(function, *inputs, weights=weights, dynamic=False)
    want = run(module, inputs, weights)
    apply(module, HoistQuantize())
    for got, each in zip(run(module, inputs, weights), want, strict=True):
        np.testing.assert_array_equal(got, each)
    return module


def shuffled(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(2, 2, 3, 4).transpose(1, 2).reshape(2, 6, 4)


def test_a_shuffle_of_channels_moves_bytes() -> None:
    check(
        hoisted(lambda a, b: quantize(shuffled(torch.cat([a.exp(), b], 1))), A, B),
        """
        CHECK: math.exp
        CHECK: math.roundeven
        CHECK: -> tensor<2x3x4xi8>
        CHECK: math.roundeven
        CHECK: -> tensor<2x3x4xi8>
        CHECK: tensor.concat dim(1) {{.*}} -> tensor<2x6x4xi8>
        CHECK: tensor.expand_shape {{.*}} tensor<2x6x4xi8>
        CHECK: tensor.collapse_shape {{.*}} into tensor<2x6x4xi8>
        CHECK-NOT: math.roundeven
        CHECK: return
        """,
    )


def test_what_is_read_as_floats_too_stays() -> None:
    def function(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        joined = torch.cat([a, b], 1)
        return quantize(joined), joined.exp()

    check(hoisted(function, A, B), "CHECK: tensor.concat {{.*}} -> tensor<2x6x4xf32>")


def test_a_slice_stays_before_the_quantization() -> None:
    check(hoisted(lambda a: quantize(a[:, 1:]), A), "CHECK: tensor.extract_slice {{.*}} to tensor<2x2x4xf32>")


def test_a_scale_for_each_channel_stays() -> None:
    module = hoisted(lambda s, a: quantize(a.transpose(1, 2), s), A, weights=(torch.tensor([0.1, 0.2, 0.3, 0.4]),))
    check(module, "CHECK: math.roundeven\nCHECK: -> tensor<2x4x3xi8>\nCHECK-NOT: linalg.generic\nCHECK: return")
