"""The left side of a tile of a contraction: rows read where they lie, evaluated into scratch, or windows of an image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import sympy

from llmos.compiler.analysis.generic import compose
from llmos.compiler.backends.cpu.arithmetic.register_tile import Strided
from llmos.compiler.backends.cpu.kernels.contraction_plan import ContractionPlan
from llmos.compiler.backends.cpu.kernels.epilogue import TileCoords
from llmos.compiler.backends.cpu.kernels.implicit_gemm import WindowReader
from llmos.compiler.backends.cpu.kernels.panels import flat_index, nest, over_lanes
from llmos.compiler.codegen.builder import Builder, Value
from llmos.compiler.codegen.coordinates import Coord, Lane
from llmos.compiler.codegen.kernel import Frame
from llmos.compiler.codegen.memory import Buffer
from llmos.compiler.codegen.sums import is_long
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.sizes import Expr

ROW_PADDING = 16  # elements between evaluated rows, so that rows of a power of two don't share cache sets


@dataclass(frozen=True)
class Rows:
    """Row r starts at base + (r - first) * stride elements of `type`, dense along k.

    is_long: whether a number of k that isn't known may be more than a block of a sum.
    """

    b: Builder
    base: Value
    stride: Value
    first: Value
    type: ir.Type
    is_long: bool

    def block(self, row: Value, num_rows: int) -> Strided:
        """Return the rows from `row` on, as an operand of the register tile."""
        b = self.b
        start = b.address(self.base, b.mul(b.sub(row, self.first), self.stride), self.type)
        return Strided(start, self.stride, b.index(1), self.is_long)


def scratch_of_rows(plan: ContractionPlan, chunk: int) -> Expr:
    """Return the bytes of scratch for the left side of a tile of `chunk` rows: the rows, or a run of zeros around an image."""
    if plan.windows is not None:
        return 4 * plan.windows.run if plan.windows.padded else sympy.S.Zero
    return _prepared_bytes(plan, chunk) + (sympy.S.Zero if plan.in_place else 4 * chunk * (plan.k + ROW_PADDING))


def _prepared_bytes(plan: ContractionPlan, chunk: int) -> int:
    """Of rows in the form in which they are multiplied, where that isn't as they lie."""
    return chunk * plan.arithmetic.prepared_row_bytes(int(plan.k)) if plan.k.is_Integer else 0


def write_zeros(frame: Frame, plan: ContractionPlan, offset: Expr) -> None:
    """Emit the run of zeros (or zero points) that windows outside of an image read, once a call. `offset`: bytes into scratch."""
    b, ev, windows = frame.b, frame.emitter, plan.windows
    if windows is not None and windows.padded:
        run = Buffer(b.address(frame.scratch, ev.sizes(offset), b.i8), windows.kind, (windows.run,), (sympy.S.One,))
        over_lanes(ev, windows.run, lambda k: ev.memory.store(b.const(windows.kind, windows.padding), run, [k]))


