"""Coordinates of kernels: uniform over the lanes, or different on each in a way that is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import sympy

from llmos.compiler.codegen.builder import Builder, Sizes, Value, is_vector
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.sizes import Expr
from llmos.runtime.errors import UnsupportedError


@dataclass(frozen=True)
class Lane:
    """A coordinate that advances with the lanes: base + stride * lane."""

    base: Value
    stride: Expr = sympy.S.One


@dataclass(frozen=True)
class GatherIndex:
    """A coordinate with an offset a lane that is the same all through a loop: base + offsets[lane]."""

    base: Value
    offsets: Value


Coord: TypeAlias = "Value | Lane | GatherIndex"  # or a uniform i64, or a vector of i64


@dataclass(frozen=True)
class IndexEmitter:
    """Arithmetic on coordinates, emitted into one kernel."""

    b: Builder
    sizes: Sizes

    def shift(self, coord: Coord, offset: Value, stride: Expr) -> Coord:
        """Emit coord * stride + offset."""
        return self.add(self.scale(coord, stride), offset)

    def add(self, a: Coord, b: Coord) -> Coord:
        """Emit a + b, lane by lane."""
        if isinstance(a, Lane) and isinstance(b, Lane):
            return Lane(self.b.add(a.base, b.base), a.stride + b.stride)
        if isinstance(a, GatherIndex) or isinstance(b, GatherIndex):
            return self._add_gather(a, b) if isinstance(a, GatherIndex) else self._add_gather(b, a)  # type: ignore[arg-type]
        if isinstance(b, Lane):
            a, b = b, a
        if isinstance(a, Lane):
            return self.add(self.lanes_of(a), b) if is_vector(b) else Lane(self.b.add(a.base, b), a.stride)
        return self.b.add(a, b)

    def _add_gather(self, a: GatherIndex, b: Coord) -> Coord:
        if isinstance(b, GatherIndex):
            return GatherIndex(self.b.add(a.base, b.base), self.b.binary("arith.addi", a.offsets, b.offsets))
        if isinstance(b, Lane) or is_vector(b):
            return self.b.binary("arith.addi", self.lanes_of(a), self.lanes_of(b))
        return GatherIndex(self.b.add(a.base, b), a.offsets)

    def scale(self, coord: Coord, by: Expr) -> Coord:
        """Emit coord * by, `by` a size or a number."""
        if by == 1:
            return coord
        if isinstance(coord, Lane):
            return Lane(self.b.mul(coord.base, self.sizes(by)), sympy.expand(coord.stride * by))
        if isinstance(coord, GatherIndex):
            factor = self.sizes(by)
            return GatherIndex(self.b.mul(coord.base, factor), self.b.binary("arith.muli", coord.offsets, self.b.splat(factor)))
        return self.b.mul(coord, self.sizes(by))

    def lanes_of(self, coord: Coord) -> Value:
        """Emit the coordinate of every lane as a vector of i64; a uniform one is returned as it is."""
        if isinstance(coord, GatherIndex):
            return self.b.binary("arith.addi", self.b.splat(coord.base), coord.offsets)
        if not isinstance(coord, Lane):
            return coord
        step = self.b.iota() if coord.stride == 1 else self.b.binary("arith.muli", self.b.iota(), self.b.splat(self.sizes(coord.stride)))
        return self.b.binary("arith.addi", self.b.splat(coord.base), step)

    def apply(self, affine: ir.AffineMap, coords: Sequence[Coord]) -> list[Coord]:
        """Emit the results of a map without symbols at `coords`, one for each of its dims."""
        return [self.apply_expr(expr, coords) for expr in affine.results]

    def apply_expr(self, expr: ir.AffineExpr, coords: Sequence[Coord]) -> Coord:
        """Emit one result of a map; / and mod round down, as in affine maps."""
        if isinstance(expr, ir.AffineDimExpr):
            return coords[expr.position]
        if isinstance(expr, ir.AffineConstantExpr):
            return self.b.index(expr.value)
        if isinstance(expr, ir.AffineMulExpr) and isinstance(expr.rhs, ir.AffineConstantExpr):
            return self.scale(self.apply_expr(expr.lhs, coords), sympy.Integer(expr.rhs.value))
        a, b = self.apply_expr(expr.lhs, coords), self.apply_expr(expr.rhs, coords)
        if isinstance(expr, ir.AffineAddExpr):
            return self.add(a, b)
        if isinstance(expr, ir.AffineModExpr):  # never negative, unlike arith.remsi
            a, b = self.lanes_of(a), self.lanes_of(b)
            whole = self.b.binary("arith.muli", self.b.binary("arith.floordivsi", a, b), b)
            return self.b.binary("arith.subi", a, whole)
        names = {
            ir.AffineFloorDivExpr: "arith.floordivsi",
            ir.AffineCeilDivExpr: "arith.ceildivsi",
            ir.AffineMulExpr: "arith.muli",
        }
        return self.b.binary(names[type(expr)], self.lanes_of(a), self.lanes_of(b))

    def invert(self, affine: ir.AffineMap, coords: Sequence[Coord]) -> list[Coord]:
        """Loop coordinates from those of an output; dims of size 1 that the output drops are 0.

        Raises UnsupportedError where an output's index is more than a dim.
        """
        loop: list[Coord | None] = [None] * affine.n_dims
        for expr, coord in zip(affine.results, coords, strict=True):
            if isinstance(expr, ir.AffineDimExpr):
                loop[expr.position] = coord
            elif not isinstance(expr, ir.AffineConstantExpr):
                raise UnsupportedError(f"an output indexed by {expr}")
        return [coord if coord is not None else self.b.index(0) for coord in loop]
