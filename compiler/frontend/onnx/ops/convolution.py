"""Convolutions over 1 to 3 spatial dims, NCHW order."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from llmos.compiler.frontend.onnx.ops.windows import Window, pad_spatial, window
from llmos.compiler.frontend.onnx.registry import op
from llmos.runtime.errors import UnsupportedError


@op("Conv")
def conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: tuple[int, ...] | None = None,
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> torch.Tensor:
    """Lower Conv of x [batch, C, spatial...] with weight [M, C / group, kernel...].

    Raises UnsupportedError for more than 3 spatial dims.
    """
    shape = window(tuple(x.shape[2:]), tuple(weight.shape[2:]), strides, dilations, pads, auto_pad)
    return convolve(x, weight, bias, shape, group)


def convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, shape: Window, group: int = 1) -> torch.Tensor:
    """Emit torch's convolution; asymmetric pads become a pad of the input. Raises UnsupportedError for more than 3 spatial dims."""
    padding = shape.padding
    if not shape.is_symmetric:
        x, padding = pad_spatial(x, shape.pads), (0,) * len(padding)
    functions: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
    if len(padding) not in functions:
        raise UnsupportedError(f"a convolution over {len(padding)} spatial dims isn't supported; 1 to 3 are.")
    return functions[len(padding)](x, weight, bias, shape.strides, padding, shape.dilations, group)  # type: ignore[no-any-return]


@op("ConvTranspose")
def conv_transpose(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: tuple[int, ...] | None = None,
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,
    output_padding: tuple[int, ...] | None = None,
    output_shape: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> torch.Tensor:
    """Lower ConvTranspose, computed without pads or bias and then cropped or padded, unless torch supports the pads."""
    shape = window(tuple(x.shape[2:]), tuple(weight.shape[2:]), strides, dilations, pads, "NOTSET")
    extra = output_padding or (0,) * len(shape.kernel)
    ends = shape.pads if auto_pad == "NOTSET" else ((0, 0),) * len(shape.kernel)
    if output_shape is not None or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        ends = _pads_for(tuple(x.shape[2:]), shape, extra, output_shape, auto_pad)
    functions: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
    compute = functions[len(shape.kernel)]
    if all(isinstance(a, int) and a == b and a >= 0 for a, b in ends) and _is_legal(extra, shape):
        return compute(x, weight, bias, shape.strides, tuple(a for a, _ in ends), extra, group, shape.dilations)  # type: ignore[no-any-return]
    full = compute(x, weight, None, shape.strides, 0, 0, group, shape.dilations)
    result = pad_spatial(full, tuple((-a, e - b) for (a, b), e in zip(ends, extra, strict=True)))
    return result if bias is None else result + bias.reshape(-1, *[1] * len(shape.kernel))


def _is_legal(extra: tuple[int, ...], shape: Window) -> bool:
    return all(e < max(s, d) for e, s, d in zip(extra, shape.strides, shape.dilations, strict=True))


def _pads_for(
    sizes: tuple[Any, ...], shape: Window, extra: tuple[int, ...], output_shape: tuple[int, ...] | None, auto_pad: str
) -> tuple[tuple[Any, Any], ...]:
    """Return the pads that give the requested output shape; for SAME_* size · stride, or less if the windows don't reach that far.

    Elements past the windows are at the end in every mode, as in onnxruntime: a negative pad.
    """
    pairs = []
    for i, (size, stride, extent, more) in enumerate(zip(sizes, shape.strides, shape.extents, extra, strict=True)):
        if output_shape is None:
            total, beyond = max(extent + more - stride, 0), 0
        else:
            surplus = stride * (size - 1) + more + extent - output_shape[i]
            total, beyond = (torch.sym_max(each, 0) for each in (surplus, -surplus))  # type: ignore[no-untyped-call]
        half = total // 2
        low, high = (half, total - half) if auto_pad == "SAME_UPPER" else (total - half, half)
        pairs.append((low, high - beyond))
    return tuple(pairs)
