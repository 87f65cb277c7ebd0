"""Quantize and dequantize ops, and the integer forms of matrix product and convolution."""

from __future__ import annotations

import math

import torch

from llmos.compiler.analysis.quantization import RANGES
from llmos.compiler.frontend.onnx.dtypes import torch_dtype
from llmos.compiler.frontend.onnx.low_precision import FORMATS, IntegerFormat, LowPrecisionTensor, decode, encode
from llmos.compiler.frontend.onnx.ops.convolution import convolve
from llmos.compiler.frontend.onnx.ops.windows import window
from llmos.compiler.frontend.onnx.registry import AnyTensor, op
from llmos.compiler.frontend.quantized import broadcast
from llmos.runtime.errors import UnsupportedError

Dims = tuple[int, ...]


def quantize(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero: AnyTensor | None,
    dtype: torch.dtype | int,
    *,
    axis: int = 1,
    block_size: int = 0,
    is_multiplier: bool = False,
    saturate: bool = True,
) -> torch.Tensor | LowPrecisionTensor:
    """Emit `llmos::quantize` to a torch dtype or an ONNX integer of 2 or 4 bits; low-precision floats are encoded instead.

    Raises UnsupportedError for another type.
    """
    form = FORMATS.get(dtype) if isinstance(dtype, int) else None
    shift = None if zero is None else _numbers(zero)
    if isinstance(dtype, int) and not isinstance(form, IntegerFormat):
        scaled = x / broadcast(scale, x, axis, block_size)
        return encode(scaled if shift is None else scaled + broadcast(shift, x, axis, block_size).to(scaled.dtype), dtype, saturate)
    name = form.name.lower() if form is not None else str(dtype).removeprefix("torch.")
    if name not in RANGES:
        raise UnsupportedError(f"quantization to {dtype} isn't supported.")
    whole: torch.Tensor = torch.ops.llmos.quantize(x, scale, shift, name, axis, block_size, is_multiplier)
    return encode(whole, dtype) if isinstance(dtype, int) else whole


def dequantize(
    x: AnyTensor, scale: torch.Tensor | None, zero: AnyTensor | None, axis: int = 1, block_size: int = 0, to: torch.dtype | None = None
) -> torch.Tensor:
    """Emit `llmos::dequantize` of integers, low-precision ones too, to `to` or the scale's dtype.

    Low-precision floats are only multiplied.
    """
    values, shift = _numbers(x), None if zero is None else _numbers(zero)
    to = to or (torch.float32 if scale is None else scale.dtype)
    if values.is_floating_point():
        assert scale is not None
        centered = values if shift is None else values - broadcast(shift, values, axis, block_size).to(torch.float32)
        return (centered * broadcast(scale, values, axis, block_size).to(torch.float32)).to(to)
    name = x.format.name.lower() if isinstance(x, LowPrecisionTensor) else str(values.dtype).removeprefix("torch.")
    return torch.ops.llmos.dequantize(values, scale, shift, name, axis, block_size, to)  # type: ignore[no-any-return]


@op("QuantizeLinear", domain="com.microsoft")
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
) -> torch.Tensor | LowPrecisionTensor:
    """Lower QuantizeLinear of ai.onnx and com.microsoft, per tensor, axis or block; the quotient in `precision` or the wider type.

    The result has the type of the zero point, `output_dtype`, or uint8.
    """
    dtype = _quantized_type(zero, output_dtype)
    wide = (
        x.to(torch_dtype(precision))
        if precision
        else x.to(torch.promote_types(x.dtype, scale.dtype))
        if x.is_floating_point()
        else x.to(scale.dtype)
    )
    return quantize(wide, scale, zero, dtype, axis=axis, block_size=block_size, saturate=bool(saturate))


def _quantized_type(zero: torch.Tensor | LowPrecisionTensor | None, output_dtype: int) -> torch.dtype | int:
    if zero is not None:
        return zero.elem_type if isinstance(zero, LowPrecisionTensor) else zero.dtype
    if output_dtype in FORMATS:
        return output_dtype
    return torch_dtype(output_dtype) if output_dtype else torch.uint8


def _numbers(x: torch.Tensor | LowPrecisionTensor) -> torch.Tensor:
    return decode(x) if isinstance(x, LowPrecisionTensor) else x


@op("DequantizeLinear", domain="com.microsoft")
@op("DequantizeLinear", since=10)
def dequantize_linear(
    x: AnyTensor, scale: torch.Tensor, zero: AnyTensor | None = None, *, axis: int = 1, block_size: int = 0, output_dtype: int = 0
) -> torch.Tensor:
    """Lower DequantizeLinear of ai.onnx and com.microsoft, per tensor, axis or block, to `output_dtype` or the scale's type."""
    result = dequantize(x, scale, zero, axis, block_size)
    return result.to(torch_dtype(output_dtype)) if output_dtype else result


