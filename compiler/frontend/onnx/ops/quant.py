"""Quantization: to and from integers with a scale and a zero point, and the integer forms of matrix product and convolution."""

from __future__ import annotations

import math
from typing import Any

import torch

from llmos.compiler.frontend.onnx.coded import FORMATS, Coded, IntegerFormat, decode, encode
from llmos.compiler.frontend.onnx.dtypes import INTEGER_RANGE, torch_dtype
from llmos.compiler.frontend.onnx.ops.convolution import convolve
from llmos.compiler.frontend.onnx.ops.windows import window
from llmos.compiler.frontend.onnx.registry import AnyTensor, op
from llmos.runtime.errors import UnsupportedError

Dims = tuple[int, ...]


def along(factor: torch.Tensor, x: torch.Tensor, axis: int, block_size: int = 0) -> torch.Tensor:
    """A scale or zero point shaped to broadcast with `x`: one number, one per slice of `axis`, or one per block along it."""
    if factor.ndim == 0 or (factor.ndim == 1 and factor.shape[0] == 1 and not block_size):
        return factor.reshape(())
    axis = axis % x.ndim
    if block_size:
        return factor.repeat_interleave(block_size, axis).narrow(axis, 0, x.shape[axis])
    if factor.ndim != 1:
        raise UnsupportedError("a scale of rank 2 or more needs block_size.")
    return factor.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


def quantize(
    x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, dtype: torch.dtype | int, saturate: bool = True
) -> torch.Tensor | Coded:
    """round(x / scale) + zero, halves to even, saturated. `dtype`: of an integer, or the ONNX element type of a coded one."""
    scaled = x / scale
    form = FORMATS.get(dtype) if isinstance(dtype, int) else None
    if isinstance(dtype, int) and not isinstance(form, IntegerFormat):
        return encode(scaled if zero is None else scaled + zero.to(scaled.dtype), dtype, saturate)
    if isinstance(form, IntegerFormat):
        low, high = (-(1 << (form.num_bits - 1)), (form.mask >> 1)) if form.is_signed else (0, form.mask)
    elif dtype in INTEGER_RANGE:
        low, high = INTEGER_RANGE[dtype]  # type: ignore[index]
    else:
        raise UnsupportedError(f"quantization to {dtype} isn't supported.")
    rounded = torch.round(scaled.to(torch.float32))
    if zero is not None:
        rounded = rounded + zero.to(torch.float32)
    whole = rounded.clamp(low, high).to(torch.int32)
    return encode(whole, dtype) if isinstance(dtype, int) else whole.to(dtype)


