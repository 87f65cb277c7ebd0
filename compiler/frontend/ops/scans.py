"""Scans along one dimension: cumulative sums, products, extremes and logcumsumexp.

Sums and products of floats accumulate in float64 and are rounded once for each element, as in torch on CPUs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import Builder, Meta, Tensor, compute_dtype
from llmos.compiler.frontend.ops.shapes import loop
from llmos.compiler.frontend.scalars import Scalar, element_type, from_index, select
from llmos.compiler.ir.bindings import ir

Combine = Callable[[Scalar, Scalar], Scalar]


def scan(b: Builder, x: Tensor, dim: int, combine: Combine) -> Tensor:
    """Compute out[i] = x[0] op ... op x[i] along `dim`, for a commutative `combine`."""
    x = b.dense(x)
    i64 = ir.IntegerType.get_signless(64)
    rest = (*x.shape[:dim], *x.shape[dim + 1 :])
    outs = [b.fill(x.shape, x.dtype, 0), b.fill(rest, x.dtype, 0)]
    op = ir.Operation.create(
        "tm_tensor.scan",
        results=[each.type for each in outs],
        operands=[x.value, *outs],
        attributes={
            "dimension": ir.IntegerAttr.get(i64, dim),
            "inclusive": ir.BoolAttr.get(True),
            "operandSegmentSizes": ir.DenseI32ArrayAttr.get([1, 2]),
        },
        regions=1,
    )
    kind = element_type(x.dtype)
    block = op.regions[0].blocks.append(kind, kind)
    with ir.InsertionPoint(block):
        made = combine(*[Scalar(value, x.dtype) for value in block.arguments])
        ir.Operation.create("tm_tensor.yield", operands=[made.value])
    return b.dense_tensor(op.results[0], x.shape, x.dtype)


def cumulative(combine: Combine) -> Callable[..., Tensor]:
    """Make the lowering of cumsum or cumprod."""

    def lower(b: Builder, result: Meta, x: Tensor, dim: int, **_: Any) -> Tensor:
        x = b.cast(x, result.dtype)
        if x.rank == 0:
            return x
        wide = torch.float64 if result.dtype.is_floating_point else result.dtype
        return b.cast(scan(b, b.cast(x, wide), dim % x.rank, combine), result.dtype)

    return lower


cumsum = cumulative(lambda v, w: v + w)
cumprod = cumulative(lambda v, w: v * w)


def running_extreme(largest: bool) -> Callable[..., list[Tensor]]:
    """Make cummax or cummin, which return (values, int64 indices); the last of equal numbers is chosen, and NaN propagates."""

    def lower(b: Builder, result: Sequence[Meta], x: Tensor, dim: int) -> list[Tensor]:
        if x.rank == 0:
            return [x, b.full((), torch.int64, 0)]
        dim %= x.rank
        kind = compute_dtype(x.dtype) if x.dtype != torch.bool else torch.uint8
        x = b.dense(x)
        values = b.cast(scan(b, b.cast(x, kind), dim, Scalar.max if largest else Scalar.min), x.dtype)

        def place(v: Scalar, best: Scalar) -> Scalar:
            return select(v.equals(best) | v.differs(v), from_index(loop(dim), torch.int64), 0)

        return [values, scan(b, b.elementwise(place, [x, values], torch.int64), dim, Scalar.max)]

    return lower


def logcumsumexp(b: Builder, result: Meta, x: Tensor, dim: int) -> Tensor:
    """Lower aten.logcumsumexp in float64; each step subtracts the larger of the running result and the next number."""
    if x.rank == 0:
        return x

    def combine(v: Scalar, w: Scalar) -> Scalar:
        high, low = v.max(w), v.min(w)
        same = low.equals(high) & s.absolute(low).equals(math.inf)
        return select(same, high, high + s.log1p(s.exp(low - high)))

    return b.cast(scan(b, b.cast(x, torch.float64), dim % x.rank, combine), result.dtype)
