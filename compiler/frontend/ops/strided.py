"""Strided reads of a rank-1 tensor: each element is at `offset + sum(index * stride)`."""

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
    """Lower aten.as_strided: read `memory` [n] as `size` (storage_views.py gives this form).

    The kernel checks positions if they depend on dynamic sizes. Raises UnsupportedError for a view that always reads past the end.
    """
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
    """Return the bounds of the number of elements after the last one read."""
    last = sympy.sympify(first) + sum((sympy.sympify(n) - 1) * step for n, step in zip(result.shape, stride, strict=True))
    return b.sizes.bounds(b.sizes.simplify(sympy.sympify(memory.shape[0]) - 1 - last))


def _or_outside(b: Builder, place: ir.Value, size: Dim) -> ir.Value:
    """Replace an index past the end by -1, which the kernel reports also where it reads whole vectors."""
    inside = arith.cmpi(arith.CmpIPredicate.ult, place, b.index(size))
    return arith.select(inside, place, b.index(-1))
