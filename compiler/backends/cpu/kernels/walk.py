"""A walk over a loop space, a vector at a time, that writes values where they belong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import sympy

from llmos.compiler.codegen.builder import Value
from llmos.compiler.codegen.coordinates import Coord
from llmos.compiler.codegen.kernel import Frame, ceil_div, product, split_index
from llmos.compiler.codegen.lanes import lane_loop
from llmos.compiler.codegen.loop_space import RowPlan, spread
from llmos.compiler.codegen.memory import Buffer
from llmos.compiler.ir.sizes import Expr

CHUNK = 4096  # elements of one tile

CpuTarget = tuple[Value, Buffer]


@dataclass(frozen=True)
class Walk:
    """Lanes along the last group of dims; a tile is some neighbors along the group before, or a part of a long one."""

    plan: RowPlan
    groups: list[list[int]]

    @cached_property
    def _extents(self) -> list[Expr]:
        """Sizes of the groups, at least two."""
        extents = [product([self.plan.sizes[dim] for dim in group]) for group in self.groups]
        return [*[sympy.S.One] * (2 - len(extents)), *extents]

    @property
    def _rows(self) -> int:
        """Neighbors along the group before the last one in a tile."""
        lanes = self._extents[-1]
        return max(1, CHUNK // max(1, int(lanes))) if lanes.is_Integer else 1

    @property
    def _grid(self) -> list[Expr]:
        *outer, rows, lanes = self._extents
        return [*outer, ceil_div(rows, self._rows), ceil_div(lanes, CHUNK)]

    @property
    def num_tiles(self) -> Expr:
        """Return the size of the grid."""
        return sympy.expand(product(self._grid))

    def emit(self, frame: Frame, tile: Value, targets: Sequence[CpuTarget]) -> None:
        """Emit one tile of each of the values, which lie as the loop space does."""
        b, size = frame.b, frame.emitter.sizes
        *_, row_extent, lane_extent = self._extents
        is_whole, rows = self._grid[-1] == 1, b.index(self._rows)
        *at, block, chunk = split_index(b, size, tile, self._grid)
        low = b.mul(chunk, b.index(CHUNK))
        high = size(lane_extent) if is_whole else b.minimum(b.add(low, b.index(CHUNK)), size(lane_extent))
        first = b.mul(block, rows)
        last = b.minimum(b.add(first, rows), size(row_extent))
        static = int(lane_extent) if lane_extent.is_Integer and is_whole else None
        with b.loop(first, last, b.index(1)) as loop, frame.emitter.scope():
            row = [loop.iv] if len(self.groups) > 1 else []
            self._row(frame, [*at, *row], (low, high, static), targets)

    def _row(self, frame: Frame, outer: list[Coord], lanes: tuple[Value, Value, int | None], targets: Sequence[CpuTarget]) -> None:
        b, ev = frame.b, frame.emitter

        def point(lane: Coord, _: Sequence[Value]) -> list[Value]:
            place = spread(self.plan, self.groups, [*outer, lane] if self.groups else [], b.index(0))
            coords = [place.get(dim, b.index(0)) for dim in range(self.plan.rank)]
            for value, buffer in targets:
                ev.memory.store(ev.value(value, coords), buffer, coords)
            return []

        low, high, static = lanes
        if static == 1:
            point(b.index(0), [])
        else:
            lane_loop(frame, low, high, point, [], static)
