"""Contractions: sum over k of a*b with a fused prologue on either side and a fused epilogue.

Convolutions are contractions whose left side is windows, channels last (backends/cpu/kernels/implicit_gemm.py), or whose right side is,
channels first. The grid is batch x row chunks x column panels, panels fastest, so that consecutive tiles share their rows. A constant right
side is packed at compile time into panels [n/w][k][w], one layout for every instruction set (backends/cpu/packing.py); another right side
is packed by the tile into scratch (backends/cpu/kernels/panels.py). Rows are read in place where runs of k lie densely, otherwise (a
transposition, a prologue) they are evaluated into scratch first. How elements are multiplied is an arithmetic's (backends/cpu/arithmetic).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import sympy

from llmos.compiler.backends.cpu.kernels.contraction_loops import main_loop
from llmos.compiler.backends.cpu.kernels.contraction_plan import ContractionPlan
from llmos.compiler.backends.cpu.kernels.contraction_rows import LeftSide, scratch_of_rows, write_zeros
from llmos.compiler.backends.cpu.kernels.contraction_schedule import Schedule
from llmos.compiler.backends.cpu.kernels.contraction_tile import PanelTile
from llmos.compiler.backends.cpu.kernels.epilogue import ALIGN, Epilogue, TileCoords
from llmos.compiler.backends.cpu.kernels.panels import PanelCopier
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.codegen.builder import Value
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.kernel import Frame, Launch, ceil_div, kernel, product, split_index
from llmos.compiler.codegen.memory import Buffer
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.sizes import Expr


class ContractionEmitter:
    """Emits one contraction dispatch."""

    def __init__(self, schedule: Schedule) -> None:
        self.plan, self.schedule = schedule.plan, schedule
        self.loop = main_loop(schedule)

    def emit(self, module: ir.Module) -> Launch:
        """Append the kernel to a module. Returns how it is launched."""
        plan, rows = self.plan, self.schedule.chunk
        panels, chunks, batch = ceil_div(plan.n, plan.width), ceil_div(plan.m, rows), product(plan.batch)
        with kernel(module, plan.dispatch, self.schedule.shape.lanes) as frame, self.zeros(frame), frame.tiles() as tile:
            b, size = frame.b, frame.emitter.sizes
            flat, chunk, panel = split_index(b, size, tile, [batch, chunks, panels])
            low = b.mul(chunk, b.index(rows))
            high = b.minimum(b.add(low, b.index(rows)), size(plan.m))
            # Tiles that follow each other find the rows of their chunk in scratch.
            fresh = b.binary("arith.ori", b.compare("eq", panel, b.index(0)), b.compare("eq", tile, frame.begin))
            self.tile(TileCoords(frame, plan, split_index(b, size, flat, plan.batch)), frame.outputs, low, high, panel, fresh)
        return Launch(sympy.expand(batch * chunks * panels), self.scratch_bytes)

    # -- scratch: the sums of the main loop, then evaluated rows or a run of zeros, then a panel packed here or what the arithmetic needs
    @property
    def _rows_offset(self) -> Expr:
        return sympy.Integer(self.loop.sums.num_floats * 4)

    @property
    def _panel_offset(self) -> Expr:
        rows = scratch_of_rows(self.plan, self.schedule.chunk)
        return sympy.expand(ceil_div(sympy.expand(self._rows_offset + rows), ALIGN) * ALIGN)

    @property
    def scratch_bytes(self) -> Expr:
        """Return the scratch of a thread, over the symbols."""
        plan = self.plan
        if not plan.packed:
            return sympy.expand(self._panel_offset + 4 * plan.width * plan.k)
        return sympy.expand(self._panel_offset + plan.arithmetic.scratch_bytes(int(plan.k), plan.width, self.schedule.k_block))

    @contextmanager
    def zeros(self, frame: Frame) -> Iterator[None]:
        """Emit the run of zeros that windows outside of an image read, once a call."""
        write_zeros(frame, self.plan, self._rows_offset)
        yield

    # -- one tile
    def tile(
        self, points: TileCoords, outputs: Sequence[Buffer], low: Value, high: Value, panel: Value, fresh: Value | None = None
    ) -> None:
        """Emit rows [low, high) by a panel, to `outputs`. `fresh`: whether rows aren't those of the tile before; None for always."""
        frame, plan = points.frame, self.plan
        b, size = frame.b, frame.emitter.sizes
        first = b.mul(panel, b.index(plan.width))
        if plan.weight is not None:
            weight = frame.emitter.buffers[plan.weight].pointer
            base = b.address(weight, b.mul(panel, b.mul(size(plan.panel_rows), b.index(plan.width))), b.f32)
        else:
            base = b.address(frame.scratch, size(self._panel_offset), b.i8)
            PanelCopier(points, base).copy(first)
        rows = LeftSide(points, self._rows_offset, self.schedule.chunk).rows(low, high, fresh)
        self.loop.emit(PanelTile(Epilogue(points, outputs), rows, low, high, first, base, self._panel_offset))


def emit_contraction(module: ir.Module, dispatch: Dispatch, target: CpuTarget) -> Launch:
    """Append the kernel of a `contraction` dispatch to a module. Returns how it is launched."""
    return ContractionEmitter(Schedule.of(ContractionPlan(dispatch, target), target)).emit(module)