def dequantize(x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
    """(x - zero) · scale in the scale's type."""
    value = x.to(torch.float32)
    if zero is not None:
        value = value - zero.to(torch.float32)
    return (value * scale.to(torch.float32)).to(scale.dtype)


@op("QuantizeLinear", since=10)
def quantize_linear(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero: AnyTensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> torch.Tensor | Coded:
    dtype = _quantized_type(zero, output_dtype)
    wide = (
        x.to(torch_dtype(precision))
        if precision
        else x.to(torch.promote_types(x.dtype, scale.dtype))
        if x.is_floating_point()
        else x.to(scale.dtype)
    )
    shift = None if zero is None else along(_numbers(zero), x, axis, block_size)
    return quantize(wide, along(scale, x, axis, block_size), shift, dtype, bool(saturate))


def _quantized_type(zero: torch.Tensor | Coded | None, output_dtype: int) -> torch.dtype | int:
    if zero is not None:
        return zero.elem_type if isinstance(zero, Coded) else zero.dtype
    if output_dtype in FORMATS:
        return output_dtype
    return torch_dtype(output_dtype) if output_dtype else torch.uint8


def _numbers(x: torch.Tensor | Coded) -> torch.Tensor:
    return decode(x) if isinstance(x, Coded) else x


@op("DequantizeLinear", since=10)
def dequantize_linear(
    x: AnyTensor, scale: torch.Tensor, zero: AnyTensor | None = None, *, axis: int = 1, block_size: int = 0, output_dtype: int = 0
) -> torch.Tensor:
    values = _numbers(x)
    shift = None if zero is None else along(_numbers(zero), values, axis, block_size)
    result = dequantize(values, along(scale, values, axis, block_size), shift)
    return result.to(torch_dtype(output_dtype)) if output_dtype else result


@op("DynamicQuantizeLinear")
def dynamic_quantize_linear(x: torch.Tensor) -> tuple[torch.Tensor | Coded, torch.Tensor, torch.Tensor]:
    """uint8 over the range of the data, with zero inside it; zeros alone have a scale of 1, as in onnxruntime."""
    low, high = torch.clamp(torch.amin(x), max=0), torch.clamp(torch.amax(x), min=0)
    span = (high - low) / 255
    scale = torch.where(span == 0, torch.ones_like(span), span)
    zero = torch.clamp(torch.round(-low / scale), 0, 255).to(torch.uint8)
    return quantize(x, scale, zero, torch.uint8), scale, zero


@op("MatMulInteger")
def matmul_integer(
    a: torch.Tensor, b: torch.Tensor, a_zero: torch.Tensor | None = None, b_zero: torch.Tensor | None = None
) -> torch.Tensor:
    return torch.matmul(_centered(a, a_zero, -2), _centered(b, b_zero, -1))


def _centered(x: torch.Tensor, zero: torch.Tensor | None, axis: int) -> torch.Tensor:
    wide = x.to(torch.int32)
    if zero is None:
        return wide
    if zero.ndim > 1:
        return wide - zero.to(torch.int32)
    return wide - along(zero.to(torch.int32), x, axis)


@op("QLinearMatMul", since=10)
def qlinear_matmul(
    a: torch.Tensor,
    a_scale: torch.Tensor,
    a_zero: torch.Tensor,
    b: torch.Tensor,
    b_scale: torch.Tensor,
    b_zero: torch.Tensor,
    y_scale: torch.Tensor,
    y_zero: torch.Tensor,
) -> torch.Tensor:
    if any(t.ndim > 1 or (t.ndim == 1 and t.shape[0] != 1) for t in (a_scale, y_scale, y_zero)):
        raise UnsupportedError("QLinearMatMul with a scale per row isn't supported.")
    product = torch.matmul(_centered(a, a_zero, -2), _centered(b, b_zero, -1)).to(torch.float32)
    factor = a_scale.to(torch.float32).reshape(()) * along(b_scale.to(torch.float32), product, -1) / y_scale.to(torch.float32).reshape(())
    return _requantize(product * factor, y_zero)


def _requantize(value: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    low, high = INTEGER_RANGE[zero.dtype]
    return (torch.round(value) + zero.reshape(()).to(torch.float32)).clamp(low, high).to(torch.int32).to(zero.dtype)


@op("QLinearConv")
def qlinear_conv(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    x_zero: torch.Tensor,
    w: torch.Tensor,
    w_scale: torch.Tensor,
    w_zero: torch.Tensor,
    y_scale: torch.Tensor,
    y_zero: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Dims | None = None,
    group: int = 1,
    kernel_shape: Dims | None = None,
    pads: Dims | None = None,
    strides: Dims | None = None,
) -> torch.Tensor:
    """The sum in float32: exact up to 2^24, which 500 products of 8-bit numbers stay under; beyond, within rounding."""
    shape = window(tuple(x.shape[2:]), tuple(w.shape[2:]), strides, dilations, pads, auto_pad)
    centered = x.to(torch.float32) - x_zero.reshape(()).to(torch.float32)
    kernel = w.to(torch.float32) - along(w_zero.to(torch.float32), w, 0)
    total = convolve(centered, kernel, None if bias is None else bias.to(torch.float32), shape, group)
    return _requantize(total * (x_scale.reshape(()) * along(w_scale, total, 1) / y_scale.reshape(())), y_zero)


@op("ConvInteger")
def conv_integer(
    x: torch.Tensor,
    w: torch.Tensor,
    x_zero: torch.Tensor | None = None,
    w_zero: torch.Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Dims | None = None,
    group: int = 1,
    kernel_shape: Dims | None = None,
    pads: Dims | None = None,
    strides: Dims | None = None,
) -> torch.Tensor:
    """The sum in float32 where it is exact there, else in float64."""
    dtype = torch.float32 if math.prod(w.shape[1:]) * 255 * 255 < 2**24 else torch.float64
    shape = window(tuple(x.shape[2:]), tuple(w.shape[2:]), strides, dilations, pads, auto_pad)
    centered = x.to(dtype) if x_zero is None else x.to(dtype) - x_zero.reshape(()).to(dtype)
    kernel = w.to(dtype) if w_zero is None else w.to(dtype) - along(w_zero.to(dtype), w, 0)
    return convolve(centered, kernel, None, shape, group).to(torch.int32)


def _binary(a: Any, b: Any, c: Any, function: Any) -> torch.Tensor | Coded:
    return quantize(function(dequantize(*a), dequantize(*b)), c[0], c[1], c[1].dtype)


@op("QLinearAdd", domain="com.microsoft")
def qlinear_add(
    a: torch.Tensor,
    a_scale: torch.Tensor,
    a_zero: torch.Tensor,
    b: torch.Tensor,
    b_scale: torch.Tensor,
    b_zero: torch.Tensor,
    c_scale: torch.Tensor,
    c_zero: torch.Tensor,
) -> torch.Tensor | Coded:
    return _binary((a, a_scale, a_zero), (b, b_scale, b_zero), (c_scale, c_zero), torch.add)
