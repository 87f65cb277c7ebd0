"""Ops about the order of numbers along one dimension: sorting, the k largest, medians, the most frequent number.

Each is a stable sort of integer keys (compiler/analysis/sorts.py). Keys order as their numbers do: NaN is the largest, and -0.0 equals 0.0.
For descending order keys are complemented, so that NaN comes first and equal numbers keep their order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch
from torch.utils._sympy.functions import FloorDiv

from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import Builder, Meta, Tensor
from llmos.compiler.frontend.dims import Dim
from llmos.compiler.frontend.ops.indexing import gather
from llmos.compiler.frontend.ops.reductions import number, with_indices
from llmos.compiler.frontend.ops.scans import scan
from llmos.compiler.frontend.ops.shapes import computed, element, extract, loop
from llmos.compiler.frontend.scalars import Scalar, element_type, from_index, select, to_index
from llmos.compiler.ir.bindings import arith, ir

INT = torch.int64
_KEYS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_INFINITIES = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80, torch.float32: 0x7F800000, torch.float64: 0x7FF0000000000000}


def order_key(v: Scalar, descending: bool = False) -> Scalar:
    """Return a signed integer of the width of `v` that orders as the numbers do."""
    kind = _KEYS[v.dtype.itemsize]
    limits = torch.iinfo(kind)
    bits = s.cast(v, kind) if v.dtype == torch.bool else s.bitcast(v, kind)
    if v.is_float:
        magnitude = bits & limits.max
        signed = select(bits < 0, ~magnitude, magnitude)
        nan, zero = magnitude > _INFINITIES[v.dtype], magnitude.equals(0)
        bits = select(nan, bits.like(limits.max), select(zero, bits.like(0), signed))
    elif v.is_unsigned and v.dtype != torch.bool:
        bits = bits ^ limits.min
    return ~bits if descending else bits


def sort_by(b: Builder, keys: Tensor, payloads: Sequence[Tensor]) -> list[Tensor]:
    """Sort payloads, of the shape of the integer `keys`, stably by ascending keys along the last dimension."""
    operands = [b.dense(each) for each in (keys, *payloads)]
    i64 = ir.IntegerType.get_signless(64)
    attributes = {
        "dimension": ir.IntegerAttr.get(i64, keys.rank - 1),
        "operandSegmentSizes": ir.DenseI32ArrayAttr.get([0, len(operands)]),
    }
    values = [each.value for each in operands]
    op = ir.Operation.create("tm_tensor.sort", results=[v.type for v in values], operands=values, attributes=attributes, regions=1)
    block = op.regions[0].blocks.append(*[element_type(each.dtype) for each in operands for _ in range(2)])
    with ir.InsertionPoint(block):
        ordered = arith.cmpi(arith.CmpIPredicate.sle, block.arguments[0], block.arguments[1])
        ir.Operation.create("tm_tensor.yield", operands=[ordered])
    return [b.dense_tensor(value, each.shape, each.dtype) for value, each in zip(list(op.results)[1:], operands[1:], strict=True)]


def _last(x: Tensor, dim: int) -> list[int]:
    """Return the permutation that moves `dim` to the end."""
    return [*[i for i in range(x.rank) if i != dim], dim]


def sorted_along(b: Builder, x: Tensor, dim: int, descending: bool = False) -> list[Tensor]:
    """Return (values, int64 indices) of x sorted stably along `dim`."""
    order = _last(x, dim)
    transposed = b.dense(b.permute(x, order))
    keys = b.elementwise(lambda v: order_key(v, descending), [transposed], _KEYS[x.dtype.itemsize])
    places = computed(b, Meta(transposed.shape, INT), lambda at: from_index(at[-1], INT))
    return [b.permute(each, [order.index(i) for i in range(x.rank)]) for each in sort_by(b, keys, [transposed, places])]


def sort(b: Builder, result: Sequence[Meta], x: Tensor, dim: int = -1, descending: bool = False, **_: Any) -> list[Tensor]:
    """Lower aten.sort: (values, int64 indices); the sort is stable, NaN is the largest."""
    return [x, b.full((), INT, 0)] if x.rank == 0 else sorted_along(b, x, dim % x.rank, descending)


def stable_sort(
    b: Builder, result: Sequence[Meta], x: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> list[Tensor]:
    """Lower aten.sort.stable, as `sort`."""
    return sort(b, result, x, dim, descending)


def argsort(b: Builder, result: Meta, x: Tensor, dim: int = -1, descending: bool = False, **_: Any) -> Tensor:
    """Lower aten.argsort: the int64 indices of `sort`."""
    return sort(b, [], x, dim, descending)[1]


def stable_argsort(b: Builder, result: Meta, x: Tensor, *, stable: bool, dim: int = -1, descending: bool = False) -> Tensor:
    """Lower aten.argsort.stable: the int64 indices of `sort`."""
    return sort(b, [], x, dim, descending)[1]


def top_k(
    b: Builder, result: Sequence[Meta], x: Tensor, k: Dim, dim: int = -1, largest: bool = True, ordered: bool = True, **_: Any
) -> list[Tensor]:
    """Lower aten.topk: (values, int64 indices) of the k largest or smallest, always sorted."""
    if x.rank == 0:
        return [b.reshape(each, meta.shape) for each, meta in zip((x, b.full((), INT, 0)), result, strict=True)]
    return [extract(b, each, dim % x.rank, 0, k) for each in sorted_along(b, x, dim % x.rank, largest)]


def kth_value(b: Builder, result: Sequence[Meta], x: Tensor, k: Dim, dim: int = -1, keepdim: bool = False) -> list[Tensor]:
    """Lower aten.kthvalue: (value, int64 index) of the k-th smallest, counted from 1."""
    if x.rank == 0:
        return [x, b.full((), INT, 0)]
    chosen = [extract(b, each, dim % x.rank, b.sizes.simplify(k - 1), 1) for each in sorted_along(b, x, dim % x.rank)]
    return [b.reshape(each, meta.shape) for each, meta in zip(chosen, result, strict=True)]


def median(ignore_nan: bool) -> Callable[..., list[Tensor]]:
    """Make aten.median.dim or nanmedian.dim: (values, indices) of the lower median; NaN propagates unless it is ignored."""

    def lower(b: Builder, result: Sequence[Meta], x: Tensor, dim: int, keepdim: bool = False) -> list[Tensor]:
        if x.rank == 0:
            return [x, b.full((), INT, 0)]
        dim %= x.rank
        ordered = sorted_along(b, x, dim)
        if not x.dtype.is_floating_point:
            middle = b.sizes.simplify(FloorDiv(sympy.sympify(x.shape[dim]) - 1, 2))
            chosen = [extract(b, each, dim, middle, 1) for each in ordered]
        else:
            place = _middle(b, x, dim, ignore_nan)
            chosen = [gather(b, Meta(place.shape, each.dtype), each, dim, place) for each in ordered]
        return [b.reshape(each, meta.shape) for each, meta in zip(chosen, result, strict=True)]

    return lower


def _middle(b: Builder, x: Tensor, dim: int, ignore_nan: bool) -> Tensor:
    """Return the rank of the median of floats in their order, in which NaN comes last."""
    above = torch.iinfo(_KEYS[x.dtype.itemsize]).max
    numbers = b.reduce(b.elementwise(lambda v: order_key(v).differs(above), [x], INT), [dim], 0, lambda v, total: total + v, INT, True)

    def place(count: Scalar) -> Scalar:
        size = number(b, x.shape[dim], INT)
        return ((count - 1) / 2).max(0) if ignore_nan else select(count < size, count, (size - 1) / 2)

    return b.elementwise(place, [numbers], INT)


def median_of_all(ignore_nan: bool) -> Callable[..., Tensor]:
    """Make aten.median or nanmedian over all elements, rank 0; NaN (of integers the least) for an empty tensor."""

    def lower(b: Builder, result: Meta, x: Tensor) -> Tensor:
        if b.sizes.equal(b.sizes.product(x.shape), 0):
            return b.full((), x.dtype, math.nan if x.dtype.is_floating_point else torch.iinfo(x.dtype).min)
        flat = b.reshape(x, (b.sizes.product(x.shape),))
        return median(ignore_nan)(b, [Meta((), x.dtype), Meta((), INT)], flat, 0)[0]

    return lower


def mode(b: Builder, result: Sequence[Meta], x: Tensor, dim: int = -1, keepdim: bool = False) -> list[Tensor]:
    """Lower aten.mode: (values, indices) of the most frequent number: the smallest of several, at its last position."""
    if x.rank == 0:
        return [x, b.full((), INT, 0)]
    dim %= x.rank
    values, indices = sorted_along(b, x, dim)
    dense = b.dense(values)

    def start(at: list[ir.Value]) -> Scalar:
        """Return the position of an element that differs from the one before, else 0."""
        place = from_index(at[dim], INT)
        before = [to_index((place - 1).max(0)) if i == dim else each for i, each in enumerate(at)]
        return select(element(dense, at).equals(element(dense, before)), place.like(0), place)

    starts = scan(b, computed(b, Meta(x.shape, INT), start), dim, Scalar.max)
    lengths = b.elementwise(lambda first: from_index(loop(dim), INT) - first, [starts], INT)
    longest = with_indices("gt")(b, [], lengths, dim, True)[1]
    chosen = [gather(b, Meta(longest.shape, each.dtype), each, dim, longest) for each in (values, indices)]
    return [b.reshape(each, meta.shape) for each, meta in zip(chosen, result, strict=True)]
