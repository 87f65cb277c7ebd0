"""Pooling over 1 to 3 spatial dims."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from llmos.compiler.frontend.onnx.dtypes import to_torch, wide
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
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Lower MaxPool; with a second output also int64 indices into the flattened input, which needs static sizes.

    Raises UnsupportedError for integers of more than 8 bits, and for the indices of integers.
    """
    shape = window(tuple(x.shape[2:]), kernel_shape, strides, dilations, pads, auto_pad)
    if num_outputs_ > 1:
        return _max_with_indices(x, shape, bool(ceil_mode), bool(storage_order))
    if not x.is_floating_point():
        # torch pools floats only; every 8-bit integer is one.
        if x.dtype.itemsize > 1:
            raise UnsupportedError(f"MaxPool of {x.dtype} isn't supported.")
        return _max(x.to(torch.float32), shape, bool(ceil_mode)).to(x.dtype)
    return _max(x, shape, bool(ceil_mode))


def _max(x: torch.Tensor, shape: Window, ceil_mode: bool) -> torch.Tensor:
    functions: dict[int, Any] = {1: _max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
    compute = functions[len(shape.kernel)]
    if shape.is_symmetric and all(p <= k // 2 for p, k in zip(shape.padding, shape.kernel, strict=True)):
        return compute(x, shape.kernel, shape.strides, shape.padding, shape.dilations, ceil_mode)  # type: ignore[no-any-return]
    padded = pad_spatial(x, shape.pads, float("-inf"))
    if ceil_mode:
        padded = pad_spatial(padded, _ceil_pads(tuple(padded.shape[2:]), shape, tuple(x.shape[2:])), float("-inf"))
    return compute(padded, shape.kernel, shape.strides, 0, shape.dilations)  # type: ignore[no-any-return]


def _max_pool1d(x: torch.Tensor, kernel: Dims, strides: Dims, padding: Any, dilations: Dims, ceil_mode: bool = False) -> torch.Tensor:
    """Pool in two dimensions if the size is dynamic, because torch's shape function for one dimension specializes it."""
    if isinstance(x.shape[-1], int):
        return F.max_pool1d(x, kernel, strides, padding, dilations, ceil_mode)
    wide = F.max_pool2d(x.unsqueeze(-2), (1, *kernel), (1, *strides), (0, *padding) if padding else 0, (1, *dilations), ceil_mode)
    return wide.squeeze(-2)


def _max_with_indices(x: torch.Tensor, shape: Window, ceil_mode: bool, by_columns: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values and flat indices; `by_columns`: with the spatial dims in column-major order."""
    spatial = tuple(x.shape[2:])
    if not all(isinstance(size, int) for size in x.shape) or not all(isinstance(pad, int) for pair in shape.pads for pad in pair):
        raise UnsupportedError("MaxPool with its second output needs static sizes; fix the dimensions (--dynamic name=size).")
    if not x.is_floating_point():
        raise UnsupportedError("MaxPool of integers with its second output isn't supported.")
    read, written, outputs = _window_places(spatial, shape, ceil_mode, by_columns)
    taken = x.flatten(2).index_select(2, to_torch(np.maximum(read, 0).reshape(-1))).reshape(*x.shape[:2], *read.shape)
    held = torch.where(to_torch(read >= 0), taken, float("-inf"))
    best = held.argmax(-1, keepdim=True)
    places = torch.gather(to_torch(written).expand(held.shape), -1, best).squeeze(-1)
    planes = torch.arange(x.shape[0] * x.shape[1]).reshape(x.shape[0], x.shape[1], 1) * math.prod(spatial)
    result = (*x.shape[:2], *outputs)
    return held.amax(-1).reshape(result), (places + planes).reshape(result)


def _window_places(spatial: tuple[int, ...], shape: Window, ceil_mode: bool, by_columns: bool) -> tuple[Any, Any, tuple[int, ...]]:
    """Return, for each element of each window, its flat index in a plane (-1: padding), the index to report, and the result's sizes."""
    padded = tuple(size + low + high for size, (low, high) in zip(spatial, shape.pads, strict=True))
    extra = _ceil_pads(padded, shape, spatial) if ceil_mode else ((0, 0),) * len(spatial)
    outputs, axes = [], []
    for axis, size in enumerate(padded):
        count = (size + extra[axis][1] - shape.extents[axis]) // shape.strides[axis] + 1
        steps = np.arange(shape.kernel[axis]) * shape.dilations[axis] - shape.pads[axis][0]
        outputs.append(count)
        axes.append(np.arange(count)[:, None] * shape.strides[axis] + steps)
    rank = len(spatial)
    grids = [_spread(places, axis, rank) for axis, places in enumerate(axes)]
    read, written = np.zeros((1,) * 2 * rank, np.int64), np.zeros((1,) * 2 * rank, np.int64)
    inside = np.ones((1,) * 2 * rank, bool)
    for axis, grid in enumerate(grids):
        inside = inside & (grid >= 0) & (grid < spatial[axis])
        read = read + grid * math.prod(spatial[axis + 1 :])
        written = written + grid * math.prod(spatial[:axis] if by_columns else spatial[axis + 1 :])
    flat = (math.prod(outputs), math.prod(shape.kernel))
    inside, read, written = (np.broadcast_to(a, (*outputs, *shape.kernel)).reshape(flat) for a in (inside, read, written))
    return np.where(inside, read, -1), written, tuple(outputs)


def _spread(places: Any, axis: int, rank: int) -> Any:
    """Broadcast [outputs, window] of one axis over the dims (outputs of all axes, windows of all axes)."""
    shape = [1] * (2 * rank)
    shape[axis], shape[axis + rank] = places.shape
    return places.reshape(shape)


def _ceil_pads(sizes: tuple[Any, ...], shape: Window, inner: tuple[Any, ...]) -> tuple[tuple[int, int], ...]:
    """Return the end pads that complete ceil_mode's last window; a window that would start in the padding is dropped."""
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
    """Lower AveragePool, with padding counted if `count_include_pad`; forms that torch lacks are summed in float32 or wider."""
    shape = window(tuple(x.shape[2:]), kernel_shape, strides, dilations, pads, auto_pad)
    functions: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
    is_small = shape.is_symmetric and all(p <= k // 2 for p, k in zip(shape.padding, shape.kernel, strict=True))
    if is_small and set(shape.dilations) == {1}:
        return functions[len(kernel_shape)](x, kernel_shape, shape.strides, shape.padding, bool(ceil_mode), bool(count_include_pad))  # type: ignore[no-any-return]
    return _average(wide(x), shape, bool(ceil_mode), bool(count_include_pad)).to(x.dtype)


def _average(x: torch.Tensor, shape: Window, ceil_mode: bool, count_pads: bool) -> torch.Tensor:
    """Average over the input's elements and, with `count_pads`, over explicit padding, but not over ceil_mode's padding."""
    rank = len(shape.kernel)
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
    padded, counted = pad_spatial(x, shape.pads), pad_spatial(ones, shape.pads, 1.0 if count_pads else 0.0)
    if ceil_mode:
        extra = _ceil_pads(tuple(padded.shape[2:]), shape, tuple(x.shape[2:]))
        padded, counted = pad_spatial(padded, extra), pad_spatial(counted, extra)
    return window_sum(padded, shape, rank) / window_sum(counted, shape, rank)


def window_sum(x: torch.Tensor, shape: Window, rank: int) -> torch.Tensor:
    """Sum over each window, as a depthwise convolution with ones."""
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
    """Lower LpPool: (sum |x|^p)^(1 / p) over each window."""
    shape = window(tuple(x.shape[2:]), kernel_shape, strides, dilations, pads, auto_pad)
    powers = pad_spatial(torch.abs(wide(x)) ** p, shape.pads)
    if ceil_mode:
        powers = pad_spatial(powers, _ceil_pads(tuple(powers.shape[2:]), shape, tuple(x.shape[2:])))
    return (window_sum(powers, shape, len(kernel_shape)) ** (1.0 / p)).to(x.dtype)


@op("GlobalAveragePool")
def global_average_pool(x: torch.Tensor) -> torch.Tensor:
    """Lower GlobalAveragePool over the spatial dims."""
    return torch.mean(x, tuple(range(2, x.ndim)), keepdim=True)


@op("GlobalMaxPool")
def global_max_pool(x: torch.Tensor) -> torch.Tensor:
    """Lower GlobalMaxPool over the spatial dims."""
    return torch.amax(x, tuple(range(2, x.ndim)), keepdim=True)


@op("GlobalLpPool", since=2)
def global_lp_pool(x: torch.Tensor, *, p: int = 2) -> torch.Tensor:
    """Lower GlobalLpPool over the spatial dims, from opset 2."""
    return (torch.sum(torch.abs(wide(x)) ** p, tuple(range(2, x.ndim)), keepdim=True) ** (1.0 / p)).to(x.dtype)
