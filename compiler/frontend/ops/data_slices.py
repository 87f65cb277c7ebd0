"""Slices with data-dependent ends, and slices of dimensions of data-dependent size: the program applies Python's slice rules at run time.

Positions are clamped or checked before a kernel reads by them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch

from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import Builder, Meta, Tensor
from llmos.compiler.frontend.dims import Dim
from llmos.compiler.frontend.ops import shapes
from llmos.compiler.frontend.ops.indexing import gathered
from llmos.compiler.frontend.scalars import Scalar, select

INT = torch.int64


def slice_tensor(
    b: Builder, result: Meta, x: Tensor, dim: int = 0, start: Dim | None = None, end: Dim | None = None, step: int = 1
) -> Tensor:
    """Lower aten.slice by Python's rules, at run time where an end or the size depends on data; `step` is positive."""
    dim %= x.rank
    if not b.sizes.is_pending(result.shape[dim]) and start is not None and b.sizes.is_computed(start) and step == 1:
        return _narrow_by_data(b, result, x, dim, start)
    if b.sizes.is_pending(result.shape[dim]) or any(b.sizes.is_computed(each) for each in (start, end) if each is not None):
        return _slice_by_data(b, result, x, dim, start, end, step)
    return shapes.slice_tensor(b, result, x, dim, start, end, step)


def select_index(b: Builder, result: Meta, x: Tensor, dim: int, at: Dim) -> Tensor:
    """Lower aten.select.int; the kernel checks a data-dependent index."""
    dim %= x.rank
    data = b.sizes.is_computed(at) or b.sizes.is_computed(x.shape[dim])
    return _select_by_data(b, x, dim, at) if data else shapes.select_index(b, result, x, dim, at)


def narrow(b: Builder, result: Meta, x: Tensor, dim: int, start: Dim, length: Dim) -> Tensor:
    """Lower aten.narrow; a data-dependent slice out of range is an error of the call."""
    dim %= x.rank
    data = any(b.sizes.is_computed(each) for each in (start, length, x.shape[dim]))
    return _narrow_by_data(b, result, x, dim, start) if data else shapes.narrow(b, result, x, dim, start, length)


def split(b: Builder, result: Sequence[Meta], x: Tensor, given: Any, dim: int = 0) -> list[Tensor]:
    """Lower aten.split, split_with_sizes and chunk: the sizes of the results give the end of each part."""
    dim %= x.rank
    if not any(b.sizes.is_computed(each) for each in (x.shape[dim], *[meta.shape[dim] for meta in result])):
        return shapes.split(b, result, x, given, dim)
    parts: list[Tensor] = []
    start: Any = 0
    for meta in result:
        parts.append(_narrow_by_data(b, meta, x, dim, b.sizes.simplify(start)))
        start = sympy.sympify(start) + sympy.sympify(meta.shape[dim])
    return parts


def scalar_of(b: Builder, value: Callable[[], Scalar]) -> Tensor:
    """Return a number as an int64 tensor of rank 0."""
    return b.elementwise(lambda: value(), [], INT, ())


def size_scalar(b: Builder, dim: Dim) -> Scalar:
    """Emit a size as an int64 scalar of the current body."""
    return s.constant(dim, INT) if isinstance(dim, int) else s.from_index(b.index(dim), INT)


def _slice_by_data(b: Builder, result: Meta, x: Tensor, dim: int, start: Dim | None, end: Dim | None, step: int) -> Tensor:
    """x[start:end:step] along a dimension, with data-dependent ends or a data-dependent size; the program applies Python's slice rules."""
    size = x.shape[dim]
    first = b.computed_size(None, scalar_of(b, lambda: _end(b, start, size, 0)), size)

    def length() -> Scalar:
        span = _end(b, end, size, size) - size_scalar(b, first)
        return (span.max(0) + (step - 1)) / step

    count = b.computed_size(result.shape[dim], scalar_of(b, length), size)
    return b.renamed(shapes.extract(b, x, dim, first, count, step), result.shape)


def _end(b: Builder, position: Dim | None, size: Dim, default: Dim) -> Scalar:
    """Return one end of a slice: a negative one counts from the end, then it is clamped to [0, size]."""
    if position is None:
        return size_scalar(b, default)
    given, whole = size_scalar(b, position), size_scalar(b, size)
    return select(given < 0, given + whole, given).max(0).min(whole)


def _narrow_by_data(b: Builder, result: Meta, x: Tensor, dim: int, start: Dim) -> Tensor:
    """x[start : start + length]; a slice out of range is an error of the call."""
    size, length = x.shape[dim], result.shape[dim]

    def first() -> Scalar:
        given = size_scalar(b, start)
        return select(given < 0, given + size_scalar(b, size), given)

    limit = b.sizes.simplify(sympy.sympify(size) - sympy.sympify(length))
    return shapes.extract(b, x, dim, b.computed_size(None, scalar_of(b, first), limit), length)


def _select_by_data(b: Builder, x: Tensor, dim: int, at: Dim) -> Tensor:
    """x[..., at, ...] at a data-dependent index, which the kernel checks."""
    ids = b.unsqueeze(scalar_of(b, lambda: size_scalar(b, at)), 0)
    kept = Meta((*x.shape[:dim], 1, *x.shape[dim + 1 :]), x.dtype)
    return b.squeeze(gathered(b, kept, x, {dim: ids}, lead=1, position=dim), dim)
