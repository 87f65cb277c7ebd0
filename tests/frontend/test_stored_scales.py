"""Scales of quantization that a torch model stores: what says nothing is refused in a line that names the weight."""

from __future__ import annotations

import math

import pytest
import torch

from llmos.compiler.frontend.quantized import dequantize, quantize
from llmos.compiler.frontend.stored_scales import check_stored_scales
from llmos.compiler.frontend.torch import import_torch
from llmos.runtime.errors import UserError


class Rounded(torch.nn.Module):
    """Numbers of 8 bits by one scale a column, floats again by another."""

    def __init__(self, down: float, up: float) -> None:
        super().__init__()
        self.register_buffer("down", torch.tensor([1.0, down]))
        self.register_buffer("up", torch.tensor([up, 1.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return dequantize(quantize(x, self.down, None, "int8", 1, 0, False), self.up, None, "int8", 1, 0, torch.float32)


class PerTensor(torch.nn.Module):
    """As torch's PT2E export has it: the scale a number of the program."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.quantized_decomposed.quantize_per_tensor(x, self.scale, 0, -128, 127, torch.int8)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Rounded(0.0, 1.0), "quantizes by the scale 'down', which is 0"),
        (Rounded(math.nan, 1.0), "quantizes by the scale 'down', which is NaN or infinite"),
        (Rounded(1.0, math.inf), "dequantizes by the scale 'up', which is NaN or infinite"),
        (PerTensor(0.0), "quantizes by a scale of 0, which is 0"),
        (PerTensor(math.inf), "quantizes by a scale of inf, which is NaN or infinite"),
    ],
)
def test_what_says_nothing_is_refused(model: torch.nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=f"the model {message}; quantize the model again$"):
        check_stored_scales(import_torch(model, (torch.randn(3, 2),), None, name="m"))


def test_a_scale_of_zeros_is_of_zeros() -> None:
    check_stored_scales(import_torch(Rounded(0.5, 0.0), (torch.randn(3, 2),), None, name="m"))
