"""Ops of com.microsoft on tensors of 8 bits with scales and zero points, as onnxruntime's quantizer writes them (QuantFormat.QOperator).

Each is the op on dequantized tensors, quantized again; where onnxruntime sums integers, so does this. The matrix product and convolution
of ai.onnx, and QLinearAdd and QLinearMul, are in quant.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from llmos.compiler.frontend.onnx.low_precision import LowPrecisionTensor
from llmos.compiler.frontend.onnx.ops.pooling import average_pool
from llmos.compiler.frontend.onnx.ops.quant import centered, dequantize, quantize, requantize
from llmos.compiler.frontend.onnx.registry import op
from llmos.runtime.errors import UnsupportedError

Dims = tuple[int, ...]
Quantized = torch.Tensor | LowPrecisionTensor
MICROSOFT = "com.microsoft"


def _computed(
    compute: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    x_scale: torch.Tensor,
    x_zero: torch.Tensor | None,
    y_scale: torch.Tensor,
    y_zero: torch.Tensor | None,
) -> Quantized:
    """A function of the dequantized tensor, quantized; a result without a zero point has the type of x."""
    return quantize(compute(dequantize(x, x_scale, x_zero)), y_scale, y_zero, x.dtype)


@op("QLinearSigmoid", domain=MICROSOFT)
def qlinear_sigmoid(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    x_zero: torch.Tensor | None,
    y_scale: torch.Tensor,
    y_zero: torch.Tensor | None = None,
) -> Quantized:
    """Lower QLinearSigmoid of com.microsoft."""
    return _computed(torch.sigmoid, x, x_scale, x_zero, y_scale, y_zero)


@op("QLinearLeakyRelu", domain=MICROSOFT)
def qlinear_leaky_relu(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    x_zero: torch.Tensor | None,
    y_scale: torch.Tensor,
    y_zero: torch.Tensor | None = None,
    *,
    alpha: float = 0.01,
) -> Quantized:
    """Lower QLinearLeakyRelu of com.microsoft."""
    return _computed(lambda each: torch.where(each >= 0, each, each * alpha), x, x_scale, x_zero, y_scale, y_zero)


@op("QLinearSoftmax", domain=MICROSOFT)
def qlinear_softmax(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    x_zero: torch.Tensor | None,
    y_scale: torch.Tensor,
    y_zero: torch.Tensor,
    *,
    axis: int = -1,
    opset: int = 13,
) -> Quantized:
    """Lower QLinearSoftmax of com.microsoft; before opset 13 over all axes from `axis` on, as Softmax was."""
    if opset >= 13:
        return _computed(lambda each: torch.softmax(each, axis), x, x_scale, x_zero, y_scale, y_zero)

    def flattened(values: torch.Tensor) -> torch.Tensor:
        return torch.softmax(values.flatten(axis % x.ndim), -1).reshape(values.shape)

    return _computed(flattened, x, x_scale, x_zero, y_scale, y_zero)


@op("QLinearAveragePool", domain=MICROSOFT)
def qlinear_average_pool(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    x_zero: torch.Tensor | None,
    y_scale: torch.Tensor,
    y_zero: torch.Tensor | None = None,
    *,
    kernel_shape: Dims,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    channels_last: int = 0,
    count_include_pad: int = 0,
    pads: Dims | None = None,
    strides: Dims | None = None,
) -> Quantized:
    """Lower QLinearAveragePool of com.microsoft; padding, where it is counted, is 0."""

    def pooled(image: torch.Tensor) -> torch.Tensor:
        return average_pool(
            image,
            kernel_shape=kernel_shape,
            auto_pad=auto_pad,
            ceil_mode=ceil_mode,
            count_include_pad=count_include_pad,
            pads=pads,
            strides=strides,
        )

    if not channels_last:
        return _computed(pooled, x, x_scale, x_zero, y_scale, y_zero)
    return _computed(lambda each: pooled(each.movedim(-1, 1)).movedim(1, -1), x, x_scale, x_zero, y_scale, y_zero)


@op("QLinearGlobalAveragePool", domain=MICROSOFT)
def qlinear_global_average_pool(
    x: torch.Tensor, x_scale: torch.Tensor, x_zero: torch.Tensor, y_scale: torch.Tensor, y_zero: torch.Tensor, *, channels_last: int = 0
) -> Quantized:
    """Lower QLinearGlobalAveragePool of com.microsoft: the sum in int32 times x_scale / (y_scale * count)."""
    axes = tuple(range(1, x.ndim - 1)) if channels_last else tuple(range(2, x.ndim))
    count = 1
    for axis in axes:
        count = count * x.shape[axis]
    total = dequantize(x, None, x_zero.reshape(()), to=torch.int32).sum(axes, keepdim=True, dtype=torch.int32)
    return requantize(total.to(torch.float32), x_scale.reshape(()) / (y_scale.reshape(()) * count), y_zero, 1)


@op("QLinearConcat", domain=MICROSOFT)
def qlinear_concat(y_scale: torch.Tensor, y_zero: torch.Tensor, *parts: torch.Tensor, axis: int) -> Quantized:
    """Lower QLinearConcat of com.microsoft: parts are tensors, each followed by its scale and zero point. Raises UnsupportedError."""
    if not parts or len(parts) % 3:
        raise UnsupportedError("QLinearConcat needs a scale and a zero point behind each tensor.")
    tensors = [dequantize(x, scale, zero) for x, scale, zero in zip(parts[::3], parts[1::3], parts[2::3], strict=True)]
    return quantize(torch.cat(tensors, axis), y_scale, y_zero, y_zero.dtype)


@op("QLinearWhere", domain=MICROSOFT)
def qlinear_where(
    condition: torch.Tensor,
    x: torch.Tensor,
    x_scale: torch.Tensor,
    x_zero: torch.Tensor,
    y: torch.Tensor,
    y_scale: torch.Tensor,
    y_zero: torch.Tensor,
    z_scale: torch.Tensor,
    z_zero: torch.Tensor,
) -> Quantized:
    """Lower QLinearWhere of com.microsoft."""
    chosen = torch.where(condition, dequantize(x, x_scale, x_zero), dequantize(y, y_scale, y_zero))
    return quantize(chosen, z_scale, z_zero, z_zero.dtype)


@op("QGemm", domain=MICROSOFT)
def qgemm(
    a: torch.Tensor,
    a_scale: torch.Tensor,
    a_zero: torch.Tensor,
    b: torch.Tensor,
    b_scale: torch.Tensor,
    b_zero: torch.Tensor,
    c: torch.Tensor | None = None,
    y_scale: torch.Tensor | None = None,
    y_zero: torch.Tensor | None = None,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Quantized:
    """Lower QGemm of com.microsoft: the int32 product plus c in int32, times alpha * a_scale * b_scale in float32.

    Without y_scale that is the result; otherwise it is divided by y_scale and quantized. b has parameters for the tensor or a column.
    """
    left = centered(a, a_zero.reshape(()), -1)
    right = centered(b, b_zero, 0 if transB else 1)
    total = torch.matmul(left.mT if transA else left, right.mT if transB else right)
    total = total if c is None else total + c
    factor = a_scale.to(torch.float32).reshape(()) * alpha * b_scale.to(torch.float32)
    if y_scale is None:
        return total.to(torch.float32) * factor
    assert y_zero is not None
    return requantize(total.to(torch.float32), factor / y_scale.to(torch.float32).reshape(()), y_zero, -1)
