"""What follows a contraction's sums: each result of the dispatch, evaluated with the sums in the place of the root, and its stores.

A cheap epilogue runs on the accumulators where they are, in registers. One that is expensive to repeat for each of them in the code (an
exponential), or whose last columns are not known at compile time, runs over the finished tile in the first cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmos.compiler.analysis.generic import Generic, is_fill
from llmos.compiler.backends.cpu.arithmetic.register_tile import TileShape
from llmos.compiler.backends.cpu.kernels.contraction_plan import ContractionPlan
from llmos.compiler.codegen.builder import Value
from llmos.compiler.codegen.coordinates import Coord, GatherIndex, Lane
from llmos.compiler.codegen.kernel import Frame, split_index
from llmos.compiler.codegen.memory import Buffer

ALIGN = 64
MAX_IN_REGISTERS = 12  # scalar ops of an epilogue that is repeated in the code for each accumulator


@dataclass(frozen=True)
class TileCoords:
    """Points of the root's loops within one tile. `batch`: coordinates of the batch dims."""

    frame: Frame
    plan: ContractionPlan
    batch: Sequence[Value]

    def at(
        self,
        m: Value | None = None,
        groups: Sequence[Sequence[int]] = (),
        n: dict[int, Coord] | None = None,
        k: dict[int, Coord] | None = None,
    ) -> list[Coord]:
        """Emit loop coordinates from a flat m over `groups` and the counters of n and k; what is not given is 0."""
        b, plan = self.frame.b, self.plan
        point: list[Coord] = [b.index(0)] * plan.generic.rank
        for dim, coord in zip(plan.root.batch, self.batch, strict=True):
            point[dim] = coord
        if m is not None and groups:
            extents = [plan.extent(group) for group in groups]
            for group, index in zip(groups, split_index(b, self.frame.emitter.sizes, m, extents), strict=True):
                point[group[-1]] = index
        for dim, coord in {**(n or {}), **(k or {})}.items():
            point[dim] = coord
        return point

    def columns(self, first: Value) -> dict[int, Coord]:
        """Emit coordinates of the n dims for a vector of columns from `first` on: a Lane where the dims can be walked as one."""
        b, ev, groups = self.frame.b, self.frame.emitter, self.plan.n_groups
        if len(groups) <= 1:
            return {groups[0][-1]: Lane(first)} if groups else {}
        flat = ev.index.lanes_of(Lane(first))
        coords: dict[int, Coord] = {}
        for group in reversed(groups[1:]):
            size = ev.sizes(self.plan.extent(group))
            coords[group[-1]] = GatherIndex(b.index(0), b.binary("arith.remsi", flat, size))
            flat = b.binary("arith.divsi", flat, size)
        coords[groups[0][-1]] = GatherIndex(b.index(0), flat)
        return coords


def fits_registers(plan: ContractionPlan) -> bool:
    """Whether the epilogue runs on accumulators: few ops, none of them a function, and columns that are known."""
    before = {plan.generic.op, plan.root.rhs.owner.operation} if plan.quantized is not None else {plan.generic.op}
    generics = [Generic(op) for op in plan.dispatch.ops if op.name == "linalg.generic" and not is_fill(op) and op not in before]
    inner = [op for generic in generics for op in generic.body.operations if op.name != "linalg.yield"]
    plain = all(op.name.startswith("arith.") and not op.name.startswith(("arith.div", "arith.rem")) for op in inner)
    return plain and len(inner) <= MAX_IN_REGISTERS and plan.n.is_Integer and len(plan.n_groups) <= 1


@dataclass(frozen=True)
class Epilogue:
    """Emits the epilogue of one tile. `outputs`: where the results lie."""

    points: TileCoords
    outputs: Sequence[Buffer]

    def from_registers(self, shape: TileShape, sums: Sequence[Value], row: Value, first: Value, columns: int) -> None:
        """Emit accumulators of `shape.rows` rows, row by row, through the epilogue to memory. `columns`: how many of them are real."""
        b, ev, plan = self.points.frame.b, self.points.frame.emitter, self.points.plan
        with ev.scope():
            lanes = [self.points.columns(b.add(first, b.index(v * shape.lanes))) for v in range(shape.vectors)]
            for r in range(shape.rows):
                m = self.points.at(m=b.add(row, b.index(r)), groups=plan.m_groups)
                for v, n in enumerate(lanes):
                    left = columns - v * shape.lanes
                    point = list(m)
                    for dim, coord in n.items():
                        point[dim] = coord
                    with ev.memory.masked(b.tail_mask(b.index(left)) if left < shape.lanes else None):
                        self._finish(sums[r * shape.vectors + v], point)

    def from_tile(self, row: Value, first: Value, count: Value, start: Value | None = None) -> None:
        """Emit `count` rows of the tile in scratch, from its row `start` on, through the epilogue to memory."""
        frame, plan = self.points.frame, self.points.plan
        b, ev, n = frame.b, frame.emitter, plan.n
        with b.loop(b.index(0), count, b.index(1)) as loop, ev.scope():
            m, at = b.add(row, loop.iv), b.mul(b.add(loop.iv, start or b.index(0)), b.index(plan.width))
            if n.is_Integer and int(n) % plan.width == 0:
                self._row(m, at, first, masked=False)
                return
            end = b.add(first, b.index(plan.width))
            with b.when(b.compare("sle", end, ev.sizes(n))), ev.scope():
                self._row(m, at, first, masked=False)
            with b.when(b.compare("sgt", end, ev.sizes(n))), ev.scope():
                self._row(m, at, first, masked=True)

    def _row(self, m: Value, at: Value, first: Value, masked: bool) -> None:
        frame, plan = self.points.frame, self.points.plan
        b, ev = frame.b, frame.emitter
        with b.loop(b.index(0), b.index(plan.width), b.index(b.lanes)) as loop, ev.scope():
            n = b.add(first, loop.iv)
            mask = b.tail_mask(b.sub(ev.sizes(plan.n), n)) if masked else None
            with ev.memory.masked(mask):
                element = plan.arithmetic.accumulator_type
                total = b.load(b.address(frame.scratch, b.add(at, loop.iv), element), b.vec(element), min(ALIGN, 4 * b.lanes))
                self._finish(total, self.points.at(m=m, groups=plan.m_groups, n=self.points.columns(n)))

    def _finish(self, total: Value, point: list[Coord]) -> None:
        """The epilogue of one vector of sums, and its stores."""
        frame, plan = self.points.frame, self.points.plan
        b, ev, root = frame.b, frame.emitter, plan.value
        coords = ev.index.apply(plan.root.out_map, point)
        if not plan.starts_at_zero:
            add = "arith.addf" if plan.root.is_float else "arith.addi"
            total = b.binary(add, b.splat(ev.value(plan.generic.inits[0], coords)), total)
        with ev.binding(root, as_=total):
            for value, buffer in zip(plan.dispatch.results, self.outputs, strict=True):
                at = ev.result_coords(value, root, coords)
                ev.memory.store(ev.value(value, at), buffer, at)
