"""The right side of a contraction that no weight is: each tile copies a panel of it to scratch, with its prologue."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import sympy

from llmos.compiler.backends.cpu.kernels.contraction_plan import ContractionPlan
from llmos.compiler.backends.cpu.kernels.epilogue import TileCoords
from llmos.compiler.codegen.builder import Value
from llmos.compiler.codegen.coordinates import Coord, Lane
from llmos.compiler.codegen.evaluate import ValueEmitter
from llmos.compiler.codegen.kernel import split_index
from llmos.compiler.codegen.memory import Buffer
from llmos.compiler.ir.sizes import Expr


def over_lanes(ev: ValueEmitter, extent: Expr, point: Callable[[Coord], None]) -> None:
    """Call `point` over an extent by vectors, the last one under a mask."""
    b = ev.b
    high, width = ev.sizes(extent), b.index(b.lanes)
    whole = b.mul(b.div(high, width), width)
    with b.loop(b.index(0), whole, width) as loop, ev.scope():
        point(Lane(loop.iv))
    if extent.is_Integer and int(extent) % b.lanes == 0:
        return
    with b.loop(whole, high, width) as loop, ev.scope(), ev.memory.masked(b.tail_mask(b.sub(high, loop.iv))):
        point(Lane(loop.iv))


@contextmanager
def nest(ev: ValueEmitter, sizes: Sequence[Expr], dims: Sequence[int]) -> Iterator[dict[int, Coord]]:
    """Open loops over some of the root's dims, outermost first; gives their counters."""
    b = ev.b
    counters: dict[int, Coord] = {}
    with ExitStack() as stack:
        for dim in dims:
            loop = stack.enter_context(b.loop(b.index(0), ev.sizes(sizes[dim]), b.index(1)))
            stack.enter_context(ev.scope())
            counters[dim] = loop.iv
        yield counters


def flat_index(ev: ValueEmitter, sizes: Sequence[Expr], dims: Sequence[int], counters: dict[int, Coord]) -> Value:
    """Emit the row-major number of a point of some dims."""
    b, flat = ev.b, ev.b.index(0)
    for dim in dims:
        flat = b.add(b.mul(flat, ev.sizes(sizes[dim])), counters[dim])
    return flat


@dataclass(frozen=True)
class PanelCopier:
    """Emits the copy of one panel to `base`, as [k][width]. Columns past the end hold anything: no output reads them."""

    points: TileCoords
    base: Value

    @property
    def _plan(self) -> ContractionPlan:
        return self.points.plan

    def copy(self, first: Value) -> None:
        """The columns from `first` on.

        Columns that can't be walked as one (the pixels of several image rows) are copied run by run, each within one row.
        """
        ev, plan = self.points.frame.emitter, self._plan
        b, size, groups = ev.b, ev.sizes, plan.right_groups
        end = b.minimum(b.add(first, b.index(plan.width)), size(plan.n))
        if len(groups) <= 1:
            self._run(b.index(0), {}, first, b.sub(end, first))
            return
        width = size(plan.extent(groups[-1]))
        row, last = b.div(first, width), b.div(b.sub(end, b.index(1)), width)
        with b.loop(row, b.add(last, b.index(1)), b.index(1)) as loop, ev.scope():
            start = b.mul(loop.iv, width)
            low = b.binary("arith.maxsi", start, first)
            extents = [plan.extent(group) for group in groups[:-1]]
            outer = {group[-1]: index for group, index in zip(groups, split_index(b, size, loop.iv, extents), strict=False)}
            self._run(b.sub(low, first), outer, b.sub(low, start), b.sub(b.minimum(b.add(start, width), end), low))

    def _run(self, column: Value, outer: dict[int, Coord], first: Value, length: Value) -> None:
        """Neighboring columns, from coordinate `first` of the innermost n dim on, to `column` of the panel, for every k."""
        ev, plan = self.points.frame.emitter, self._plan
        b, groups = ev.b, plan.right_groups
        target = Buffer(self.base, b.f32, (), (sympy.S.One,))
        k_dims = plan.real(plan.root.k)
        width = plan.extent(groups[-1]) if groups else sympy.S.One
        longest = min(plan.width, int(width)) if width.is_Integer else plan.width
        pieces = [(b.index(at), b.tail_mask(b.sub(length, b.index(at)))) for at in range(0, longest, b.lanes)]
        with nest(ev, plan.sizes, k_dims) as counters:
            row = b.add(b.mul(flat_index(ev, plan.sizes, k_dims, counters), b.index(plan.width)), column)
            for at, mask in pieces:
                n = {**outer, **({groups[-1][-1]: Lane(b.add(first, at))} if groups else {})}
                with ev.memory.masked(mask):
                    value = b.splat(ev.value(plan.root.rhs, ev.index.apply(plan.root.rhs_map, self.points.at(n=n, k=counters))))
                    ev.memory.store(value, target, [Lane(b.add(row, at))])
