"""Strided reads of memory: each element by its place, `offset + sum(index * stride)`, in a tensor of one dimension."""

from __future__ import annotations

from collections.abc import Sequence

import sympy

from llmos.compiler.frontend.builder import Builder, Meta, Tensor
from llmos.compiler.frontend.dims import Dim
from llmos.compiler.frontend.ops.shapes import computed, element
from llmos.compiler.frontend.scalars import Scalar
from llmos.compiler.ir.bindings import arith, ir
from llmos.runtime.errors import UnsupportedError


def as_strided(b: Builder, result: Meta, memory: Tensor, size: Sequence[Dim], stride: Sequence[Dim], offset: Dim | None = None) -> Tensor:
    """`memory` [n] as `size`: storage_views.py gives every as_strided this form. The kernel checks places where sizes decide."""
    dense, first = b.dense(memory), 0 if offset is None else offset
    room = _room(b, result, memory, stride, first)
    if room[1] < 0:
        raise UnsupportedError("this view reads memory past the end of the tensor that it is a view of")

    def body(at: list[ir.Value]) -> Scalar:
        place = b.index(first)
        for index, step in zip(at, stride, strict=True):
            place = arith.addi(place, index if step == 1 else arith.muli(index, b.index(step)))
        return element(dense, [place if room[0] >= 0 else _or_outside(b, place, memory.shape[0])])

    return computed(b, result, body)


def _room(b: Builder, result: Meta, memory: Tensor, stride: Sequence[Dim], first: Dim) -> tuple[float, float]:
    """The least and the most number of elements behind the last one that is read."""
    last = sympy.sympify(first) + sum((sympy.sympify(n) - 1) * step for n, step in zip(result.shape, stride, strict=True))
    return b.sizes.bounds(b.sizes.simplify(sympy.sympify(memory.shape[0]) - 1 - last))


def _or_outside(b: Builder, place: ir.Value, size: Dim) -> ir.Value:
    """A place past the end as one that the kernel reports, also where it reads whole vectors."""
    inside = arith.cmpi(arith.CmpIPredicate.ult, place, b.index(size))
    return arith.select(inside, place, b.index(-1))
