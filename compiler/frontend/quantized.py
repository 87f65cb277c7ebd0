"""Quantization that stays one op in an exported program: `llmos::quantize` and `llmos::dequantize`.

The compiler lowers them to one marked linalg.generic each (compiler/analysis/quantization.py). Formulas: ONNX operator specification,
QuantizeLinear and DequantizeLinear.
"""

from __future__ import annotations

import torch

from llmos.compiler.analysis.quantization import RANGES
from llmos.runtime.errors import UnsupportedError


def storage_dtype(dtype: str) -> torch.dtype:
    """The torch type that holds a quantized type: its own, or that of one byte below 8 bits."""
    sign, bits = dtype.split("int")
    found: torch.dtype = getattr(torch, f"{sign}int{max(8, int(bits))}")
    return found


def broadcast(parameter: torch.Tensor, x: torch.Tensor, axis: int, block_size: int = 0) -> torch.Tensor:
    """A scale or zero point shaped to broadcast with `x`: one number, one per slice of `axis`, or one per block along it."""
    if is_per_tensor(parameter, block_size):
        return parameter.reshape(())
    axis = axis % x.ndim
    if block_size:
        return parameter.repeat_interleave(block_size, axis).narrow(axis, 0, x.shape[axis])
    if parameter.ndim != 1:
        raise UnsupportedError("a scale of rank 2 or more needs block_size.")
    return parameter.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


def is_per_tensor(parameter: torch.Tensor, block_size: int) -> bool:
    return parameter.ndim == 0 or (parameter.ndim == 1 and parameter.shape[0] == 1 and not block_size)


def _quantized(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, dtype: str, axis: int, block_size: int, is_multiplier: bool
) -> torch.Tensor:
    factor = broadcast(scale, x, axis, block_size)
    rounded = torch.round((x * factor if is_multiplier else x / factor).to(torch.float32))
    if zero_point is not None:
        rounded = rounded + broadcast(zero_point, x, axis, block_size).to(torch.float32)
    return rounded.clamp(*RANGES[dtype]).to(torch.int32).to(storage_dtype(dtype))


def _dequantized(
    x: torch.Tensor, scale: torch.Tensor | None, zero_point: torch.Tensor | None, dtype: str, axis: int, block_size: int, to: torch.dtype
) -> torch.Tensor:
    inner = to if scale is None else torch.float32
    value = x.to(inner)
    if zero_point is not None:
        value = value - broadcast(zero_point, x, axis, block_size).to(inner)
    return value if scale is None else (value * broadcast(scale, x, axis, block_size).to(inner)).to(to)


@torch.library.custom_op("llmos::quantize", mutates_args=())
def quantize(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, dtype: str, axis: int, block_size: int, is_multiplier: bool
) -> torch.Tensor:
    """round(x / scale) + zero_point in float32, halves to even, saturated to `dtype` ("int8"); with `is_multiplier` x * scale is rounded.

    x: any shape, floating point, of the type in which the quotient is computed. scale, zero_point: one number, one for each slice of
    `axis`, or with `block_size` one for so many elements along it and the rank of x. Raises UnsupportedError for other shapes of these.
    """
    return _quantized(x, scale, zero_point, dtype, axis, block_size, is_multiplier)


@torch.library.custom_op("llmos::dequantize", mutates_args=())
def dequantize(
    x: torch.Tensor, scale: torch.Tensor | None, zero_point: torch.Tensor | None, dtype: str, axis: int, block_size: int, to: torch.dtype
) -> torch.Tensor:
    """(x - zero_point) * scale in float32, converted to `to`; without a scale x - zero_point in `to`, an integer or float type.

    x: integers of `dtype`, held in any integer type that has its numbers. Parameters as of `quantize`.
    """
    return _dequantized(x, scale, zero_point, dtype, axis, block_size, to).clone()


quantize.register_fake(_quantized)
dequantize.register_fake(_dequantized)
