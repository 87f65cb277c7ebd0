"""A contraction and the windows that slide over its result (a depthwise convolution, a pool) as one dispatch.

The image between the two is larger than what goes in or out, and never lies in memory: a tile computes a panel of its channels, for
the rows that a band of output rows reads, to scratch that stays in a level-2 cache, and then slides the windows over it (Alwani et al.,
"Fused-Layer CNN Accelerators", 2016). Rows that two bands read are computed twice, with the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import sympy

from llmos.compiler.analysis.generic import Generic, is_fill
from llmos.compiler.analysis.windows import WindowReduction, window_reduction_over
from llmos.compiler.backends.cpu.cost import COSTS
from llmos.compiler.backends.cpu.kernels.column_reduction import ColumnsEmitter, columns_in
from llmos.compiler.backends.cpu.kernels.contraction import ContractionEmitter
from llmos.compiler.backends.cpu.kernels.contraction_plan import ContractionPlan
from llmos.compiler.backends.cpu.kernels.contraction_schedule import Schedule
from llmos.compiler.backends.cpu.kernels.epilogue import ALIGN, TileCoords
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.codegen.builder import Value
from llmos.compiler.codegen.contraction_shape import contraction_in
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.kernel import Frame, Launch, ceil_div, kernel, product, split_index
from llmos.compiler.codegen.memory import Buffer
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.sizes import Expr

THREADS = (1, 2, 4)  # that a smallest input is shared out between, each number alike


def window_reduction_in(dispatch: Dispatch) -> WindowReduction:
    """Return the windows of a `contraction_window` dispatch."""
    root = contraction_in(dispatch).generic.op
    for op in dispatch.ops:
        if op.name == "linalg.generic" and not is_fill(op) and op != root and Generic(op).reduction_dims:
            generic = Generic(op)
            for value in generic.inputs:
                owner = value.owner
                image = owner.operands[0] if not isinstance(owner, ir.Block) and owner.name == "tensor.pad" else value
                found = window_reduction_over(generic, image, dispatch.shapes)
                if found is not None and not isinstance(image.owner, ir.Block):
                    return found
    raise AssertionError("a `contraction_window` dispatch without windows")


@dataclass(frozen=True)
class Band:
    """The place of a tile: its image, output rows [top, bottom), the panel of channels."""

    outer: list[Value]
    top: Value
    bottom: Value
    panel: Value


class ContractionWindowEmitter:
    """Emits one `contraction_window` dispatch."""

    def __init__(self, dispatch: Dispatch, target: CpuTarget) -> None:
        self.dispatch, self.window = dispatch, window_reduction_in(dispatch)
        self.image = self.window.image
        self.plan, self.rows = ContractionPlan(dispatch.part([], [self.image]), target), self.window.rows
        columns = columns_in(dispatch.part([self.image], dispatch.results))
        assert columns is not None
        self.batch = self.window.shape[:1] if len(columns.outer) == 2 else ()
        self.panels = int(ceil_div(self.plan.n, self.plan.width))
        self.height = self._height()
        whole = self.plan.in_place or self.plan.windows is not None
        schedule = Schedule.of(self.plan, target, self._image_rows * self._row_pixels if whole else None)
        self.contraction = ContractionEmitter(schedule)
        self.columns = ColumnsEmitter(columns, schedule.shape)

    def _height(self) -> int:
        """Output rows of a band: few enough for a level-2 cache to hold what they read, and as long as threads then wait the least."""
        rows = self.rows
        least = -(-rows.out // self.window.band(self.plan.width, COSTS.band_bytes))
        most = max(least, rows.out // (2 * max(1, rows.overlap)))
        return min((-(-rows.out // bands) for bands in range(least, most + 1)), key=self._iterations)

    def _iterations(self, height: int) -> float:
        """About how many times longer than without overlap and idle threads bands of a height take."""
        tiles = -(-self.rows.out // height) * self.panels
        return sum(-(-tiles // threads) * threads * self._rows_of(height) for threads in THREADS)

    def _rows_of(self, height: int) -> int:
        """Rows of the image that a band of a height reads at most."""
        rows = self.rows
        return min(rows.rows, (height - 1) * rows.stride + (rows.taps - 1) * rows.dilation + 1)

    @property
    def _image_rows(self) -> int:
        return self._rows_of(self.height)

    @property
    def _row_pixels(self) -> int:
        return int(self.window.shape[2])

    @property
    def _image_offset(self) -> Expr:
        return sympy.expand(ceil_div(self.contraction.scratch_bytes, ALIGN) * ALIGN)

    def emit(self, module: ir.Module) -> Launch:
        """Append the kernel: a tile is a band of output rows by a panel of channels."""
        bands = ceil_div(sympy.Integer(self.rows.out), self.height)
        grid = [*self.batch, bands, sympy.Integer(self.panels)]
        with (
            kernel(module, self.dispatch, self.contraction.schedule.shape.lanes) as frame,
            self.contraction.zeros(frame),
            frame.tiles() as tile,
        ):
            b, size = frame.b, frame.emitter.sizes
            *outer, band, panel = split_index(b, size, tile, grid)
            top = b.mul(band, b.index(self.height))
            self._tile(frame, Band(outer, top, b.minimum(b.add(top, b.index(self.height)), b.index(self.rows.out)), panel))
        image = 4 * self._image_rows * self._row_pixels * self.plan.width
        return Launch(sympy.expand(product(grid)), sympy.expand(self._image_offset + image))

    def _tile(self, frame: Frame, band: Band) -> None:
        b, ev, plan = frame.b, frame.emitter, self.plan
        low, high = self._pixels(frame, band)
        buffer = self._scratch_image(frame, low, band.panel)
        step = b.index(self.contraction.schedule.chunk)
        points = TileCoords(frame, plan, [b.index(0)] * len(plan.root.batch))
        with b.loop(low, high, step) as loop, ev.scope():
            end = b.minimum(b.add(loop.iv, step), high)
            self.contraction.tile(points, [buffer], loop.iv, end, band.panel)
        ev.buffers[self.image] = buffer
        first = b.mul(band.panel, b.index(plan.width))
        with b.loop(band.top, band.bottom, b.index(1)) as loop, ev.scope():
            self.columns.pixels(frame, [*band.outer, loop.iv], None, first, plan.width)

    def _pixels(self, frame: Frame, band: Band) -> tuple[Value, Value]:
        """[begin, end) of the pixels of the image that a band reads: rows of the contraction."""
        b, rows = frame.b, self.rows
        reach = b.index((rows.taps - 1) * rows.dilation + 1 - rows.before)
        stride, none, every = b.index(rows.stride), b.index(0), b.index(rows.rows)
        begin = b.binary("arith.maxsi", b.sub(b.mul(band.top, stride), b.index(rows.before)), none)
        end = b.minimum(b.add(b.mul(b.sub(band.bottom, b.index(1)), stride), reach), every)
        base = b.mul(band.outer[0], every) if band.outer else none
        pixels = b.index(self._row_pixels)
        return b.mul(b.add(base, begin), pixels), b.mul(b.add(base, b.binary("arith.maxsi", begin, end)), pixels)

    def _scratch_image(self, frame: Frame, low: Value, panel: Value) -> Buffer:
        """The image as if all of it lay in memory, these channels innermost, with pixel `low` at the beginning of the scratch."""
        b, width = frame.b, self.plan.width
        kind, shape = self.image.type.element_type, self.window.shape
        begin = b.address(frame.scratch, frame.emitter.sizes(self._image_offset), b.i8)
        before = b.mul(b.add(low, panel), b.index(width))
        narrow = Buffer.dense(b.address(begin, b.sub(b.index(0), before), kind), kind, (*shape[:3], sympy.Integer(width)))
        return replace(narrow, shape=shape)


def emit_contraction_window(module: ir.Module, dispatch: Dispatch, target: CpuTarget) -> Launch:
    """Append the kernel of a `contraction_window` dispatch."""
    return ContractionWindowEmitter(dispatch, target).emit(module)
