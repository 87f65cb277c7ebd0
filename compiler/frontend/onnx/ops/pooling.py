"""Pooling over 1 to 3 spatial dims."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from llmos.compiler.frontend.onnx.ops.windows import Window, pad_spatial, window
from llmos.compiler.frontend.onnx.registry import NumOutputs, op
from llmos.runtime.errors import UnsupportedError

Dims = tuple[int, ...]


@op("MaxPool")
def max_pool(
    x: torch.Tensor,
    *,
    kernel_shape: Dims,
    num_outputs_: NumOutputs,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Dims | None = None,
    pads: Dims | None = None,
    storage_order: int = 0,
    strides: Dims | None = None,
) -> torch.Tensor:
    if num_outputs_ > 1:
        raise UnsupportedError("MaxPool with its second output (indices) isn't supported.")
    shape = window(tuple(x.shape[2:]), kernel_shape, strides, dilations, pads, auto_pad)
    if not x.is_floating_point():
        # torch pools floats only; every 8-bit integer is one.
        if x.dtype.itemsize > 1:
            raise UnsupportedError(f"MaxPool of {x.dtype} isn't supported.")
        return _max(x.to(torch.float32), shape, bool(ceil_mode)).to(x.dtype)
    return _max(x, shape, bool(ceil_mode))


def _max(x: torch.Tensor, shape: Window, ceil_mode: bool) -> torch.Tensor:
    functions: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
    compute = functions[len(shape.kernel)]
    if shape.is_symmetric and all(p <= k // 2 for p, k in zip(shape.padding, shape.kernel, strict=True)):
        return compute(x, shape.kernel, shape.strides, shape.padding, shape.dilations, ceil_mode)  # type: ignore[no-any-return]
    padded = pad_spatial(x, shape.pads, float("-inf"))
    if ceil_mode:
        padded = pad_spatial(padded, _ceil_pads(tuple(padded.shape[2:]), shape, tuple(x.shape[2:])), float("-inf"))
    return compute(padded, shape.kernel, shape.strides, 0, shape.dilations)  # type: ignore[no-any-return]


def _ceil_pads(sizes: tuple[Any, ...], shape: Window, inner: tuple[Any, ...]) -> tuple[tuple[int, int], ...]:
    """Pads at the end that make ceil_mode's last window whole; a window that would start in the padding is dropped."""
    pairs = []
    for axis, (size, extent, stride) in enumerate(zip(sizes, shape.extents, shape.strides, strict=True)):
        count = -(-(size - extent) // stride) + 1
        if (count - 1) * stride >= inner[axis] + shape.pads[axis][0]:
            count -= 1
        pairs.append((0, max((count - 1) * stride + extent - size, 0)))
    return tuple(pairs)


@op("AveragePool")
def average_pool(
    x: torch.Tensor,
    *,
    kernel_shape: Dims,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Dims | None = None,
    pads: Dims | None = None,
    strides: Dims | None = None,
) -> torch.Tensor:
    shape = window(tuple(x.shape[2:]), kernel_shape, strides, dilations, pads, auto_pad)
    functions: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
    is_small = shape.is_symmetric and all(p <= k // 2 for p, k in zip(shape.padding, shape.kernel, strict=True))
    if is_small and set(shape.dilations) == {1}:
        return functions[len(kernel_shape)](x, kernel_shape, shape.strides, shape.padding, bool(ceil_mode), bool(count_include_pad))  # type: ignore[no-any-return]
    return _average(x, shape, bool(ceil_mode), bool(count_include_pad))


def _average(x: torch.Tensor, shape: Window, ceil_mode: bool, count_pads: bool) -> torch.Tensor:
    """Sums over elements that count: those of the input, with `count_pads` those of its padding too, never ceil_mode's."""
    rank = len(shape.kernel)
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
    padded, counted = pad_spatial(x, shape.pads), pad_spatial(ones, shape.pads, 1.0 if count_pads else 0.0)
    if ceil_mode:
        extra = _ceil_pads(tuple(padded.shape[2:]), shape, tuple(x.shape[2:]))
        padded, counted = pad_spatial(padded, extra), pad_spatial(counted, extra)
    return window_sum(padded, shape, rank) / window_sum(counted, shape, rank)


def window_sum(x: torch.Tensor, shape: Window, rank: int) -> torch.Tensor:
    """Sum over each window, as a convolution of each channel with ones."""
    functions: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
    channels = x.shape[1]
    ones = torch.ones((channels, 1, *shape.kernel), dtype=x.dtype)
    return functions[rank](x, ones, None, shape.strides, 0, shape.dilations, channels)  # type: ignore[no-any-return]


@op("LpPool")
def lp_pool(
    x: torch.Tensor,
    *,
    kernel_shape: Dims,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Dims | None = None,
    p: int = 2,
    pads: Dims | None = None,
    strides: Dims | None = None,
) -> torch.Tensor:
    shape = window(tuple(x.shape[2:]), kernel_shape, strides, dilations, pads, auto_pad)
    powers = pad_spatial(torch.abs(x) ** p, shape.pads)
    if ceil_mode:
        powers = pad_spatial(powers, _ceil_pads(tuple(powers.shape[2:]), shape, tuple(x.shape[2:])))
    return window_sum(powers, shape, len(kernel_shape)) ** (1.0 / p)


@op("GlobalAveragePool")
def global_average_pool(x: torch.Tensor) -> torch.Tensor:
    return torch.mean(x, tuple(range(2, x.ndim)), keepdim=True)


@op("GlobalMaxPool")
def global_max_pool(x: torch.Tensor) -> torch.Tensor:
    return torch.amax(x, tuple(range(2, x.ndim)), keepdim=True)


@op("GlobalLpPool", since=2)
def global_lp_pool(x: torch.Tensor, *, p: int = 2) -> torch.Tensor:
    return torch.sum(torch.abs(x) ** p, tuple(range(2, x.ndim)), keepdim=True) ** (1.0 / p)
