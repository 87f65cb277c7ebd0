"""Sums, means and maxima of table rows over bags of ids."""

from __future__ import annotations

import math

import torch
from torch import Tensor

aten = torch.ops.aten
SUM, MEAN, MAX = 0, 1, 2


def _embedding_bag(
    table: Tensor, ids: Tensor, offsets: Tensor, scale_grad_by_freq: bool = False, mode: int = SUM, sparse: bool = False,
    weights: Tensor | None = None, include_last_offset: bool = False, padding_idx: int = -1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Reduce rows of table [rows, width] by ids [n] and offsets [bags]; return [bags, width], bags of ids, bag sizes and arg maxima.

    The second to fourth results serve training: zeros or empty where torch doesn't need them.
    """
    starts = offsets[:-1] if include_last_offset else offsets
    bag = torch.searchsorted(starts, torch.arange(ids.shape[0], dtype=starts.dtype), right=True) - 1
    kept = ids != padding_idx if padding_idx >= 0 else torch.ones_like(ids, dtype=torch.bool)
    rows = torch.nn.functional.embedding(ids, table)
    count = torch.zeros(starts.shape[0], dtype=torch.int64).index_add(0, bag, kept.to(torch.int64))
    sizes = count.to(offsets.dtype)
    bags = bag.to(offsets.dtype)
    if mode == MAX:
        answer, places = _maxima(rows, ids, bag, kept, count)
        return answer, bags, sizes, places.to(offsets.dtype)
    answer = _sums(rows, bag, kept, weights, starts.shape[0])
    if mode == MEAN:
        return (answer / count.clamp(min=1).unsqueeze(1)).to(table.dtype), bags, sizes, sizes.clone()
    is_plain = padding_idx < 0 and table.dtype in (torch.float32, torch.float16)
    nothing = torch.zeros_like(sizes)
    return answer.to(table.dtype), bags[:0] if is_plain else bags, nothing, nothing.clone()


def _sums(rows: Tensor, bag: Tensor, kept: Tensor, weights: Tensor | None, num_bags: int) -> Tensor:
    """Add rows to their bags in order, in at least float32; a skipped row is not multiplied by zero, since it may be inf."""
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
    weighted = wide if weights is None else wide * weights.to(wide.dtype).unsqueeze(1)
    zeros = torch.zeros([num_bags, rows.shape[1]], dtype=wide.dtype)
    return zeros.index_add(0, bag, torch.where(kept.unsqueeze(1), weighted, torch.zeros((), dtype=wide.dtype)))


def _maxima(rows: Tensor, ids: Tensor, bag: Tensor, kept: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest element of each bag and column, and its id; zeros for an empty bag.

    As in torch, a NaN propagates if it is the first element of its bag; any other NaN is ignored.
    """
    spread, last = bag.unsqueeze(1).expand(rows.shape), ids.shape[0] - 1
    counted = kept.unsqueeze(1) & ~rows.isnan()
    taken = torch.where(counted, rows, torch.full((), -math.inf, dtype=rows.dtype))
    shape, order = [count.shape[0], rows.shape[1]], torch.arange(ids.shape[0])
    largest = torch.full(shape, -math.inf, dtype=rows.dtype).scatter_reduce(0, spread, taken, "amax")
    at = torch.where((taken == largest[bag]) & counted, order.unsqueeze(1), torch.full(rows.shape, last))
    place = torch.full(shape, last).scatter_reduce(0, spread, at, "amin")
    start = torch.full([count.shape[0]], last).scatter_reduce(0, bag, torch.where(kept, order, last), "amin")
    starts_with_nan = rows[start].isnan()
    largest = torch.where(starts_with_nan, torch.full((), math.nan, dtype=rows.dtype), largest)
    place = torch.where(starts_with_nan, start.unsqueeze(1), place)
    found = (count > 0).unsqueeze(1)
    return torch.where(found, largest, 0.0).to(rows.dtype), torch.where(found, ids[place], 0)


TABLE = {aten._embedding_bag.default: _embedding_bag, aten._embedding_bag_forward_only.default: _embedding_bag}
