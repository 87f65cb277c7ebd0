"""Counts and runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _range_of(x: Tensor, low: float, high: float, margin: float = 1) -> tuple[Tensor, Tensor]:
    """The ends of a histogram: given, or the data's, wider by a margin where they are equal."""
    kind = x.dtype
    if low == high == 0 and x.numel() > 0:
        start, end = x.amin(), x.amax()
    else:
        start, end = torch.scalar_tensor(low, dtype=kind), torch.scalar_tensor(high, dtype=kind)
    same = start == end
    return torch.where(same, start - margin, start), torch.where(same, end + margin, end)


def _histc(x: Tensor, bins: int = 100, low: float = 0, high: float = 0) -> Tensor:
    flat = x.reshape(-1)
    start, end = _range_of(flat, low, high)
    place = ((flat - start) / (end - start) * bins).floor()
    place = torch.where(flat == end, bins - 1, place)
    inside = (flat >= start) & (flat <= end)
    hits = (place.unsqueeze(-1) == torch.arange(bins, dtype=x.dtype)) & inside.unsqueeze(-1)
    return hits.to(x.dtype).sum(0)


def _membership(x: Tensor, edges: Tensor) -> Tensor:
    """Whether each of x [count] is in each bin: [count, bins]; the last bin has both its ends."""
    flat = x.unsqueeze(-1)
    last = torch.arange(edges.shape[0] - 1) == edges.shape[0] - 2
    return (flat >= edges[:-1]) & ((flat < edges[1:]) | (last & (flat == edges[1:])))


def _shares(is_member: Tensor, share: Tensor | float, dtype: torch.dtype) -> Tensor:
    """The share of what is in a bin; 0 elsewhere, where a product would be NaN of an infinite share."""
    return torch.where(is_member, share, torch.zeros((), dtype=dtype)).to(dtype)


def _histogram_of_edges(x: Tensor, edges: Tensor, *, weight: Tensor | None = None, density: bool = False) -> tuple[Tensor, Tensor]:
    counts = _shares(_membership(x.reshape(-1), edges), weight.reshape(-1, 1) if weight is not None else 1.0, x.dtype).sum(0)
    return (counts / counts.sum() / (edges[1:] - edges[:-1]) if density else counts), edges.clone()


def _histogram(
    x: Tensor, bins: int = 100, *, range: Sequence[float] | None = None, weight: Tensor | None = None, density: bool = False
) -> tuple[Tensor, Tensor]:
    low, high = range or (0, 0)
    start, end = _range_of(x.reshape(-1), low, high, 0.5)
    edges = start + (end - start) / bins * torch.arange(bins + 1, dtype=x.dtype)
    edges = torch.where(torch.arange(bins + 1) == bins, end, edges)
    return _histogram_of_edges(x, edges, weight=weight, density=density)


def _edges_of(x: Tensor, bins: Sequence[int], range: Sequence[float] | None = None, **_: Any) -> list[Tensor]:
    """The edges of each column's bins, `range` as (low, high) a column."""
    ends = range or [0.0] * (2 * len(bins))
    columns = x.reshape(-1, x.shape[-1]).unbind(-1)
    return [
        _histogram(column, count, range=ends[2 * i : 2 * i + 2])[1] for i, (column, count) in enumerate(zip(columns, bins, strict=True))
    ]


def _histogram_of_columns(x: Tensor, edges: Sequence[Tensor], *, weight: Tensor | None = None, density: bool = False) -> Tensor:
    """x [points, columns]: how many points are in each box of bins."""
    points = x.reshape(-1, x.shape[-1])
    hits = torch.ones([points.shape[0], 1], dtype=x.dtype) if weight is None else weight.reshape(-1, 1)
    volume = torch.ones([1], dtype=x.dtype)
    for column, ends in zip(points.unbind(-1), edges, strict=True):
        hits = _shares(_membership(column, ends).unsqueeze(1), hits.unsqueeze(2), x.dtype).flatten(1)
        volume = (volume.unsqueeze(1) * (ends[1:] - ends[:-1])).flatten()
    counts = hits.sum(0)
    counts = counts / counts.sum() / volume if density else counts
    return counts.reshape([each.shape[0] - 1 for each in edges])


def _histogram_of_counts(
    x: Tensor, bins: Sequence[int], *, range: Sequence[float] | None = None, weight: Tensor | None = None, density: bool = False
) -> Tensor:
    return _histogram_of_columns(x, _edges_of(x, bins, range), weight=weight, density=density)


_STARTS = {"sum": 0.0, "mean": 0.0, "prod": 1.0, "max": -math.inf, "min": math.inf}


def _segment_reduce(
    x: Tensor, reduce: str, *, lengths: Tensor | None = None, indices: Tensor | None = None, offsets: Tensor | None = None,
    axis: int = 0, unsafe: bool = False, initial: float | None = None,
) -> Any:  # fmt: skip
    """Runs of x [lead..., size, rest...] along `axis`, as long as `lengths` [lead..., count] says, reduced: [lead..., count, rest...]."""
    if offsets is not None:
        starts, ends = offsets[..., :-1], offsets[..., 1:]
    elif lengths is not None:
        ends = lengths.cumsum(-1)
        starts = ends - lengths
    else:
        return NotImplemented
    place = torch.arange(x.shape[axis])
    member = (place >= starts.unsqueeze(-1)) & (place < ends.unsqueeze(-1))
    member = member.reshape(*member.shape, *[1] * (x.dim() - axis - 1))
    start = _STARTS[reduce] if initial is None else initial
    spread = torch.where(member, x.unsqueeze(axis), _STARTS[reduce])
    if reduce in ("max", "min"):
        found = spread.amax(axis + 1) if reduce == "max" else spread.amin(axis + 1)
        return found.clamp(min=start) if reduce == "max" else found.clamp(max=start)
    if reduce == "prod":
        return spread.prod(axis + 1) * start
    total, count = spread.sum(axis + 1) + start, member.sum(axis + 1)
    empty = math.nan if initial is None else start
    return total if reduce == "sum" else torch.where(count > 0, total / count.clamp(min=1), empty)


TABLE: dict[Any, Callable[..., Any]] = {
    aten.histc.default: _histc,
    aten.histogram.bin_ct: _histogram,
    aten.histogram.bins_tensor: _histogram_of_edges,
    aten._histogramdd_bin_edges.default: _edges_of,
    aten._histogramdd_from_bin_cts.default: _histogram_of_counts,
    aten._histogramdd_from_bin_tensors.default: _histogram_of_columns,
    aten.segment_reduce.default: _segment_reduce,
}
