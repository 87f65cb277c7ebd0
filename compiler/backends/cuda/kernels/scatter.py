"""Kernels of scatters: each thread has elements of its own, copies those from the base, then makes the updates of them, in order.

A thread has one coordinate of each axis that a loop counts along (compiler/analysis/scatters.py). Of the first axis whose coordinate data
gives it has every `PARTS`th, so it reads all places and leaves out what isn't its own. No two threads write one element, and each
element's updates come in the order of the loops, so the bits depend on no thread. In place nothing is copied. Every place that data gives
is checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import sympy

from llmos.compiler.analysis.scatters import Scatter, scatter_of
from llmos.compiler.backends.cuda.kernel import BlockFrame, Grid, kernel, num_blocks
from llmos.compiler.codegen.builder import Value
from llmos.compiler.codegen.coordinates import Coord
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.kernel import product, split_index
from llmos.compiler.codegen.scatter_update import UpdateEmitter, UpdateSteps
from llmos.compiler.ir.attributes import IN_PLACE
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.sizes import Expr

THREADS = 128
PARTS = 64  # of the axis whose coordinate data gives


def emit_scatter(module: ir.Module, dispatch: Dispatch) -> Grid:
    """Append the kernel of a `scatter` dispatch."""
    plan = _ScatterPlan(dispatch, next(found for found in (scatter_of(op) for op in dispatch.ops) if found is not None))
    total = product(plan.grid)
    with kernel(module, dispatch, THREADS) as frame:
        b, ev = frame.b, frame.emitter
        number = b.add(b.mul(frame.block, b.index(THREADS)), frame.thread)
        with b.when(b.compare("slt", number, ev.sizes(total))), ev.scope():
            part, *at = split_index(b, ev.sizes, number, plan.grid)
            _ThreadEmitter(plan, frame, part, dict(zip(plan.scatter.free_axes, at, strict=True))).emit()
    return Grid(num_tiles=num_blocks(total, THREADS), threads=THREADS)


@dataclass(frozen=True)
class _ScatterPlan:
    """What is known of a scatter before it is emitted."""

    dispatch: Dispatch
    scatter: Scatter

    @cached_property
    def shape(self) -> tuple[Expr, ...]:
        return self.dispatch.shapes.shape(self.scatter.base)

    @cached_property
    def bounds(self) -> list[Expr]:
        return [self.dispatch.shapes.index(bound) for bound in self.scatter.bounds]

    @cached_property
    def inner_axes(self) -> list[int]:
        """What a thread walks: axes that no loop counts along."""
        return [axis for axis in range(len(self.shape)) if axis not in self.scatter.free_axes.values()]

    @property
    def grid(self) -> list[Expr]:
        """Threads: a part of the first inner axis, a coordinate of each other one, the last of which moves fastest."""
        parts = sympy.Integer(PARTS if self.inner_axes else 1)
        return [parts, *[self.shape[axis] for axis in self.scatter.free_axes.values()]]


@dataclass(frozen=True)
class _ThreadEmitter:
    """Emits what one thread does. at: its coordinates, by the loop that counts along their axes."""

    plan: _ScatterPlan
    frame: BlockFrame
    part: Value
    at: dict[int, Value]

    def emit(self) -> None:
        b, scatter, ev = self.frame.b, self.plan.scatter, self.frame.emitter
        if IN_PLACE not in self.plan.dispatch.func.attributes:
            self._copy(self.plan.inner_axes, {scatter.free_axes[loop]: coord for loop, coord in self.at.items()})
        inside = b.const(b.i1, 1)
        for loop, coord in self.at.items():
            inside = b.binary("arith.andi", inside, b.compare("slt", coord, ev.sizes(self.plan.bounds[loop])))
        ordered = [loop for loop in range(len(self.plan.bounds)) if loop not in scatter.free_axes]
        with b.when(inside), ev.scope():
            self._update(ordered, dict(self.at))

    def _copy(self, axes: Sequence[int], coords: dict[int, Value]) -> None:
        """The thread's elements of the base."""
        b, ev, plan = self.frame.b, self.frame.emitter, self.plan
        if not axes:
            place: list[Coord] = [coords[axis] for axis in range(len(plan.shape))]
            ev.memory.store(ev.value(plan.scatter.base, place), self.frame.outputs[0], place)
            return
        axis, *rest = axes
        start, step = (self.part, PARTS) if axis == plan.inner_axes[0] else (b.index(0), 1)
        with b.loop(start, ev.sizes(plan.shape[axis]), b.index(step)) as loop, ev.scope():
            self._copy(rest, {**coords, axis: loop.iv})

    def _update(self, loops: Sequence[int], at: dict[int, Value]) -> None:
        """Every update, in order."""
        b, ev, scatter = self.frame.b, self.frame.emitter, self.plan.scatter
        if loops:
            with b.loop(b.index(0), ev.sizes(self.plan.bounds[loops[0]]), b.index(1)) as loop, ev.scope():
                self._update(loops[1:], {**at, loops[0]: loop.iv})
            return
        updates = UpdateEmitter(scatter, UpdateSteps.of(scatter), ev, self.frame.outputs[0])
        values: dict[Value, Coord] = {scatter.counters[loop]: coord for loop, coord in at.items()}
        updates.compute(values, updates.steps.placing)
        with updates.checked(values, dict.fromkeys(self.plan.inner_axes[:1], self._is_own)):
            updates.compute(values, [op for op in updates.steps.uniform if op not in updates.steps.placing])
            updates.write(values)

    def _is_own(self, place: Value) -> Value:
        """Whether a coordinate of the first inner axis is one of this thread's."""
        b = self.frame.b
        return b.compare("eq", b.binary("arith.andi", place, b.index(PARTS - 1)), self.part)