@op("DynamicQuantizeLinear")
def dynamic_quantize_linear(x: torch.Tensor) -> tuple[torch.Tensor | LowPrecisionTensor, torch.Tensor, torch.Tensor]:
    """Lower DynamicQuantizeLinear: quantize to uint8 over the data's range extended to 0; return (y, scale, zero point).

    All zeros get a scale of 1, as in onnxruntime.
    """
    low, high = torch.clamp(torch.amin(x), max=0), torch.clamp(torch.amax(x), min=0)
    span = (high - low) / 255
    scale = torch.where(span == 0, torch.ones_like(span), span)
    zero = torch.clamp(torch.round(-low / scale), 0, 255).to(torch.uint8)
    return quantize(x, scale, zero, torch.uint8), scale, zero


@op("MatMulInteger")
def matmul_integer(
    a: torch.Tensor, b: torch.Tensor, a_zero: torch.Tensor | None = None, b_zero: torch.Tensor | None = None
) -> torch.Tensor:
    """Lower MatMulInteger, in int32; zero points for the tensor, or for rows of a and columns of b."""
    return torch.matmul(centered(a, a_zero, -2), centered(b, b_zero, -1))


def centered(x: torch.Tensor, zero: torch.Tensor | None, axis: int, to: torch.dtype = torch.int32) -> torch.Tensor:
    """Return x - zero in int32 or another type."""
    if zero is not None and zero.ndim > 1:
        return x.to(to) - zero.to(to)
    return dequantize(x, None, zero, axis, to=to)


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
) -> torch.Tensor | LowPrecisionTensor:
    """Lower QLinearMatMul: the product times a_scale * b_scale / y_scale in float32, requantized.

    It is accumulated in float32, as QLinearConv's, of which fuse-dequantize makes sums in int32 where b is a weight; products of two
    activations have kernels in floats alone. Raises UnsupportedError for a scale per row of a or y.
    """
    if any(t.ndim > 1 or (t.ndim == 1 and t.shape[0] != 1) for t in (a_scale, y_scale, y_zero)):
        raise UnsupportedError("QLinearMatMul with a scale per row isn't supported.")
    product = torch.matmul(centered(a, a_zero, -2, torch.float32), centered(b, b_zero, -1, torch.float32))
    factor = a_scale.to(torch.float32).reshape(()) * b_scale.to(torch.float32) / y_scale.to(torch.float32).reshape(())
    return requantize(product, factor, y_zero, -1)


def requantize(value: torch.Tensor, factor: torch.Tensor, zero: torch.Tensor, axis: int) -> torch.Tensor | LowPrecisionTensor:
    """Requantize an integer accumulator by `factor`, the product of the operands' scales over the result's scale."""
    return quantize(value, factor, zero.reshape(()), zero.dtype, axis=axis, is_multiplier=True)


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
) -> torch.Tensor | LowPrecisionTensor:
    """Lower QLinearConv, accumulated in float32: exact up to 2^24, the bound of about 500 products of 8-bit numbers; rounded beyond."""
    shape = window(tuple(x.shape[2:]), tuple(w.shape[2:]), strides, dilations, pads, auto_pad)
    centered, kernel = dequantize(x, None, x_zero.reshape(())), dequantize(w, None, w_zero, 0)
    total = convolve(centered, kernel, None if bias is None else bias.to(torch.float32), shape, group)
    return requantize(total, x_scale.reshape(()) * w_scale / y_scale.reshape(()), y_zero, 1)


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
    """Lower ConvInteger to int32, accumulated in float32 if that is exact, else in float64."""
    dtype = torch.float32 if math.prod(w.shape[1:]) * 255 * 255 < 2**24 else torch.float64
    shape = window(tuple(x.shape[2:]), tuple(w.shape[2:]), strides, dilations, pads, auto_pad)
    centered = dequantize(x, None, None if x_zero is None else x_zero.reshape(()), to=dtype)
    kernel = dequantize(w, None, w_zero, 0, to=dtype)
    return convolve(centered, kernel, None, shape, group).to(torch.int32)


@op("QLinearAdd", domain="com.microsoft")
def qlinear_add(
    a: torch.Tensor,
    a_scale: torch.Tensor,
    a_zero: torch.Tensor,
    b: torch.Tensor,
    b_scale: torch.Tensor,
    b_zero: torch.Tensor,
    c_scale: torch.Tensor,
    c_zero: torch.Tensor | None = None,
) -> torch.Tensor | LowPrecisionTensor:
    """Lower QLinearAdd of com.microsoft: the sum of the dequantized operands, quantized to a's dtype."""
    total = dequantize(a, a_scale, a_zero) + dequantize(b, b_scale, b_zero)
    return quantize(total, c_scale, c_zero, a.dtype)


@op("QLinearMul", domain="com.microsoft")
def qlinear_mul(
    a: torch.Tensor,
    a_scale: torch.Tensor,
    a_zero: torch.Tensor,
    b: torch.Tensor,
    b_scale: torch.Tensor,
    b_zero: torch.Tensor,
    c_scale: torch.Tensor,
    c_zero: torch.Tensor | None = None,
) -> torch.Tensor | LowPrecisionTensor:
    """Lower QLinearMul of com.microsoft: the product of the integers, exact in float32, times the scales as onnxruntime multiplies them."""
    product = dequantize(a, None, a_zero) * dequantize(b, None, b_zero)
    factor = a_scale.reshape(()) * b_scale.reshape(()) / c_scale.reshape(())
    return quantize(product, factor, c_zero, a.dtype, is_multiplier=True)
