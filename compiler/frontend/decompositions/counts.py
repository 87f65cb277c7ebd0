"""Searches and counts: every edge is compared with every number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _searchsorted(
    edges: Tensor, values: Any, *, out_int32: bool = False, right: bool = False, side: str | None = None, sorter: Tensor | None = None
) -> Tensor:
    """How many edges come before each value; every edge is compared."""
    values = values if isinstance(values, Tensor) else torch.scalar_tensor(values, dtype=edges.dtype)
    if sorter is not None:
        edges = edges.gather(-1, sorter)
    flat = values.reshape(1) if values.dim() == 0 else values
    after = edges.unsqueeze(-2) > flat.unsqueeze(-1) if right or side == "right" else edges.unsqueeze(-2) >= flat.unsqueeze(-1)
    count: Tensor = (~after).sum(-1).reshape(values.shape)
    return count.to(torch.int32 if out_int32 else torch.int64)


def _bucketize(values: Any, edges: Tensor, *, out_int32: bool = False, right: bool = False) -> Tensor:
    return _searchsorted(edges, values, out_int32=out_int32, right=right)


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


def _histogram_of_edges(x: Tensor, edges: Tensor, *, weight: Tensor | None = None, density: bool = False) -> tuple[Tensor, Tensor]:
    flat = x.reshape(-1, 1)
    last = torch.arange(edges.shape[0] - 1) == edges.shape[0] - 2
    hits = (flat >= edges[:-1]) & ((flat < edges[1:]) | (last & (flat == edges[1:])))
    share = weight.reshape(-1, 1) if weight is not None else 1
    counts = (hits.to(x.dtype) * share).sum(0)
    return (counts / counts.sum() / (edges[1:] - edges[:-1]) if density else counts), edges.clone()


def _histogram(
    x: Tensor, bins: int = 100, *, range: Sequence[float] | None = None, weight: Tensor | None = None, density: bool = False
) -> tuple[Tensor, Tensor]:
    low, high = range or (0, 0)
    start, end = _range_of(x.reshape(-1), low, high, 0.5)
    edges = start + (end - start) / bins * torch.arange(bins + 1, dtype=x.dtype)
    edges = torch.where(torch.arange(bins + 1) == bins, end, edges)
    return _histogram_of_edges(x, edges, weight=weight, density=density)


TABLE: dict[Any, Callable[..., Any]] = {
    aten.searchsorted.Tensor: _searchsorted,
    aten.searchsorted.Scalar: _searchsorted,
    aten.bucketize.Tensor: _bucketize,
    aten.bucketize.Scalar: _bucketize,
    aten.histc.default: _histc,
    aten.histogram.bin_ct: _histogram,
    aten.histogram.bins_tensor: _histogram_of_edges,
}
