"""Histograms, segment reductions and membership tests, by a binary search for each number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _range_of(x: Tensor, low: float, high: float, margin: float = 1) -> tuple[Tensor, Tensor]:
    """Return the range of a histogram: the given one, or that of the data, extended by a margin if both ends are equal."""
    kind = x.dtype
    if low == high == 0 and x.numel() > 0:
        start, end = x.amin(), x.amax()
    else:
        start, end = torch.scalar_tensor(low, dtype=kind), torch.scalar_tensor(high, dtype=kind)
    same = start == end
    return torch.where(same, start - margin, start), torch.where(same, end + margin, end)


def _tally(places: Tensor, inside: Tensor, bins: Any, share: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Count the bin indices `places` [count] that are `inside`, or sum their `share`; the others go to an extra bin."""
    at = torch.where(inside, places, bins).to(torch.int64)
    kind = torch.int64 if share is None else dtype
    each = torch.ones_like(at) if share is None else share.reshape(-1).to(dtype)
    return torch.zeros([bins + 1], dtype=kind).scatter_add(0, at, each)[:bins].to(dtype)


def _histc(x: Tensor, bins: int = 100, low: float = 0, high: float = 0) -> Tensor:
    flat = x.reshape(-1)
    start, end = _range_of(flat, low, high)
    place = ((flat - start) / (end - start) * bins).floor()
    place = torch.where(flat == end, bins - 1, place)
    return _tally(place, (flat >= start) & (flat <= end), bins, None, x.dtype)


def _bin_of(x: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bin of each of x [count], and whether it is in one; the last bin includes both ends."""
    places = torch.searchsorted(edges.contiguous(), x.contiguous(), right=True) - 1
    return places.clamp(max=edges.shape[0] - 2), (x >= edges[0]) & (x <= edges[-1])


def _histogram_of_edges(x: Tensor, edges: Tensor, *, weight: Tensor | None = None, density: bool = False) -> tuple[Tensor, Tensor]:
    counts = _tally(*_bin_of(x.reshape(-1), edges), edges.shape[0] - 1, weight, x.dtype)
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
    """Return the bin edges of each column; `range` holds (low, high) for each column."""
    ends = range or [0.0] * (2 * len(bins))
    columns = x.reshape(-1, x.shape[-1]).unbind(-1)
    return [
        _histogram(column, count, range=ends[2 * i : 2 * i + 2])[1] for i, (column, count) in enumerate(zip(columns, bins, strict=True))
    ]


def _histogram_of_columns(x: Tensor, edges: Sequence[Tensor], *, weight: Tensor | None = None, density: bool = False) -> Tensor:
    """Count the points of x [points, columns] in each multidimensional bin."""
    places, inside, volume = torch.zeros((), dtype=torch.int64), torch.ones((), dtype=torch.bool), torch.ones([1], dtype=x.dtype)
    for column, ends in zip(x.reshape(-1, x.shape[-1]).unbind(-1), edges, strict=True):
        place, within = _bin_of(column, ends)
        places, inside = places * (ends.shape[0] - 1) + place, inside & within
        volume = (volume.unsqueeze(1) * (ends[1:] - ends[:-1])).flatten()
    counts = _tally(places, inside, math.prod(each.shape[0] - 1 for each in edges), weight, x.dtype)
    counts = counts / counts.sum() / volume if density else counts
    return counts.reshape([each.shape[0] - 1 for each in edges])


def _histogram_of_counts(
    x: Tensor, bins: Sequence[int], *, range: Sequence[float] | None = None, weight: Tensor | None = None, density: bool = False
) -> Tensor:
    return _histogram_of_columns(x, _edges_of(x, bins, range), weight=weight, density=density)


_FEW = 16  # up to so many test elements are compared one by one
_STARTS = {"sum": 0.0, "mean": 0.0, "prod": 1.0, "max": -math.inf, "min": math.inf}


def _segment_reduce(
    x: Tensor, reduce: str, *, lengths: Tensor | None = None, indices: Tensor | None = None, offsets: Tensor | None = None,
    axis: int = 0, unsafe: bool = False, initial: float | None = None,
) -> Any:  # fmt: skip
    """Reduce runs of x [lead..., size, rest...] along `axis` of `lengths` [lead..., count]; return [lead..., count, rest...]."""
    if offsets is not None:
        starts, ends = offsets[..., :-1], offsets[..., 1:]
    elif lengths is not None:
        ends = lengths.cumsum(-1)
        starts = ends - lengths
    else:
        return NotImplemented
    place = torch.arange(x.shape[axis]).expand([*ends.shape[:-1], x.shape[axis]])
    count = ends.shape[-1]
    segment = torch.searchsorted(ends.contiguous(), place.contiguous(), right=True)
    segment = torch.where(place >= starts[..., :1], segment, count).reshape(*place.shape, *[1] * (x.dim() - axis - 1))
    start = _STARTS[reduce] if initial is None else initial
    shape = [*x.shape[:axis], count + 1, *x.shape[axis + 1 :]]  # the last one collects elements outside of all segments
    how = {"sum": "sum", "mean": "sum", "prod": "prod", "max": "amax", "min": "amin"}[reduce]
    found = torch.full(shape, start, dtype=x.dtype).scatter_reduce(axis, segment.expand(x.shape), x, how).narrow(axis, 0, count)
    if reduce != "mean":
        return found
    number = (ends - starts).reshape(*ends.shape, *[1] * (x.dim() - axis - 1))
    return torch.where(number > 0, found / number.clamp(min=1), math.nan if initial is None else start)


def _isin(x: Any, tests: Any, *, assume_unique: bool = False, invert: bool = False) -> Tensor:
    """Whether each element of x is among the tests: searched in the sorted tests, or compared with each of a few."""
    x, tests = (each if isinstance(each, Tensor) else torch.scalar_tensor(each) for each in (x, tests))
    kind = torch.result_type(x, tests)
    flat, x = tests.reshape(-1).to(kind), x.to(kind)
    if isinstance(flat.shape[0], int) and flat.shape[0] <= _FEW:
        found: Tensor = (x.unsqueeze(-1) == flat).any(-1)
    else:
        ordered = flat.sort()[0]
        place = torch.searchsorted(ordered, x.contiguous()).clamp(max=flat.shape[0] - 1)
        found = torch.eq(ordered[place], x)
    return found.logical_not() if invert else found


TABLE: dict[Any, Callable[..., Any]] = {
    aten.histc.default: _histc,
    aten.histogram.bin_ct: _histogram,
    aten.histogram.bins_tensor: _histogram_of_edges,
    aten._histogramdd_bin_edges.default: _edges_of,
    aten._histogramdd_from_bin_cts.default: _histogram_of_counts,
    aten._histogramdd_from_bin_tensors.default: _histogram_of_columns,
    aten.segment_reduce.default: _segment_reduce,
    aten.isin.Tensor_Tensor: _isin,
    aten.isin.Tensor_Scalar: _isin,
    aten.isin.Scalar_Tensor: _isin,
}
