"""Kernels of reductions over a row, and of what is computed along it: softmax, norms, sums.

A warp takes a row, or a block where rows are long. A row is walked once a level (codegen/loop_space.py): level 0 reduces what depends on
inputs alone, level 1 what needs the first reductions, and so on. Each thread handles every so many-th part of 16 bytes, and what it
computed of a short row stays in its registers from level to level; of a long one it is computed again. Lanes of a warp combine their
values by exchanging them, in one order, and warps by way of shared memory.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import sympy

from llmos.compiler.analysis.generic import Combiner, Generic
from llmos.compiler.analysis.windows import identity_element
from llmos.compiler.backends.cuda.kernel import WARP, BlockFrame, Grid, combine_bytes, is_multiple, kernel, num_blocks
from llmos.compiler.backends.cuda.kernels.elementwise import ACCESS_BYTES, emit_points
from llmos.compiler.codegen.access import group_dims
from llmos.compiler.codegen.builder import Value, byte_width, is_vector
from llmos.compiler.codegen.coordinates import Coord, Lane
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.evaluate import simple_combiners
from llmos.compiler.codegen.kernel import product, split_index
from llmos.compiler.codegen.loop_space import RowPlan, accesses_of, plan_rows, spread
from llmos.compiler.codegen.memory import Buffer
from llmos.compiler.codegen.row_values import RowValues
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.sizes import Expr

ROWS = 4  # of a block whose warps take a row each
LONG_ROW = 2048  # elements from which on a block takes a row
THREADS = 256  # of such a block
MAX_PARTS = 8  # parts of a row that a thread keeps in registers


def emit_rows(module: ir.Module, dispatch: Dispatch) -> Grid:
    """Append the kernel of a `row_reduction` dispatch."""
    plan = plan_rows(dispatch)
    reductions = [generic for generic in plan.generics if plan.is_row_reduction(generic.op)]
    accesses = accesses_of(plan)
    if any(simple_combiners(generic) is None for generic in reductions):  # such as the place of a maximum: a thread an output
        outputs = RowPlan(dispatch, plan.num_outer, plan.sizes[: plan.num_outer], plan.generics)
        if all(plan.is_outer(value) for value in dispatch.results):
            return emit_points(module, outputs, group_dims(accesses, outputs.sizes, range(plan.num_outer)))
    shape = _RowShape.of(plan, group_dims(accesses, plan.sizes, range(plan.num_outer, plan.rank)))
    outer = group_dims(accesses, plan.sizes, range(plan.num_outer))
    extents = [product([plan.sizes[dim] for dim in group]) for group in outer]
    threads = ROWS * WARP if shape.threads == WARP else shape.threads
    most = max(len(generic.inits) for generic in reductions) * len(reductions)
    with kernel(module, dispatch, threads, shape.width) as frame, ExitStack() as bindings:
        b, ev = frame.b, frame.emitter
        row, lane = frame.block, frame.thread
        if shape.threads == WARP:
            warp, lane = split_index(b, ev.sizes, frame.thread, [sympy.Integer(ROWS), sympy.Integer(WARP)])
            row = b.add(b.mul(frame.block, b.index(ROWS)), warp)
        with b.when(b.compare("slt", row, ev.sizes(product(extents)))), ev.scope():
            at = spread(plan, outer, split_index(b, ev.sizes, row, extents), b.index(0))
            coords = [at.get(dim, b.index(0)) for dim in range(plan.num_outer)]
            _RowEmitter(plan, shape, frame, lane, RowValues(plan, ev, frame.outputs, coords, bindings)).emit()
    blocks = num_blocks(product(extents), ROWS) if shape.threads == WARP else product(extents)
    return Grid(num_tiles=blocks, threads=threads, scratch_bytes=sympy.Integer(combine_bytes(most, shape.threads)))


@dataclass(frozen=True)
class _RowShape:
    """How threads walk a row. groups: its dims, those that are walked as one together; width: neighbors that a thread handles at a time."""

    groups: list[list[int]]
    extents: list[Expr]
    threads: int
    width: int

    @classmethod
    def of(cls, plan: RowPlan, groups: list[list[int]]) -> _RowShape:
        extents = [product([plan.sizes[dim] for dim in group]) for group in groups]
        elements = product(extents)
        most = plan.dispatch.table.bounds(elements)[1]
        is_long = not (most.is_Integer and most <= LONG_ROW)
        values = [*plan.dispatch.tensors, *plan.dispatch.results]
        width = ACCESS_BYTES // max(byte_width(value.type.element_type) for value in values)
        width = width if width >= 1 and extents and is_multiple(extents[-1], width) else 1
        return cls(groups, extents, THREADS if is_long else WARP, width)

    @property
    def parts(self) -> Expr:
        """Return how many parts of `width` elements a row has."""
        return sympy.expand(product(self.extents) / self.width)

    @property
    def is_unrolled(self) -> bool:
        """Whether each thread's parts of a row are written out, so that registers hold them."""
        return bool(self.parts.is_Integer and self.parts <= MAX_PARTS * self.threads)


