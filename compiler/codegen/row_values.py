"""Values of one row of a `row_reduction` dispatch, on any target: what has one element a row, starts of reductions, coordinates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from llmos.compiler.analysis.generic import Generic
from llmos.compiler.codegen.builder import Value
from llmos.compiler.codegen.coordinates import Coord
from llmos.compiler.codegen.evaluate import ValueEmitter
from llmos.compiler.codegen.loop_space import RowPlan
from llmos.compiler.codegen.memory import Buffer


@dataclass(frozen=True)
class RowValues:
    """outer: coordinates of the row; outputs: where the dispatch's results go; bindings: end with the row."""

    plan: RowPlan
    emitter: ValueEmitter
    outputs: Sequence[Buffer]
    outer: Sequence[Coord]
    bindings: ExitStack

    def bind(self, value: Value, as_: Value | Callable[[Sequence[Coord]], Value]) -> None:
        """Let a value be what was computed, until the row ends."""
        self.bindings.enter_context(self.emitter.binding(value, as_=as_))

    def bind_results(self, generics: Sequence[Generic], values: Sequence[Sequence[Value]]) -> None:
        """Bind the results of reductions."""
        for generic, made in zip(generics, values, strict=True):
            for result, value in zip(generic.op.results, made, strict=True):
                self.bind(result, value)

    def bind_outer(self, level: int) -> None:
        """Evaluate the one-element-a-row values that are ready at a level, outside the loops over the row."""
        plan = self.plan
        for generic in plan.generics:
            for value in generic.op.results:
                ready = generic.is_elementwise and value not in self.emitter.bound and plan.level(value) <= level
                if ready and plan.is_outer(value) and plan.is_read_by_rows(value):
                    self.bind(value, self.emitter.value(value, self._start(len(plan.dispatch.shapes.shape(value)))))

    def init(self, generic: Generic, index: int) -> Value:
        """Emit what a result of a reduction starts with."""
        return self.emitter.value(
            generic.inits[index], self.emitter.index.apply(generic.maps[generic.num_inputs + index], self._start(generic.rank))
        )

    def at(self, inner: Mapping[int, Coord]) -> list[Coord]:
        """Return the coordinates of a point of the row. inner: by dim, 0 where there is none."""
        zero = self.emitter.b.index(0)
        return [*self.outer, *[inner.get(dim, zero) for dim in range(self.plan.num_outer, self.plan.rank)]]

    def store_outer(self) -> None:
        """Emit the stores of what has one element a row."""
        for value, buffer in zip(self.plan.dispatch.results, self.outputs, strict=True):
            if self.plan.is_outer(value):
                point = self._start(len(self.plan.dispatch.shapes.shape(value)))
                self.emitter.memory.store(self.emitter.value(value, point), buffer, point)

    def _start(self, rank: int) -> list[Coord]:
        """The row's first point in a space of so many dims."""
        return [*self.outer, *[self.emitter.b.index(0)] * (rank - self.plan.num_outer)]
