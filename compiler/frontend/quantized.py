"""Quantization that stays one op in an exported program: `llmos::quantize` and `llmos::dequantize`.

The compiler lowers them to one marked linalg.generic each (compiler/analysis/quantization.py). Formulas: ONNX operator specification,
QuantizeLinear and DequantizeLinear.
"""

from __future__ import annotations

import torch

from llmos.compiler.analysis.quantization import FLOAT8, RANGES
from llmos.runtime.errors import UnsupportedError


def storage_dtype(dtype: str) -> torch.dtype:
    """Return the torch dtype that stores a quantized type: its own, or a one-byte type below 8 bits."""
    sign, bits = dtype.split("int")
    found: torch.dtype = getattr(torch, f"{sign}int{max(8, int(bits))}")
    return found


def broadcast(parameter: torch.Tensor, x: torch.Tensor, axis: int, block_size: int = 0) -> torch.Tensor:
    """Reshape a scale or zero point to broadcast with `x`: one number, one per slice of `axis`, or one per block along it.

    Raises UnsupportedError for a parameter of rank 2 or more without a block size.
    """
    if is_per_tensor(parameter, block_size):
        return parameter.reshape(())
    axis = axis % x.ndim
    if block_size:
        return parameter.repeat_interleave(block_size, axis).narrow(axis, 0, x.shape[axis])
    if parameter.ndim != 1:
        raise UnsupportedError("a scale of rank 2 or more needs block_size.")
    return parameter.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


def is_per_tensor(parameter: torch.Tensor, block_size: int) -> bool:
    """Whether a scale or zero point is one number for the whole tensor."""
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
    value = (x.view(torch.float8_e4m3fn) if dtype == FLOAT8 else x).to(inner)
    if zero_point is not None:
        value = value - broadcast(zero_point, x, axis, block_size).to(inner)
    return value if scale is None else (value * broadcast(scale, x, axis, block_size).to(inner)).to(to)


@torch.library.custom_op("llmos::quantize", mutates_args=())
def quantize(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, dtype: str, axis: int, block_size: int, is_multiplier: bool
) -> torch.Tensor:
    """Quantize: round(x / scale) + zero_point, halves to even, saturated to `dtype` ("int8"); `is_multiplier` rounds x * scale instead.

    x: any shape, floating point; the quotient is computed in its dtype. scale, zero_point: one number, one for each slice of `axis`, or,
    with `block_size` and the rank of x, one for each block of elements along it. Raises UnsupportedError for other shapes.
    """
    return _quantized(x, scale, zero_point, dtype, axis, block_size, is_multiplier)


@torch.library.custom_op("llmos::dequantize", mutates_args=())
def dequantize(
    x: torch.Tensor, scale: torch.Tensor | None, zero_point: torch.Tensor | None, dtype: str, axis: int, block_size: int, to: torch.dtype
) -> torch.Tensor:
    """Dequantize: (x - zero_point) * scale in float32, cast to `to`; without a scale x - zero_point in `to`, an integer or float type.

    x: numbers of `dtype` in any integer type that can represent them; for "float8_e4m3fn" codes in uint8. Parameters as in `quantize`.
    """
    return _dequantized(x, scale, zero_point, dtype, axis, block_size, to).clone()


quantize.register_fake(_quantized)
dequantize.register_fake(_dequantized)