Step = Callable[[dict[int, Coord], list[Value]], list[Value]]  # inner coordinates, carried values before -> after


@dataclass(frozen=True)
class _RowEmitter:
    """Emits what one thread does for its row. lane: its number among the threads of the row."""

    plan: RowPlan
    shape: _RowShape
    frame: BlockFrame
    lane: Value
    row: RowValues

    def emit(self) -> None:
        for level in range(self.plan.last_level + 1):
            self._level(level)
        with self.frame.b.when(self.frame.b.compare("eq", self.lane, self.frame.b.index(0))), self.frame.emitter.scope():
            self.row.store_outer()

    def _level(self, level: int) -> None:
        plan = self.plan
        reductions = plan.reductions_at(level)
        stored = [
            (value, buffer)
            for value, buffer in zip(plan.dispatch.results, self.frame.outputs, strict=True)
            if plan.level(value) == level and not plan.is_outer(value)
        ]
        if reductions or stored:
            self.row.bind_results(reductions, self._reduced(reductions, stored))
        self.row.bind_outer(level + 1)

    def _reduced(self, reductions: list[Generic], stored: list[tuple[Value, Buffer]]) -> list[list[Value]]:
        """One walk over the row: every reduction of a level at once, and the stores. The results of each reduction."""
        ev = self.frame.emitter
        combiners = [(generic, combiner) for generic in reductions for combiner in simple_combiners(generic) or []]
        inits = [self.row.init(generic, i) for generic in reductions for i in range(len(generic.inits))]
        carried = [ev.carried(init) for init in inits]
        identities = [identity_element(c.name, init.type) for (_, c), init in zip(combiners, inits, strict=True)]
        start = [self._many(each.type, number) for each, number in zip(carried, identities, strict=True)]

        def step(inner: dict[int, Coord], old: list[Value]) -> list[Value]:
            coords = self.row.at(inner)
            made = [
                self._combine(c, accumulator, ev.carried(self._wide(ev.contribution(generic, c, coords))))
                for (generic, c), accumulator in zip(combiners, old, strict=True)
            ]
            for value, buffer in stored:
                ev.memory.store(ev.value(value, coords), buffer, coords)
            return made

        ended = [self._across(c, value) for (_, c), value in zip(combiners, self._walk(step, start), strict=True)]
        if ended:
            combines = [lambda x, y, c=c: self._combine(c, x, y) for _, c in combiners]
            if self.shape.threads == WARP:
                ended = [self.frame.combine_warp(value, combine) for value, combine in zip(ended, combines, strict=True)]
            else:
                ended = self.frame.combine_block(ended, combines)
        ended = [self._combine(c, init, value) for (_, c), init, value in zip(combiners, carried, ended, strict=True)]
        made = iter(ev.uncarried(value, init.type) for value, init in zip(ended, inits, strict=True))
        return [[next(made) for _ in generic.inits] for generic in reductions]

    def _combine(self, combiner: Combiner, a: Value, b: Value) -> Value:
        return self.frame.emitter.combine(combiner.name, a, b)

    def _many(self, kind: ir.Type, number: float | int) -> Value:
        b = self.frame.b
        return b.splat_constant(kind, number) if self.shape.width > 1 else b.const(kind, number)

    def _wide(self, value: Value) -> Value:
        return self.frame.b.splat(value) if self.shape.width > 1 else value

    def _across(self, combiner: Combiner, value: Value) -> Value:
        """The neighbors that a thread handled, combined."""
        return self.frame.emitter.horizontal(combiner.name, value) if is_vector(value) else value

    def _walk(self, step: Step, carried: list[Value]) -> list[Value]:
        """The parts of the row that are this thread's, in order."""
        b, ev, shape = self.frame.b, self.frame.emitter, self.shape
        if shape.is_unrolled:
            for first in range(0, int(shape.parts), shape.threads):
                carried = self._part(step, carried, b.add(self.lane, b.index(first)), first + shape.threads <= int(shape.parts))
            return carried
        with b.loop(self.lane, ev.sizes(shape.parts), b.index(shape.threads), carried) as loop, ev.scope():
            loop.yield_(step(self._inner(loop.iv), loop.args))
        return loop.results

    def _part(self, step: Step, carried: list[Value], part: Value, is_whole: bool) -> list[Value]:
        """One part; where not every thread has it, the others keep what they have."""
        b, ev = self.frame.b, self.frame.emitter
        if is_whole:
            return step(self._inner(part), carried)

        def taken() -> list[Value]:
            with ev.scope():
                return step(self._inner(part), carried)

        condition = b.compare("slt", part, ev.sizes(self.shape.parts))
        return b.branch(condition, [value.type for value in carried], taken, lambda: carried)

    def _inner(self, part: Value) -> dict[int, Coord]:
        """The coordinates of a part along the row."""
        b, ev, shape = self.frame.b, self.frame.emitter, self.shape
        if not shape.groups:
            return {}
        *outer, last = split_index(b, ev.sizes, b.mul(part, b.index(shape.width)), shape.extents)
        return spread(self.plan, shape.groups, [*outer, Lane(last) if shape.width > 1 else last], b.index(0))
