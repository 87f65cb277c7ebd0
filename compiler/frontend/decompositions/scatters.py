"""Scatters: writes at data-dependent positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import guard_or_false

from llmos.runtime.errors import UnsupportedError

aten = torch.ops.aten


def _into_places(x: Tensor, places: Tensor, source: Tensor) -> Tensor:
    """Replace the elements of `x` at flat positions `places` by `source`."""
    return x.reshape(-1).scatter(0, places.reshape(-1), source.reshape(-1)).reshape(x.shape)


def _positions(x: Tensor) -> Tensor:
    return torch.arange(x.numel()).reshape(x.shape)


def _diagonal_scatter(x: Tensor, source: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    return _into_places(x, _positions(x).diagonal(offset, dim1, dim2), source)


def select_by_slice(x: Tensor, source: Tensor, dim: int, index: int) -> Tensor:
    """Replace one slice of `x`, so that an updated input writes the slice only. torch's own definition reads and writes all of `x`."""
    begin = index + x.shape[dim] if isinstance(index, int) and index < 0 else index
    return torch.slice_scatter(x, source.unsqueeze(dim), dim, begin, begin + 1)


def _masked_put(x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Any:
    """Write one number, one row, or consecutive values where a mask is true; NotImplemented for indices without a mask.

    Raises UnsupportedError for a mask beside other indices.
    """
    masks = [index for index in indices if index is not None and index.dtype in (torch.bool, torch.uint8)]
    if not masks:
        return NotImplemented
    if len(indices) != 1:
        raise UnsupportedError("assigning to a boolean mask beside other indices depends on data: use torch.where(mask, values, x)")
    mask = masks[0].to(torch.bool)
    rest = x.dim() - mask.dim()
    if values.dim() > rest:
        values = _one_by_one(mask, values)
    spread = mask.reshape(*mask.shape, *[1] * rest)
    return torch.where(spread, x + values.to(x.dtype) if accumulate else values.to(x.dtype), x)


def _one_by_one(mask: Tensor, values: Tensor) -> Tensor:
    """Return [*mask.shape, rest] with `values` [count, rest] in order at the true elements of the mask; other elements are arbitrary."""
    if guard_or_false(values.shape[0] == 0):
        return values.new_zeros([*mask.shape, *values.shape[1:]])
    if not isinstance(values.shape[0], int):  # the count may be 0: append a row that can be read
        values = torch.cat([values, values.new_zeros([1, *values.shape[1:]])])
    places = (mask.reshape(-1).to(torch.int64).cumsum(0) - 1).clamp(0, values.shape[0] - 1)
    return values.index_select(0, places).reshape(*mask.shape, *values.shape[1:])


def _masked_scatter(x: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    shape = torch.broadcast_shapes(x.shape, mask.shape)  # type: ignore[no-untyped-call]
    return torch.where(mask, _one_by_one(mask.expand(shape), source.reshape(-1)), x)


def _max_unpool(x: Tensor, indices: Tensor, output_size: Sequence[int], *_: Any) -> Tensor:
    """Write each value at its index in the flattened image of its channel; zeros elsewhere."""
    rank = len(output_size)
    lead = x.shape[:-rank]
    flat = x.new_zeros([math.prod(lead), math.prod(output_size)])
    places, values = (each.reshape(flat.shape[0], math.prod(x.shape[-rank:])) for each in (indices, x))
    return flat.scatter(1, places, values).reshape([*lead, *output_size])


TABLE: dict[Any, Callable[..., Any]] = {
    aten.diagonal_scatter.default: _diagonal_scatter,
    aten.index_put.default: _masked_put,
    aten.masked_scatter.default: _masked_scatter,
    aten.max_unpool2d.default: _max_unpool,
    aten.max_unpool3d.default: _max_unpool,
}


@torch.library.custom_op("llmos::scatter_nd", mutates_args=())
def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, reduce: str | None) -> Tensor:
    """Write or reduce ("sum", "prod", "amax", "amin") slices of `x` at indices [lead..., depth]; updates are [lead..., rest of x]."""
    depth, made = indices.shape[-1], x.clone()
    for place, update in zip(indices.reshape(-1, depth).tolist(), updates.reshape(-1, *x.shape[depth:]), strict=True):
        old = made[tuple(place)]
        joined: dict[str, Any] = {"sum": torch.add, "prod": torch.mul, "amax": torch.maximum, "amin": torch.minimum}
        made[tuple(place)] = update if reduce is None else joined[reduce](old, update)
    return made


@scatter_nd.register_fake
def _(x: Tensor, indices: Tensor, updates: Tensor, reduce: str | None) -> Tensor:
    torch._check(tuple(updates.shape) == (*indices.shape[:-1], *x.shape[indices.shape[-1] :]), lambda: "updates don't fit the indices")  # type: ignore[no-untyped-call]
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def takes_mask(op: Any, args: Sequence[Any]) -> bool:
    """Whether a call is an index_put with a mask, which is decomposed."""
    kinds = (torch.bool, torch.uint8)
    return op is aten.index_put.default and any(index is not None and index.meta["val"].dtype in kinds for index in args[1])
