"""Kernels of scatters: a tile copies a part of the tensor, then makes the updates that fall into it, in order. In place nothing is copied.

Tiles share the coordinates that loop counters are (compiler/analysis/scatters.py), and blocks of the first axis whose coordinate data
gives: of the few that there are, each reads all places and leaves out what isn't its own. No two tiles write one element, and each
element's updates come in the order of the loops, so the bits depend on no thread. Every place that data gives is checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property

import sympy

from llmos.compiler.analysis.scatters import Scatter, scatter_of
from llmos.compiler.codegen.builder import Builder, Sizes, Value, byte_width
from llmos.compiler.codegen.coordinates import Coord, Lane
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.evaluate import ValueEmitter
from llmos.compiler.codegen.kernel import Frame, Launch, ceil_div, kernel, product, split_index
from llmos.compiler.codegen.lanes import lane_loop
from llmos.compiler.codegen.scatter_update import UpdateEmitter, UpdateSteps
from llmos.compiler.ir.attributes import IN_PLACE
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.sizes import Expr

COLUMNS, FEW_COLUMNS = 1024, 32  # of one tile, along the last axis: where all are written at one place, and each at its own
BLOCKS = 16  # of one axis, at most
WORTH = 16  # elements that a block copies for each place that it reads in vain


def emit_scatter(module: ir.Module, dispatch: Dispatch) -> Launch:
    """Append the kernel of a `scatter` dispatch."""
    found = next(s for s in (scatter_of(op) for op in dispatch.ops) if s is not None)
    plan = _ScatterPlan(dispatch, found)
    with kernel(module, dispatch) as frame, frame.tiles() as tile:
        _TileEmitter.of(plan, frame, tile).emit()
    return Launch(product(plan.grid))


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
    def lane_loop(self) -> int | None:
        """The loop that runs along the last axis."""
        last = len(self.shape) - 1
        return next((loop for loop, axis in self.scatter.free_axes.items() if axis == last), None)

    @cached_property
    def outer(self) -> dict[int, int]:
        """The other free loops, with their axes: each tile has one coordinate of each."""
        return {loop: axis for loop, axis in self.scatter.free_axes.items() if loop != self.lane_loop}

    @cached_property
    def ordered(self) -> list[int]:
        return [loop for loop in range(len(self.bounds)) if loop not in self.scatter.free_axes]

    @cached_property
    def inner_axes(self) -> list[int]:
        """What a tile walks: every axis but those of `outer`."""
        return [axis for axis in range(len(self.shape)) if axis not in self.outer.values()]

    @cached_property
    def divided(self) -> int | None:
        """The axis that is taken in blocks: the first whose coordinate is not a counter."""
        return next((axis for axis in self.inner_axes if axis not in self.scatter.free_axes.values()), None)

    @cached_property
    def chunk(self) -> int:
        """Columns of a tile."""
        return COLUMNS if self.steps.is_place_uniform else FEW_COLUMNS

    @cached_property
    def chunks(self) -> Expr:
        return ceil_div(self.shape[-1], self.chunk) if self.lane_loop is not None else sympy.S.One

    @cached_property
    def blocks(self) -> Expr:
        """As many as each has more to copy than places to read in vain."""
        if self.divided is None or not self.steps.is_place_uniform:
            return sympy.S.One
        places = product([self.bounds[loop] for loop in self.ordered])
        elements = product([self.shape[axis] for axis in self.inner_axes])
        worth = sympy.floor(elements / (WORTH * sympy.Max(1, places)))
        return sympy.Max(1, sympy.Min(BLOCKS, worth, self.shape[self.divided]))

    @property
    def grid(self) -> list[Expr]:
        """Tiles: a coordinate of each loop of `outer`, a block of the divided axis, a chunk of columns."""
        return [*[self.shape[axis] for axis in self.outer.values()], self.blocks, self.chunks]

    @property
    def is_in_place(self) -> bool:
        """Whether the result lies where the base does."""
        return IN_PLACE in self.dispatch.func.attributes

    def fills(self, loop: int, axis: int) -> bool:
        """Whether a loop runs at least as far as its axis."""
        return bool(self.dispatch.table.bounds(self.bounds[loop] - self.shape[axis])[0] >= 0)

    @cached_property
    def steps(self) -> UpdateSteps:
        return UpdateSteps.of(self.scatter, self.lane_counter if self.lane_loop is not None else None)

    @property
    def lane_counter(self) -> Value:
        assert self.lane_loop is not None
        return self.scatter.counters[self.lane_loop]


@dataclass(frozen=True)
class _TileEmitter:
    """Emits one tile: its part of the copy, and its updates."""

    plan: _ScatterPlan
    frame: Frame
    at: Mapping[int, Coord]  # of the loops of `plan.outer`
    columns: tuple[Value, Value] | None  # [begin, end) along the last axis, where a loop of its own runs along it
    block: tuple[Value, Value]  # [begin, end) of the divided axis

    @classmethod
    def of(cls, plan: _ScatterPlan, frame: Frame, tile: Value) -> _TileEmitter:
        """The tile of a number."""
        *at, block, chunk = split_index(frame.b, frame.emitter.sizes, tile, plan.grid)
        columns = _columns(plan, frame, chunk) if plan.lane_loop is not None else None
        return cls(plan, frame, dict(zip(plan.outer, at, strict=True)), columns, _block(plan, frame, block))

    @property
    def b(self) -> Builder:
        return self.frame.b

    @property
    def ev(self) -> ValueEmitter:
        return self.frame.emitter

    @property
    def size(self) -> Sizes:
        return self.frame.emitter.sizes

    def emit(self) -> None:
        """Copy, unless the result lies where the base does; then update."""
        if not self.plan.is_in_place:
            self._copy()
        with self._in_order():
            self._updates(self.plan.ordered, dict(self.at))

    # -- the copy
    def _copy(self) -> None:
        """The tile's part of the base."""
        coords: dict[int, Coord] = {axis: self.at[loop] for loop, axis in self.plan.outer.items()}
        if self._is_run:
            self._copy_run(coords)
        else:
            self._copy_along(self.plan.inner_axes, coords)

    @property
    def _is_run(self) -> bool:
        """Whether the part lies together in memory, in the base as in the result."""
        first = self.plan.divided
        dense = self.plan.scatter.base in self.ev.buffers and self.plan.chunks == 1
        return (
            dense
            and first is not None
            and all(axis >= first for axis in self.plan.inner_axes)
            and all(a < first for a in self.plan.outer.values())
        )

    def _copy_run(self, coords: dict[int, Coord]) -> None:
        b, source, target = self.b, self.ev.buffers[self.plan.scatter.base], self.frame.outputs[0]
        assert self.plan.divided is not None
        low, high = self.block
        start = [*[coords[axis] for axis in range(self.plan.divided)], low, *[b.index(0)] * (len(self.plan.shape) - self.plan.divided - 1)]
        width = byte_width(self.plan.scatter.base.type.element_type)
        count = b.mul(b.sub(high, low), self.size(sympy.expand(target.strides[self.plan.divided] * width)))
        addresses = []
        for buffer in (target, source):
            offset = self.ev.memory.locate(buffer, start)
            assert not isinstance(offset, Lane)
            addresses.append(b.address(buffer.pointer, b.mul(offset, b.index(width)), b.i8))
        b.op("llvm.intr.memcpy", [*addresses, count], None, isVolatile=ir.BoolAttr.get(False))

    def _copy_along(self, axes: Sequence[int], coords: dict[int, Coord]) -> None:
        if not axes:
            self._copy_point(coords)
            return
        axis, *rest = axes
        low, high = self._range(axis)
        if axis == len(self.plan.shape) - 1:
            size = self.plan.shape[axis]
            static = int(size) if size.is_Integer and self.plan.chunks == 1 and axis != self.plan.divided else None
            lane_loop(self.frame, low, high, lambda at, _: self._copy_point({**coords, axis: at}), [], static)
            return
        with self.b.loop(low, high, self.b.index(1)) as loop, self.ev.scope():
            self._copy_along(rest, {**coords, axis: loop.iv})

    def _copy_point(self, coords: dict[int, Coord]) -> list[Value]:
        at = [coords[axis] for axis in range(len(self.plan.shape))]
        self.ev.memory.store(self.ev.value(self.plan.scatter.base, at), self.frame.outputs[0], at)
        return []

    def _range(self, axis: int) -> tuple[Value, Value]:
        if axis == self.plan.divided:
            return self.block
        if axis == len(self.plan.shape) - 1 and self.columns is not None:
            return self.columns
        return self.b.index(0), self.size(self.plan.shape[axis])

    # -- the updates
    @cached_property
    def updates(self) -> UpdateEmitter:
        return UpdateEmitter(self.plan.scatter, self.plan.steps, self.ev, self.frame.outputs[0])

    def _checked(self, values: dict[Value, Coord]) -> AbstractContextManager[None]:
        """Where the place of an update is inside, and the tile's own."""
        low, high = self.block

        def is_own(place: Value) -> Value:
            return self.b.compare("ult", self.b.sub(place, low), self.b.sub(high, low))

        divided = self.plan.divided if self.plan.blocks != 1 else None
        return self.updates.checked(values, {} if divided is None else {divided: is_own})

    @contextmanager
    def _in_order(self) -> Iterator[None]:
        """Where the tile's coordinates are ones that updates have."""
        b = self.b
        short = [loop for loop, axis in self.plan.outer.items() if not self.plan.fills(loop, axis)]
        if not short:
            yield
            return
        inside = [b.compare("slt", self.at[loop], self.size(self.plan.bounds[loop])) for loop in short]
        condition = inside[0]
        for each in inside[1:]:
            condition = b.binary("arith.andi", condition, each)
        with b.when(condition), self.ev.scope():
            yield

    def _updates(self, loops: Sequence[int], at: dict[int, Coord]) -> None:
        """Every update of the tile, in order."""
        if loops:
            with self.b.loop(self.b.index(0), self.size(self.plan.bounds[loops[0]]), self.b.index(1)) as loop, self.ev.scope():
                self._updates(loops[1:], {**at, loops[0]: loop.iv})
            return
        values: dict[Value, Coord] = {self.plan.scatter.counters[loop]: coord for loop, coord in at.items()}
        self.updates.compute(values, self.plan.steps.uniform)
        if self.columns is None:
            with self._checked(values):
                self.updates.write(values)
        elif self.plan.steps.is_place_uniform:
            with self._checked(values):
                lane_loop(self.frame, *self._columns_with_updates(), lambda lane, _: self._update_lanes(values, lane), [], None)
        else:
            with self.b.loop(*self._columns_with_updates(), self.b.index(1)) as loop, self.ev.scope():
                own = {**values, self.plan.lane_counter: loop.iv}
                self.updates.compute(own, self.plan.steps.moving)
                with self._checked(own):
                    self.updates.write(own)

    def _columns_with_updates(self) -> tuple[Value, Value]:
        assert self.columns is not None and self.plan.lane_loop is not None
        low, high = self.columns
        bound = self.plan.bounds[self.plan.lane_loop]
        return low, high if bound == self.plan.shape[-1] else self.b.minimum(high, self.size(bound))

    def _update_lanes(self, values: dict[Value, Coord], lane: Coord) -> list[Value]:
        own = {**values, self.plan.lane_counter: lane}
        self.updates.compute(own, self.plan.steps.moving)
        self.updates.write(own)
        return []


def _columns(plan: _ScatterPlan, frame: Frame, number: Value) -> tuple[Value, Value]:
    """[begin, end) of the columns of a chunk."""
    b, size = frame.b, frame.emitter.sizes(plan.shape[-1])
    if plan.chunks == 1:
        return b.index(0), size
    low = b.mul(number, b.index(plan.chunk))
    return low, b.minimum(b.add(low, b.index(plan.chunk)), size)


def _block(plan: _ScatterPlan, frame: Frame, number: Value) -> tuple[Value, Value]:
    """[begin, end) of a block of the divided axis."""
    b, sizes = frame.b, frame.emitter.sizes
    if plan.divided is None or plan.blocks == 1:
        return b.index(0), sizes(plan.shape[plan.divided]) if plan.divided is not None else b.index(1)
    size, blocks = sizes(plan.shape[plan.divided]), sizes(plan.blocks)
    low, high = (b.div(b.mul(each, size), blocks) for each in (number, b.add(number, b.index(1))))
    return low, high
