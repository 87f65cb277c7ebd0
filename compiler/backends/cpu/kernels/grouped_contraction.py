"""A product of groups of rows, each by a matrix of its own (the experts of a mixture), as one dispatch.

It is a contraction by the matrices of all groups side by side, of which only tiles run whose rows are of the group that their panel
belongs to. A tile writes its columns where they lie in the result, as if the columns of all groups were there. How rows are multiplied is
the contraction's own, so a row has the same bits whatever else is in its group.

Groups are of any size, and many are empty. Panels are gone over in runs of a few for every group and its rows, so that any stretch of
tiles has about as much work as another one.
"""

from __future__ import annotations

import sympy

from llmos.compiler.analysis.grouped_rows import GroupedRows, is_grouped_rows
from llmos.compiler.backends.cpu.kernels.contraction import ContractionEmitter
from llmos.compiler.backends.cpu.kernels.contraction_plan import ContractionPlan
from llmos.compiler.backends.cpu.kernels.contraction_schedule import Schedule
from llmos.compiler.backends.cpu.kernels.epilogue import TileCoords
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.codegen.builder import Value
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.kernel import Frame, Launch, ceil_div, kernel, product, split_index
from llmos.compiler.codegen.memory import Buffer
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.sizes import Expr

RUNS = 16  # of panels of a group: few enough that rows are seldom prepared again, enough for threads to share


class GroupedContractionEmitter:
    """Emits one `grouped_contraction` dispatch."""

    def __init__(self, dispatch: Dispatch, target: CpuTarget) -> None:
        self.dispatch = dispatch
        self.groups = GroupedRows(next(op for op in dispatch.ops if is_grouped_rows(op)))
        self.plan = ContractionPlan(dispatch.part([], [self.groups.image]), target)
        self.contraction = ContractionEmitter(Schedule.of(self.plan, target))
        self.panels = self.groups.num_columns // self.plan.width
        self.run = max(size for size in range(1, max(1, self.panels // RUNS) + 1) if self.panels % size == 0)

    @property
    def grid(self) -> list[Expr]:
        """Return the extents of the grid: runs of panels of a group, groups, chunks of its rows, panels of a run."""
        chunks = ceil_div(self.plan.m, self.contraction.schedule.chunk)
        return [sympy.Integer(self.panels // self.run), sympy.Integer(self.groups.num_groups), chunks, sympy.Integer(self.run)]

    def emit(self, module: ir.Module) -> Launch:
        """Append the kernel to a module. Returns how it is launched."""
        lanes = self.contraction.schedule.shape.lanes
        with kernel(module, self.dispatch, lanes) as frame, self.contraction.zeros(frame), frame.tiles() as tile:
            b = frame.b
            run, group, chunk, panel = split_index(b, frame.emitter.sizes, tile, self.grid)
            low, high = self._rows(frame, group, chunk)
            fresh = b.binary("arith.ori", b.compare("eq", panel, b.index(0)), b.compare("eq", tile, frame.begin))
            column_panel = b.add(b.mul(run, b.index(self.run)), panel)
            with b.when(b.compare("slt", low, high)), frame.emitter.scope():
                every = b.add(b.mul(group, b.index(self.panels)), column_panel)
                points = TileCoords(frame, self.plan, [b.index(0)] * len(self.plan.root.batch))
                self.contraction.tile(points, [self._output(frame, group)], low, high, every, fresh)
        return Launch(sympy.expand(product(self.grid)), self.contraction.scratch_bytes)

    def _rows(self, frame: Frame, group: Value, chunk: Value) -> tuple[Value, Value]:
        """The rows of a chunk of a group."""
        b, rows = frame.b, frame.b.index(self.contraction.schedule.chunk)
        begin, end = (self._bound(frame, value, group) for value in self.groups.bounds)
        low = b.add(begin, b.mul(chunk, rows))
        return low, b.minimum(b.add(low, rows), end)

    def _bound(self, frame: Frame, bounds: Value, group: Value) -> Value:
        """An element of begins or ends, within the rows that there are."""
        b, ev = frame.b, frame.emitter
        bound = ev.value(bounds, [group])
        if bound.type != b.i64:
            bound = b.op("arith.extsi", [bound], b.i64)
        return b.minimum(b.binary("arith.maxsi", bound, b.index(0)), ev.sizes(self.plan.m))

    def _output(self, frame: Frame, group: Value) -> Buffer:
        """The result, as if a row of it had the columns of all groups, of which those of this group lie where it does."""
        b, (result,) = frame.b, frame.outputs
        columns = self.groups.num_columns
        before = b.sub(b.index(0), b.mul(group, b.index(columns)))
        shape = self.dispatch.shapes.shape(self.groups.image)
        return Buffer(b.address(result.pointer, before, result.kind), result.kind, shape, (sympy.Integer(columns), sympy.S.One))


def emit_grouped_contraction(module: ir.Module, dispatch: Dispatch, target: CpuTarget) -> Launch:
    """Append the kernel of a `grouped_contraction` dispatch."""
    return GroupedContractionEmitter(dispatch, target).emit(module)