@dataclass(frozen=True)
class LeftSide:
    """Emits the rows of a tile. `offset`: bytes into scratch, of `scratch_of_rows`; `chunk`: rows that it has room for."""

    points: TileCoords
    offset: Expr
    chunk: int

    @property
    def plan(self) -> ContractionPlan:
        """Return what is known of the contraction."""
        return self.points.plan

    def rows(self, low: Value, high: Value, fresh: Value | None) -> Rows | WindowReader:
        """Emit rows [low, high), unless they are read in place. `fresh`: whether they aren't those of the tile before; None for always."""
        ev, plan = self.points.frame.emitter, self.plan
        if plan.windows is None:
            rows = self._in_place() if plan.in_place else self._evaluated(low, high, fresh)
            return self._prepared(rows, low, high, fresh) if _prepared_bytes(plan, self.chunk) else rows
        run_of_zeros = ev.b.address(self.points.frame.scratch, ev.sizes(self.offset), ev.b.i8)
        point = dict(zip(plan.root.batch, self.points.batch, strict=True))
        return WindowReader(ev, plan.windows, plan.sizes, tuple(plan.real(plan.root.m)), point, run_of_zeros)

    def _rows(self, base: Value, stride: Value, first: Value, element: ir.Type) -> Rows:
        plan = self.plan
        return Rows(self.points.frame.b, base, stride, first, element, is_long(plan.dispatch.table, plan.k))

    def _in_place(self) -> Rows:
        b, ev, plan = self.points.frame.b, self.points.frame.emitter, self.plan
        buffer = ev.buffers[plan.left]
        base = ev.memory.locate(buffer, ev.index.apply(plan.root.lhs_map, self.points.at()))
        stride: Expr = sympy.S.Zero
        if plan.left_groups:
            row = plan.left_groups[-1][-1]
            forms = [compose(expr, [{dim: 1} for dim in range(len(plan.sizes))]) or {} for expr in plan.root.lhs_map.results]
            stride = sympy.Add(*[form.get(row, 0) * step for form, step in zip(forms, buffer.strides, strict=True)])
        return self._rows(b.address(buffer.pointer, base, buffer.kind), ev.sizes(stride), b.index(0), buffer.kind)

    def _evaluated(self, low: Value, high: Value, fresh: Value | None) -> Rows:
        """The rows in scratch, transposed and with the prologue applied."""
        b, ev, plan = self.points.frame.b, self.points.frame.emitter, self.plan
        base = b.address(self.points.frame.scratch, ev.sizes(sympy.expand(self.offset + _prepared_bytes(plan, self.chunk))), b.i8)
        rows = self._rows(base, ev.sizes(sympy.expand(plan.k + ROW_PADDING)), low, plan.arithmetic.left_type)
        with self._once(fresh):
            self._evaluate(rows, low, high)
        return rows

    def _prepared(self, rows: Rows, low: Value, high: Value, fresh: Value | None) -> Rows:
        """The rows in scratch, in the form in which they are multiplied."""
        b, ev, plan = self.points.frame.b, self.points.frame.emitter, self.plan
        base, stride = b.address(self.points.frame.scratch, ev.sizes(self.offset), b.i8), plan.arithmetic.prepared_row_bytes(int(plan.k))
        with self._once(fresh), b.loop(low, high, b.index(1)) as loop, ev.scope():
            target = b.address(base, b.mul(b.sub(loop.iv, low), b.index(stride)), b.i8)
            plan.arithmetic.prepare_row(b, rows.block(loop.iv, 1).base, target)
        return self._rows(base, b.index(stride), low, b.i8)

    @contextmanager
    def _once(self, fresh: Value | None) -> Iterator[None]:
        """Emit what is inside to run where rows aren't those of the tile before."""
        with ExitStack() as stack:
            if fresh is not None:
                stack.enter_context(self.points.frame.b.when(fresh))
                stack.enter_context(self.points.frame.emitter.scope())
            yield

    def _evaluate(self, rows: Rows, low: Value, high: Value) -> None:
        b, ev = self.points.frame.b, self.points.frame.emitter
        target = Buffer(rows.base, rows.type, (self.plan.k,), (sympy.S.One,))
        k_dims = self.plan.real(self.plan.root.k)
        with b.loop(low, high, b.index(1)) as loop, ev.scope():
            start = b.mul(b.sub(loop.iv, low), rows.stride)
            with nest(ev, self.plan.sizes, k_dims[:-1]) as outer:

                def write(k: Coord) -> None:
                    point = self.points.at(m=loop.iv, groups=self.plan.left_groups, k={**outer, **({k_dims[-1]: k} if k_dims else {})})
                    at = flat_index(ev, self.plan.sizes, k_dims, {**outer, **({k_dims[-1]: b.index(0)} if k_dims else {})})
                    offset = b.add(start, at)
                    where: Coord = Lane(b.add(offset, k.base)) if isinstance(k, Lane) else b.add(offset, k)
                    ev.memory.store(ev.value(self.plan.left, ev.index.apply(self.plan.root.lhs_map, point)), target, [where])

                if k_dims:
                    over_lanes(ev, self.plan.sizes[k_dims[-1]], write)
                else:
                    write(b.index(0))
