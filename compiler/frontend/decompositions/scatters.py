"""Writes at places: scatters, bags of table rows."""

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
    """`x` with the elements at `places`, flat positions, taken from `source`."""
    return x.reshape(-1).scatter(0, places.reshape(-1), source.reshape(-1)).reshape(x.shape)


def _positions(x: Tensor) -> Tensor:
    return torch.arange(x.numel()).reshape(x.shape)


def _diagonal_scatter(x: Tensor, source: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    return _into_places(x, _positions(x).diagonal(offset, dim1, dim2), source)


def _along(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """A vector of indices along one dimension, for every element of `source`."""
    shape = [1] * source.dim()
    shape[dim] = -1
    return index.reshape(shape).expand(source.shape)


_REDUCTIONS = {"mean": "mean", "prod": "prod", "amax": "amax", "amin": "amin"}


def _index_reduce(x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True) -> Tensor:
    if x.dim() == 0:
        return _index_reduce(x.reshape(1), 0, index.reshape(-1), source.reshape(-1), reduce, include_self=include_self).reshape(())
    dim %= x.dim()
    return x.scatter_reduce(dim, _along(x, dim, index, source), source, _REDUCTIONS[reduce], include_self=include_self)


def _put(x: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    places = torch.where(index < 0, index + x.numel(), index).reshape(-1)
    flat = x.reshape(-1)
    values = source.reshape(-1)
    return (flat.scatter_add(0, places, values) if accumulate else flat.scatter(0, places, values)).reshape(x.shape)


def _scatter_with(x: Tensor, dim: int, index: Tensor, source: Any, *, reduce: str) -> Tensor:
    values = source if isinstance(source, Tensor) else torch.full(index.shape, source, dtype=x.dtype)
    if isinstance(source, Tensor) and source.shape != index.shape:
        values = source[tuple(slice(0, size) for size in index.shape)]
    return x.scatter_reduce(dim, index, values, {"add": "sum", "multiply": "prod"}[reduce])


def _embedding_bag(
    table: Tensor, ids: Tensor, offsets: Tensor, scale_grad_by_freq: bool = False, mode: int = 0, sparse: bool = False,
    weights: Tensor | None = None, include_last_offset: bool = False, padding_idx: int = -1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Sums, means or maxima of table rows over bags that start at `offsets`; the second to fourth results serve training."""
    starts = offsets[:-1] if include_last_offset else offsets
    bags = starts.shape[0]
    bag = (starts.unsqueeze(0) <= torch.arange(ids.shape[0]).unsqueeze(1)).sum(1) - 1
    member = bag.unsqueeze(0) == torch.arange(bags).unsqueeze(1)
    if padding_idx >= 0:
        member = member & (ids != padding_idx).unsqueeze(0)
    rows = torch.nn.functional.embedding(ids, table)
    count = member.sum(1, keepdim=True)
    if mode == 2:
        spread = torch.where(member.unsqueeze(-1), rows.unsqueeze(0), -math.inf).amax(1)
        answer = torch.where(count > 0, spread, 0.0)
    else:
        share = member.to(table.dtype) if weights is None else member.to(table.dtype) * weights.to(table.dtype)
        answer = share @ rows
        answer = answer / count.clamp(min=1) if mode == 1 else answer
    nothing = torch.zeros([0], dtype=torch.int64)
    return answer, nothing, nothing, nothing


def _masked_put(x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Any:
    """One number, one row, or one after the other where a mask holds; any other form is left as it is."""
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
    """[mask's dimensions, rest]: at the i-th place where the mask holds the i-th of `values` [count, rest]; elsewhere any of them."""
    if guard_or_false(values.shape[0] == 0):
        return values.new_zeros([*mask.shape, *values.shape[1:]])
    if not isinstance(values.shape[0], int):  # none at all, perhaps: there is a row to read then too
        values = torch.cat([values, values.new_zeros([1, *values.shape[1:]])])
    places = (mask.reshape(-1).to(torch.int64).cumsum(0) - 1).clamp(0, values.shape[0] - 1)
    return values.index_select(0, places).reshape(*mask.shape, *values.shape[1:])


def _masked_scatter(x: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    shape = torch.broadcast_shapes(x.shape, mask.shape)  # type: ignore[no-untyped-call]
    return torch.where(mask, _one_by_one(mask.expand(shape), source.reshape(-1)), x)


def _whole_mean(x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True) -> Any:
    """The mean of integers, rounded down; any other reduction is left as it is."""
    if reduce != "mean" or x.dtype.is_floating_point:
        return NotImplemented
    start = x if include_self else x.scatter(dim, index, torch.zeros_like(source))
    total = start.scatter_add(dim, index, source[tuple(slice(0, size) for size in index.shape)])
    ones = torch.ones_like(x) if include_self else torch.ones_like(x).scatter(dim, index, torch.zeros_like(source))
    count = ones.scatter_add(dim, index, torch.ones(index.shape, dtype=x.dtype))
    return torch.div(total, count.clamp(min=1), rounding_mode="floor")


def _scatter_edges(op: Any) -> Callable[..., Any]:
    """Scatters of a number, of nothing, and along a dimension counted from the end; any other is left as it is."""

    def decompose(x: Tensor, dim: int, index: Tensor, source: Any, *rest: Any, **options: Any) -> Any:
        if 0 in [size for size in index.shape if isinstance(size, int)]:
            return x.clone()
        if x.dim() > 0:
            if op is aten.scatter_reduce.two:
                return _whole_mean(x, dim, index, source, *rest, **options)
            return op(x, dim % x.dim(), index, source, *rest, **options) if dim < 0 else NotImplemented
        values = source.reshape(1) if isinstance(source, Tensor) else source
        return op(x.reshape(1), 0, index.reshape(1), values, *rest, **options).reshape(())

    return decompose


TABLE: dict[Any, Callable[..., Any]] = {
    aten.diagonal_scatter.default: _diagonal_scatter,
    aten.index_reduce.default: _index_reduce,
    aten.put.default: _put,
    aten.index_put.default: _masked_put,
    aten.masked_scatter.default: _masked_scatter,
    **{op: _scatter_edges(op) for op in (aten.scatter_add.default, aten.scatter.src, aten.scatter.value, aten.scatter_reduce.two)},
    aten.scatter.reduce: _scatter_with,
    aten.scatter.value_reduce: _scatter_with,
    aten._embedding_bag.default: _embedding_bag,
    aten._embedding_bag_forward_only.default: _embedding_bag,
}
