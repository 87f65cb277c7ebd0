"""One update of a scatter, emitted into a kernel of any target: what it computes, the check of its place, and its write."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from llmos.compiler.analysis.scatters import Scatter
from llmos.compiler.codegen.builder import Builder, Value
from llmos.compiler.codegen.coordinates import Coord
from llmos.compiler.codegen.evaluate import ValueEmitter
from llmos.compiler.codegen.indices import is_in_range
from llmos.compiler.codegen.memory import Buffer
from llmos.compiler.ir.bindings import ir
from llmos.runtime.native.abi import INDEX_OUT_OF_RANGE


@dataclass(frozen=True)
class UpdateSteps:
    """The ops of one update by what they need: nothing that moves with the lanes, the lane, the element that is there.

    placing: those of the first that the place depends on.
    """

    uniform: tuple[ir.Operation, ...]
    placing: tuple[ir.Operation, ...]
    moving: tuple[ir.Operation, ...]
    combining: tuple[ir.Operation, ...]
    is_place_uniform: bool

    @classmethod
    def of(cls, scatter: Scatter, lane: Value | None = None) -> UpdateSteps:
        """Return the steps of a scatter. lane: the induction variable that the lanes run along, if there is one."""
        combining = _behind(scatter.body, {scatter.held})
        moving = [op for op in _behind(scatter.body, {lane}) if op not in combining] if lane is not None else []
        uniform = [op for op in scatter.body if op not in combining and op not in moving]
        shifting = {result for op in moving for result in op.results}
        placing = _before(uniform, scatter.place)
        is_place_uniform = not any(at in shifting for at in scatter.place)
        return cls(tuple(uniform), tuple(placing), tuple(moving), tuple(combining), is_place_uniform)


@dataclass(frozen=True)
class UpdateEmitter:
    """Emits updates of `out`, where the result lies. values: what an update's ops have computed so far, and its induction variables."""

    scatter: Scatter
    steps: UpdateSteps
    ev: ValueEmitter
    out: Buffer

    @property
    def b(self) -> Builder:
        """Return the builder of the kernel."""
        return self.ev.b

    def compute(self, values: dict[Value, Coord], ops: Sequence[ir.Operation]) -> None:
        """Emit some ops of an update; their results join `values`."""
        for op in ops:
            self.ev.body_op(op, values, [])

    @contextmanager
    def checked(self, values: dict[Value, Coord], own: Mapping[int, Callable[[Value], Value]]) -> Iterator[None]:
        """Open a branch where the place of an update is inside; an error where it is outside. own: by axis, whether a coordinate is one of
        this tile's, which leaves others out."""
        b = self.b
        valid: list[Value] = []
        owned: list[Value] = []
        for axis, at in enumerate(self.scatter.place):
            if any(at == self.scatter.counters[loop] and axis == free for loop, free in self.scatter.free_axes.items()):
                continue
            size = self.ev.dispatch.shapes.shape(self.scatter.base)[axis]
            place = self.ev.index.lanes_of(self.ev.operand(at, values))
            if not is_in_range(at, size, self.ev.dispatch.table):
                place = b.op("llvm.freeze", [place], place.type)
                values[at] = place
                valid.append(b.compare("ult", place, self.ev.sizes(size)))
            if axis in own:
                owned.append(own[axis](place))
        if valid:
            with b.when(b.binary("arith.xori", self._all(valid), b.const(b.i1, 1))):
                b.store(b.const(b.i32, INDEX_OUT_OF_RANGE), self.ev.guards.error, 4)
        if not valid and not owned:
            yield
            return
        with b.when(self._all([*valid, *owned])), self.ev.scope():
            yield

    def _all(self, conditions: Sequence[Value]) -> Value:
        return functools.reduce(functools.partial(self.b.binary, "arith.andi"), conditions)

    def write(self, values: dict[Value, Coord]) -> None:
        """Emit one update, or one a lane, at a place that was checked."""
        at = [self.ev.operand(place, values) for place in self.scatter.place]
        for op in self.steps.combining:
            if op.name == "tensor.extract" and op.operands[0] == self.scatter.held:
                values[op.results[0]] = self.ev.memory.load(self.out, at)
            else:
                self.ev.body_op(op, values, [])
        self.ev.memory.store(self.ev.index.lanes_of(self.ev.operand(self.scatter.insert.operands[0], values)), self.out, at)


def _behind(body: Sequence[ir.Operation], values: set[Value]) -> list[ir.Operation]:
    """The ops that depend on any of some values."""
    reached, found = set(values), []
    for op in body:
        if any(operand in reached for operand in op.operands):
            reached.update(op.results)
            found.append(op)
    return found


def _before(body: Sequence[ir.Operation], values: Sequence[Value]) -> list[ir.Operation]:
    """The ops that some values depend on, in order."""
    needed: set[Value] = set(values)
    found: list[ir.Operation] = []
    for op in reversed(body):
        if any(result in needed for result in op.results):
            needed.update(op.operands)
            found.insert(0, op)
    return found
