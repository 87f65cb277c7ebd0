"""Gather, scatter, one-hot and similar ops. Negative indices count from the end, as ONNX specifies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from llmos.compiler.frontend.onnx.dtypes import to_torch
from llmos.compiler.frontend.onnx.registry import Ints, Value, op
from llmos.compiler.frontend.onnx.values import ConstantValue, scalar_of
from llmos.runtime.errors import UnsupportedError


def wrapped(indices: torch.Tensor, size: Any) -> torch.Tensor:
    """Convert indices into a dim of `size` to non-negative int64."""
    if indices.dtype in (torch.uint8, torch.bool):
        return indices.to(torch.int64)
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


def _indices(op_name: str, indices: Value, size: Any) -> torch.Tensor:
    """Return non-negative indices along a dim of `size`. Constants are checked if the size is static."""
    if isinstance(indices, ConstantValue) and not indices.is_symbolic:
        _require_inside(op_name, indices.array, size)
        return wrapped(to_torch(indices.array), size)
    if not isinstance(indices, torch.Tensor):
        raise UnsupportedError(f"{op_name} needs a tensor of indices.")
    return wrapped(indices, size)


def _require_inside(op_name: str, array: np.ndarray, size: Any) -> None:
    outside = array[(array < -size) | (array >= size)] if isinstance(size, int) else array[:0]
    if outside.size:
        raise IndexError(f"{op_name} has the constant index {outside.reshape(-1)[0]}, outside of a dim of size {size}")


@op("Gather")
def gather(x: torch.Tensor, indices: Value, *, axis: int = 0) -> torch.Tensor:
    """Lower Gather along one axis. Raises IndexError for a constant index out of range."""
    axis = axis % x.ndim
    if isinstance(indices, ConstantValue):
        return _gather_constant(x, indices, axis)
    if not isinstance(indices, torch.Tensor):
        raise UnsupportedError("Gather needs a tensor of indices.")
    index = wrapped(indices, x.shape[axis])
    if axis == 0 and x.ndim == 2 and x.is_floating_point():
        return F.embedding(index, x)
    if index.ndim == 0:
        return x.index_select(axis, index.reshape(1)).squeeze(axis)
    if index.ndim == 1:
        return x.index_select(axis, index)
    return x.index_select(axis, index.flatten()).unflatten(axis, tuple(index.shape))  # type: ignore[no-any-return, no-untyped-call]


def _gather_constant(x: torch.Tensor, indices: ConstantValue, axis: int) -> torch.Tensor:
    """Select a single constant index that is valid at every size, which is free; any other index is checked at run time."""
    size = x.shape[axis]
    if not indices.is_symbolic:
        _require_inside("Gather", indices.array, size)
    if indices.array.size == 1 and not indices.is_symbolic and (isinstance(size, int) or scalar_of(indices) in (0, -1)):
        place = scalar_of(indices)
        picked = x.narrow(axis, place, 1) if place >= 0 else x.narrow(axis, x.shape[axis] + place, 1)
        return picked.reshape((*x.shape[:axis], *indices.array.shape, *x.shape[axis + 1 :]))
    if indices.is_symbolic:
        items = [torch.scalar_tensor(item, dtype=torch.int64) for item in indices.array.reshape(-1)]
        return gather(x, torch.stack(items).reshape(indices.array.shape), axis=axis)
    if isinstance(size, int):
        resolved = indices.array.astype("int64") % max(size, 1)
        flat = x.index_select(axis, to_torch(resolved.reshape(-1)))
        return flat.reshape((*x.shape[:axis], *resolved.shape, *x.shape[axis + 1 :]))
    return gather(x, to_torch(indices.array), axis=axis)


@op("Compress", since=9)
def compress(x: torch.Tensor, condition: Value, *, axis: int | None = None) -> torch.Tensor:
    """Lower Compress: return the slices where a condition is true; the condition may be shorter than the axis."""
    if isinstance(condition, torch.Tensor):
        x, axis = (x.flatten(), 0) if axis is None else (x, axis % x.ndim)
        kept = torch.nonzero(condition).squeeze(1)
        return x.index_select(axis, kept)
    if not isinstance(condition, ConstantValue):
        raise UnsupportedError("Compress needs a tensor for its condition.")
    kept = to_torch(np.flatnonzero(condition.array.astype(bool)))
    return x.flatten().index_select(0, kept) if axis is None else x.index_select(axis, kept)


@op("MaxUnpool", since=9)
def max_unpool(
    x: torch.Tensor,
    indices: torch.Tensor,
    output_shape: Ints | None = None,
    *,
    kernel_shape: tuple[int, ...],
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> torch.Tensor:
    """Lower MaxUnpool: write each value at its index in the flattened pooled tensor; zeros elsewhere.

    A larger `output_shape` adds zeros at the end.
    """
    rank = len(kernel_shape)
    strides, pads = strides or (1,) * rank, pads or (0,) * (2 * rank)
    spatial = [(x.shape[i + 2] - 1) * strides[i] - pads[i] - pads[i + rank] + kernel_shape[i] for i in range(rank)]
    shape = (*x.shape[:2], *spatial)
    flat = torch.zeros(math.prod(shape), dtype=x.dtype).scatter(0, indices.flatten(), x.flatten())
    result = flat.reshape(shape)
    if output_shape is None:
        return result
    return F.pad(result, [item for i in reversed(range(rank)) for item in (0, output_shape[i + 2] - spatial[i])])


@op("GatherElements")
def gather_elements(x: torch.Tensor, indices: Value, *, axis: int = 0) -> torch.Tensor:
    """Lower GatherElements along one axis. Raises IndexError for a constant index out of range."""
    return torch.gather(x, axis, _indices("GatherElements", indices, x.shape[axis]))


def _coordinates(op_name: str, places: Value, sizes: Sequence[Any]) -> torch.Tensor:
    """Return indices whose last dim holds coordinates in the first `sizes`; constants are checked if a size is static."""
    if isinstance(places, ConstantValue) and not places.is_symbolic:
        for axis in range(places.array.shape[-1]):
            _require_inside(op_name, places.array[..., axis], sizes[axis])
        return to_torch(places.array)
    if not isinstance(places, torch.Tensor):
        raise UnsupportedError(f"{op_name} needs a tensor of indices.")
    return places


@op("GatherND")
def gather_nd(x: torch.Tensor, places: Value, *, batch_dims: int = 0) -> torch.Tensor:
    """Lower GatherND, with leading batch dims. Raises IndexError for a constant index out of range."""
    indices = _coordinates("GatherND", places, x.shape[batch_dims:])
    depth = indices.shape[-1]
    index = [torch.arange(x.shape[dim]).reshape([-1] + [1] * (indices.ndim - 2 - dim)) for dim in range(batch_dims)]
    index += [wrapped(indices[..., i], x.shape[batch_dims + i]) for i in range(depth)]
    return x[tuple(index)]


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@op("ScatterElements", "Scatter")
def scatter_elements(x: torch.Tensor, indices: Value, updates: torch.Tensor, *, axis: int = 0, reduction: str = "none") -> torch.Tensor:
    """Lower ScatterElements and Scatter along one axis; reductions are none, add, mul, max and min.

    Raises IndexError for a constant index out of range.
    """
    index = _indices("ScatterElements", indices, x.shape[axis])
    if reduction == "none":
        return torch.scatter(x, axis, index, updates)
    return torch.scatter_reduce(x, axis, index, updates, _reduction(reduction), include_self=True)


@op("ScatterND")
def scatter_nd(x: torch.Tensor, places: Value, updates: torch.Tensor, *, reduction: str = "none") -> torch.Tensor:
    """Lower ScatterND: write (or reduce) slices of `x`, indexed by the last dim of `places`, in order."""
    indices = _coordinates("ScatterND", places, x.shape)
    written: torch.Tensor = torch.ops.llmos.scatter_nd(x, indices, updates, None if reduction == "none" else _reduction(reduction))
    return written


def _reduction(name: str) -> str:
    if name not in _REDUCTIONS:
        raise UnsupportedError(f"a scatter with reduction '{name}' isn't supported; supported are none, {', '.join(_REDUCTIONS)}.")
    return _REDUCTIONS[name]


@op("OneHot")
def one_hot(indices: torch.Tensor, depth: Ints, values: torch.Tensor, *, axis: int = -1) -> torch.Tensor:
    """Lower OneHot with a constant depth; indices outside [-depth, depth) give a row of the off value."""
    count = int(depth[0])
    place = axis % (indices.ndim + 1)
    index = indices.to(torch.int64)
    index = torch.where(index < 0, index + count, index).unsqueeze(place)
    classes = torch.arange(count).reshape([-1] + [1] * (indices.ndim - place))
    return torch.where(index == classes, values[1], values[0])


@op("ReverseSequence", since=10)
def reverse_sequence(x: torch.Tensor, lengths: torch.Tensor, *, batch_axis: int = 1, time_axis: int = 0) -> torch.Tensor:
    """Lower ReverseSequence: reverse the first `lengths[b]` elements of each batch row along time."""
    moved = x.movedim((batch_axis, time_axis), (0, 1))
    steps = torch.arange(moved.shape[1]).unsqueeze(0)
    ends = lengths.to(torch.int64).unsqueeze(1)
    index = torch.where(steps < ends, ends - 1 - steps, steps)
    index = index.reshape(*index.shape, *([1] * (moved.ndim - 2))).expand(moved.shape)
    return torch.gather(moved, 1, index).movedim((0, 1), (batch_axis, time_axis))


@op("TensorScatter", since=24)
def tensor_scatter(
    cache: torch.Tensor, update: torch.Tensor, write: torch.Tensor | None = None, *, axis: int = -2, mode: str = "linear"
) -> torch.Tensor:
    """Lower TensorScatter: write `update` into `cache` along `axis` from `write[b]` on; "circular" wraps around the end."""
    axis = axis % cache.ndim
    start = write if write is not None else torch.zeros(cache.shape[0], dtype=torch.int64)
    shape = [1] * cache.ndim
    shape[axis] = -1
    index = start.to(torch.int64).reshape([-1] + [1] * (cache.ndim - 1)) + torch.arange(update.shape[axis]).reshape(shape)
    if mode == "circular":
        index = torch.remainder(index, cache.shape[axis])
    return torch.scatter(cache, axis, index.expand(update.shape), update)
