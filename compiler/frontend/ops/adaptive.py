"""Adaptive pooling: output i reduces the window [floor(i * in / out), ceil((i + 1) * in / out)), whose length varies with i.

One reduction runs over the length of the longest window. Positions past the end of a shorter window are clamped into it and masked out.
The work is proportional to the windows, and the same code serves static and dynamic sizes.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sympy
import torch
from torch.utils._sympy.functions import FloorDiv

from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import Builder, Meta, Tensor, affine_dim, compute_dtype
from llmos.compiler.frontend.dims import Dim
from llmos.compiler.frontend.ops import reductions
from llmos.compiler.frontend.ops.shapes import computed, element, loop
from llmos.compiler.frontend.ops.windows import Ints
from llmos.compiler.frontend.scalars import Scalar, to_index
from llmos.compiler.ir.bindings import ir

INT = torch.int64
Reduce = Callable[[Scalar, Scalar, Scalar, Sequence[Scalar]], list[Scalar]]


@dataclass(frozen=True)
class Windows:
    """The windows over the last `dimensions` of `x`; `ends(dim)` gives int64 vectors [out] of first and past-the-end positions."""

    b: Builder
    x: Tensor
    shape: tuple[Dim, ...]  # of the result
    dimensions: int

    @property
    def lead(self) -> int:
        """Return the number of leading dimensions, which aren't pooled."""
        return self.x.rank - self.dimensions

    @property
    def longest(self) -> tuple[Dim, ...]:
        """Return an upper bound of the longest window's length in each dimension; exact for static sizes."""
        return tuple(self._longest(size, out) for size, out in zip(self.x.shape[self.lead :], self.shape[self.lead :], strict=True))

    def _longest(self, size: Dim, out: Dim) -> Dim:
        # A window's exact start lies r / out past an element, where r is a multiple of gcd(size, out).
        common = math.gcd(size, out) if isinstance(size, int) and isinstance(out, int) else 1
        most = FloorDiv(sympy.sympify(size) + 2 * sympy.sympify(out) - common - 1, sympy.sympify(out))
        return self.b.sizes.simplify(most)

    def ends(self, dim: int) -> tuple[Tensor, Tensor]:
        """Return the first and the past-the-end position of each window along pooled dimension `dim`, int64 [out] each."""
        size, out = (reductions.number(self.b, each[self.lead + dim], INT) for each in (self.x.shape, self.shape))
        vector = Meta((self.shape[self.lead + dim],), INT)

        def first(at: list[ir.Value]) -> Scalar:
            return s.from_index(at[0], INT) * size / out

        def end(at: list[ir.Value]) -> Scalar:
            return ((s.from_index(at[0], INT) + 1) * size + out - 1) / out

        return computed(self.b, vector, first), computed(self.b, vector, end)

    def reduce(self, starts: Sequence[tuple[torch.dtype, s.Number]], body: Reduce) -> list[Tensor]:
        """Reduce with `body(element, flat spatial position, is inside the window, accumulators)` from the initial values `starts`.

        Return one tensor of the result's shape for each (dtype, start).
        """
        b, x, rank = self.b, self.b.dense(self.x), self.x.rank
        bounds = [each for dim in range(self.dimensions) for each in self.ends(dim)]
        along = [[affine_dim(self.lead + dim)] for dim in range(self.dimensions) for _ in range(2)]
        extent = b.dense_tensor(b.empty(self.longest, x.dtype), self.longest, x.dtype)  # gives the window loops their extents

        def step(*scalars: Scalar) -> list[Scalar]:
            count = 2 * self.dimensions
            inside, flat, place = s.constant(True, torch.bool), s.constant(0, INT), []
            for dim, (first, end) in enumerate(zip(scalars[:count:2], scalars[1:count:2], strict=True)):
                at = first + s.from_index(loop(rank + dim), INT)
                inside = inside & (at < end)
                place.append(at.min(end - 1))
                flat = flat * reductions.number(b, x.shape[self.lead + dim], INT) + place[-1]
            value = element(x, [*[loop(i) for i in range(self.lead)], *[to_index(each) for each in place]])
            return body(value, flat, inside, scalars[count + 1 :])

        out = [affine_dim(i) for i in range(rank)]
        made = b.generic(
            [*zip(bounds, along, strict=True), (extent, [affine_dim(rank + i) for i in range(self.dimensions)])],
            [(b.fill(self.shape, dtype, start), dtype, out) for dtype, start in starts],
            ["parallel"] * rank + ["reduction"] * self.dimensions,
            step,
        )
        return [b.dense_tensor(value, self.shape, dtype) for value, (dtype, _) in zip(made, starts, strict=True)]


def average(b: Builder, result: Meta, x: Tensor, dimensions: int) -> Tensor:
    """Average each window; elements outside a window, NaN included, don't affect its mean."""
    kind = compute_dtype(x.dtype)
    windows = Windows(b, x, result.shape, dimensions)
    (total,) = windows.reduce([(kind, 0)], lambda v, _, inside, acc: [acc[0] + s.select(inside, v.to(kind), 0)])
    lengths = []
    for dim in range(dimensions):
        length = b.elementwise(lambda first, end: end - first, windows.ends(dim), INT)
        for _ in range(dimensions - dim - 1):
            length = b.unsqueeze(length, length.rank)
        lengths.append(length)
    return b.elementwise(lambda v, *counts: v / functools.reduce(operator.mul, counts).to(kind), [total, *lengths], result.dtype)


def adaptive_max_pool(dimensions: int) -> Callable[..., list[Tensor]]:
    """Make aten.adaptive_max_poolNd over `dimensions` dims: (values, int64 indices into the flat spatial dimensions).

    The first of equal maxima is chosen; NaN propagates.
    """

    def lower(b: Builder, result: Sequence[Meta], x: Tensor, size: Ints) -> list[Tensor]:
        def better(v: Scalar, flat: Scalar, inside: Scalar, running: Sequence[Scalar]) -> list[Scalar]:
            best, at = running
            taken = inside & ((v > best) | v.differs(v) | (at < 0))
            return [s.select(taken, v, best), s.select(taken, flat, at)]

        return Windows(b, x, result[0].shape, dimensions).reduce([(x.dtype, s.lowest(x.dtype)), (INT, -1)], better)

    return lower
