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
    shape = window(tuple(x.shape[2:]), tuple(weight.shape[2:]), strides, dilations, pads, auto_pad)
    return convolve(x, weight, bias, shape, group)


def convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, shape: Window, group: int = 1) -> torch.Tensor:
    """torch's convolution; pads that differ on the two sides become a pad of the input."""
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
    """Computed without pads and then cropped by them, unless they are what torch takes itself."""
    shape = window(tuple(x.shape[2:]), tuple(weight.shape[2:]), strides, dilations, pads, "NOTSET")
    extra = output_padding or (0,) * len(shape.kernel)
    crop = shape.pads
    if output_shape is not None or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        crop = _crop_to(tuple(x.shape[2:]), shape, extra, output_shape, auto_pad)
    functions: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
    compute = functions[len(shape.kernel)]
    if all(isinstance(a, int) and a == b and a >= 0 for a, b in crop) and _is_legal(extra, shape):
        return compute(x, weight, bias, shape.strides, tuple(a for a, _ in crop), extra, group, shape.dilations)  # type: ignore[no-any-return]
    full = compute(x, weight, bias, shape.strides, 0, 0, group, shape.dilations)
    if bias is not None and any(extra):
        raise UnsupportedError("ConvTranspose with a bias and an output_padding of at least the stride isn't supported.")
    return pad_spatial(full, tuple((-a, e - b) for (a, b), e in zip(crop, extra, strict=True)))


def _is_legal(extra: tuple[int, ...], shape: Window) -> bool:
    return all(e < max(s, d) for e, s, d in zip(extra, shape.strides, shape.dilations, strict=True))


def _crop_to(
    sizes: tuple[Any, ...], shape: Window, extra: tuple[int, ...], output_shape: tuple[int, ...] | None, auto_pad: str
) -> tuple[tuple[Any, Any], ...]:
    """Pads that give the asked output shape (for SAME_*: size · stride); a negative one adds zeros."""
    wanted = output_shape or tuple(size * stride for size, stride in zip(sizes, shape.strides, strict=True))
    pairs = []
    for size, stride, extent, more, target in zip(sizes, shape.strides, shape.extents, extra, wanted, strict=True):
        total = stride * (size - 1) + more + extent - target
        half = total // 2
        pairs.append((half, total - half) if auto_pad == "SAME_UPPER" else (total - half, half))
    return tuple(pairs)
