"""Kernels of reductions over a row, and of what is computed along it.

A dispatch with reductions over its inner dims (softmax, layer norm, RMS norm, L2 norm, pooling of the last dims) becomes one loop over
rows; a row is walked once per level: level 0 reduces what depends on inputs alone, level 1 what depends on the first reductions, and so
on, while the row stays in L1.
What a later level needs and is expensive to compute again is kept in a row of scratch, or read back from the output that holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeAlias

import sympy

from llmos.compiler.analysis.generic import Generic
from llmos.compiler.analysis.windows import identity_element
from llmos.compiler.codegen.access import group_dims
from llmos.compiler.codegen.builder import Value
from llmos.compiler.codegen.coordinates import Coord, Lane
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.evaluate import simple_combiners
from llmos.compiler.codegen.kernel import Frame, Launch, kernel, product, split_index
from llmos.compiler.codegen.lanes import lane_loop, scalar_loop
from llmos.compiler.codegen.loop_space import RowPlan, accesses_of, plan_rows, spread
from llmos.compiler.codegen.memory import Buffer
from llmos.compiler.codegen.row_values import RowValues
from llmos.compiler.codegen.sums import BLOCK, CHAIN, block_level, loop_over_blocks, summed, with_rests
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.sizes import Expr


def emit_rows(module: ir.Module, dispatch: Dispatch) -> Launch:
    """Append the kernel of a `row_reduction` dispatch."""
    plan = plan_rows(dispatch)
    accesses = accesses_of(plan)
    outer = group_dims(accesses, plan.sizes, range(plan.num_outer))
    inner = group_dims(accesses, plan.sizes, range(plan.num_outer, plan.rank))
    slots = _assign_slots(plan)
    row_elements = product(plan.sizes[plan.num_outer :])
    extents = [product([plan.sizes[dim] for dim in group]) for group in outer]
    with kernel(module, dispatch) as frame, frame.tiles() as tile, ExitStack() as bindings:
        b = frame.b
        at = spread(plan, outer, split_index(b, frame.emitter.sizes, tile, extents), b.index(0))
        coords = [at.get(dim, b.index(0)) for dim in range(plan.num_outer)]
        _RowEmitter(plan, inner, slots, frame, RowValues(plan, frame.emitter, frame.outputs, coords, bindings)).emit()
    slot_bytes = sum((row_elements * 8 + 64 for _ in slots), sympy.Integer(0))
    return Launch(product(extents), sympy.expand(slot_bytes))


def _assign_slots(plan: RowPlan) -> dict[Value, int]:
    """A scratch row for each kept value that no output holds."""
    kept = [v for level in range(plan.last_level + 1) for v in plan.kept_at(level) if v not in plan.dispatch.results]
    return {value: slot for slot, value in enumerate(dict.fromkeys(kept))}


Step: TypeAlias = Callable[[dict[int, Coord], Sequence[Value]], list[Value]]  # inner coordinates, carried values before -> after


@dataclass(frozen=True)
class _Pass:
    """One pass over a row. `sums`: which carried values are sums; `blocks`: `block_level` of them."""

    step: Step
    vectorized: bool
    sums: list[bool]
    blocks: tuple[int, int] | None


@dataclass(frozen=True)
class _RowEmitter:
    """Emits one row. `inner`: groups of its dims; `slots`: scratch rows."""

    plan: RowPlan
    inner: list[list[int]]
    slots: dict[Value, int]
    frame: Frame
    row: RowValues

    def emit(self) -> None:
        for level in range(self.plan.last_level + 1):
            self._level(level)
        self.row.store_outer()

    def _level(self, level: int) -> None:
        plan = self.plan
        reductions = plan.reductions_at(level)
        targets = self._targets(level)
        if reductions or targets:
            self.row.bind_results(reductions, self._walk(reductions, targets))
        for value, buffer, inner_only in targets:
            self.row.bind(value, self._reader(buffer, inner_only))
        self.row.bind_outer(level + 1)

    def _targets(self, level: int) -> list[tuple[Value, Buffer, bool]]:
        """(value, where it is written, whether that is a scratch row) of the rows stored at this level."""
        plan = self.plan
        targets: list[tuple[Value, Buffer, bool]] = []
        for value, buffer in zip(plan.dispatch.results, self.frame.outputs, strict=True):
            if plan.level(value) == level and not plan.is_outer(value):
                targets.append((value, buffer, False))
        return targets + [(value, self._scratch_row(value), True) for value in plan.kept_at(level) if value in self.slots]

    def _scratch_row(self, value: Value) -> Buffer:
        frame, b = self.frame, self.frame.b
        inner = self.plan.sizes[self.plan.num_outer :]
        offset = sympy.expand(self.slots[value] * (product(inner) * 8 + 64))
        kind = value.type.element_type
        return Buffer.dense(b.address(frame.scratch, frame.emitter.sizes(offset), b.i8), kind, inner)

    def _reader(self, buffer: Buffer, inner_only: bool) -> Callable[[Sequence[Coord]], Value]:
        num_outer, ev = self.plan.num_outer, self.frame.emitter
        return lambda coords: ev.memory.load(buffer, coords[num_outer:] if inner_only else coords)

    def _walk(self, reductions: list[Generic], targets: list[tuple[Value, Buffer, bool]]) -> list[list[Value]]:
        """One pass over the row: every reduction of a level at once, and the stores."""
        ev, b = self.frame.emitter, self.frame.b
        simple = [simple_combiners(generic) for generic in reductions]
        vectorized = all(found is not None for found in simple)
        inits = [[self.row.init(generic, i) for i in range(len(generic.inits))] for generic in reductions]
        if vectorized:
            start = [
                b.splat_constant(init.type, identity_element(c.name, init.type))
                for found, row in zip(simple, inits, strict=True)
                for c, init in zip(found or [], row, strict=True)
            ]
        else:
            start = [ev.carried(init) for row in inits for init in row]

        def step(inner: dict[int, Coord], carried: Sequence[Value]) -> list[Value]:
            coords = self.row.at(inner)
            made: list[Value] = []
            for generic, found in zip(reductions, simple, strict=True):
                old = list(carried[len(made) : len(made) + len(generic.inits)])
                made += self._combine(generic, found, coords, old) if vectorized else ev.accumulate(generic, coords, old)
            for value, buffer, inner_only in targets:
                ev.memory.store(ev.value(value, coords), buffer, coords[self.plan.num_outer :] if inner_only else coords)
            return made

        sums = summed(reductions)
        blocks = block_level(self.plan.dispatch.table, self._extents(), BLOCK if vectorized else CHAIN) if any(sums) else None
        ended = self._nest(0, {}, _Pass(step, vectorized, sums, blocks), with_rests(b, start, sums) if blocks is not None else start)
        rows: list[list[Value]] = []
        position = 0
        for _generic, found, row in zip(reductions, simple, inits, strict=True):
            mine = ended[position : position + len(row)]
            position += len(row)
            if vectorized:
                mine = [ev.combine(c.name, init, ev.horizontal(c.name, v)) for c, init, v in zip(found or [], row, mine, strict=True)]
            else:
                mine = [ev.uncarried(value, init.type) for value, init in zip(mine, row, strict=True)]
            rows.append(mine)
        return rows

    def _combine(self, generic: Generic, found: object, coords: list[Coord], old: list[Value]) -> list[Value]:
        ev, b = self.frame.emitter, self.frame.b
        made: list[Value] = []
        for combiner, accumulator in zip(found or [], old, strict=True):  # type: ignore[call-overload]
            new = ev.combine(combiner.name, accumulator, b.splat(ev.contribution(generic, combiner, coords)))
            made.append(b.select(ev.memory.mask, new, accumulator) if ev.memory.mask is not None else new)
        return made

    def _nest(self, depth: int, inner: dict[int, Coord], walk: _Pass, carried: list[Value]) -> list[Value]:
        b, ev = self.frame.b, self.frame.emitter
        if depth == len(self.inner):
            lane: dict[int, Coord] = inner
            if walk.vectorized and not self.inner:  # a row of one element: lane 0 alone
                with ev.memory.masked(b.tail_mask(b.index(1))):
                    return walk.step({self.plan.rank - 1: Lane(b.index(0))}, carried)
            return walk.step(lane, carried)
        group, extent = self.inner[depth], self._extents()[depth]

        def body(index: Coord, values: Sequence[Value]) -> list[Value]:
            here = {**inner, **dict.fromkeys(group, b.index(0)), group[-1]: index}
            return self._nest(depth + 1, here, walk, list(values))

        def run(low: Value, high: Value, values: list[Value], static: int | None = None) -> list[Value]:
            if walk.vectorized and depth == len(self.inner) - 1:
                return lane_loop(self.frame, low, high, body, values, static)
            return scalar_loop(self.frame, low, high, body, values)

        low, high = b.index(0), ev.sizes(extent)
        if walk.blocks is not None and walk.blocks[0] == depth:
            return loop_over_blocks(b, low, high, walk.blocks[1], carried, walk.sums, run)
        return run(low, high, carried, int(extent) if extent.is_Integer else None)

    def _extents(self) -> list[Expr]:
        """The length of each loop over a row, outermost first."""
        return [product([self.plan.sizes[dim] for dim in group]) for group in self.inner]
