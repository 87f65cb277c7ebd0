"""Binary searches in sorted rows: searchsorted and bucketize, each one elementwise op with an unrolled bisection."""

from __future__ import annotations

from typing import Any

import torch

from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import Builder, Meta, Tensor, affine_dim
from llmos.compiler.frontend.ops.indexing import gather
from llmos.compiler.frontend.ops.reductions import number
from llmos.compiler.frontend.ops.shapes import element, loop, pad_value
from llmos.compiler.frontend.scalars import Scalar, select, to_index

MAX_STEPS = 40  # for a row of unbounded length


def search_sorted(
    b: Builder, result: Meta, edges: Tensor, values: Any, *, right: bool = False, side: str | None = None, sorter: Tensor | None = None,
    **_: Any,
) -> Tensor:  # fmt: skip
    """Lower aten.searchsorted: count the sorted `edges`, [n] or [lead..., n], before each of `values`, [any] or [lead..., m].

    All edges come before NaN.
    """
    if sorter is not None:
        edges = gather(b, Meta(sorter.shape, edges.dtype), edges, -1, sorter)
    if not isinstance(values, Tensor):
        values = b.full((), torch.float64 if isinstance(values, float) and not edges.dtype.is_floating_point else edges.dtype, values)
    n = edges.shape[-1]
    if n == 0:
        return b.full(result.shape, result.dtype, 0)
    low, high = b.sizes.bounds(n)
    if low < 1:  # an empty row has no element to read
        edges = pad_value(b, edges, [0] * edges.rank, [*[0] * (edges.rank - 1), 1], (*edges.shape[:-1], b.sizes.simplify(n + 1)), 0)
    dense, from_right = b.dense(edges), right or side == "right"
    steps = min(int(high).bit_length(), MAX_STEPS) if high != float("inf") else MAX_STEPS

    def search(v: Scalar, _: Scalar) -> list[Scalar]:
        start, end = s.constant(0, torch.int64), number(b, n, torch.int64)
        last = (end - 1).max(0)
        lead = [loop(i) for i in range(dense.rank - 1)]
        for _step in range(steps):  # probe the same midpoints as torch: with NaN edges the result depends on them
            middle = start + ((end - start) >> 1)
            edge = element(dense, [*lead, to_index(middle.min(last))]).to(v.dtype)
            reached = edge > v if from_right else edge >= v
            is_below = ~reached & (start < end)
            start, end = select(is_below, middle + 1, start), select(reached, middle, end)
        return [start.to(result.dtype)]

    rank = len(result.shape)
    (found,) = b.generic(
        [(values, b.reads(values, result.shape))],
        [(b.empty(result.shape, result.dtype), result.dtype, [affine_dim(i) for i in range(rank)])],
        ["parallel"] * rank,
        search,
    )
    return b.dense_tensor(found, result.shape, result.dtype)


def bucketize(b: Builder, result: Meta, values: Any, edges: Tensor, *, right: bool = False, **_: Any) -> Tensor:
    """Lower aten.bucketize: `search_sorted` of values of any shape among edges [n]."""
    return search_sorted(b, result, edges, values, right=right)
