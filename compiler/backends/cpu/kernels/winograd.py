"""Convolutions over 3x3 pixels by Winograd's algorithm (compiler/analysis/winograd.py), in one kernel: nothing but images is in memory.

A tile of the grid is a block of tiles of the image x a panel of columns, panels fastest. Its inputs are transformed, lanes over channels,
into scratch, V [(m + 2)², tiles, channels]; for each of the (m + 2)² positions V by its panel of the transformed weight gives
M [(m + 2)², tiles, width] by the register tile that every contraction uses; M is transformed back, and each row of m outputs runs through
the epilogue. V and M stay in a level-2 cache where that has 2 MiB. Where pixels lie outside of the image a row of zeros is read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sympy

from llmos.compiler.analysis.conv3x3 import Conv3x3, conv3x3_of
from llmos.compiler.analysis.winograd import TAPS, Minimal
from llmos.compiler.backends.cpu.arithmetic.f32 import accumulate
from llmos.compiler.backends.cpu.arithmetic.register_tile import (
    CACHE_LINE,
    UNROLL,
    Panel,
    Strided,
    TileShape,
    for_row_blocks,
    register_tile,
    row_tiles,
    store_tile,
    zeros,
)
from llmos.compiler.backends.cpu.kernels.contraction_plan import ContractionPlan
from llmos.compiler.backends.cpu.kernels.epilogue import ALIGN, Epilogue, TileCoords
from llmos.compiler.backends.cpu.packing import panel_width
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.codegen.builder import Builder, Value
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.kernel import Frame, Launch, ceil_div, kernel, product, split_index
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import DispatchFunc
from llmos.compiler.ir.sizes import Expr

# Of V and M, even where a level-2 cache holds less: each block reads a panel's whole transformed weight, often from a far cache. ResNet-18
# takes 0.84 of the time that blocks of 256 KiB took on a processor with half a MiB.
BLOCK_BYTES = 1 << 20
LINE = CACHE_LINE // 4  # elements between what would share cache sets


class WinogradPlan(ContractionPlan):
    """A contraction whose panels are as deep as its channels: its grid and its scratch."""

    def __init__(self, dispatch: Dispatch, target: CpuTarget) -> None:
        super().__init__(dispatch, target)
        self.tile_size = winograd_tile(dispatch)
        self.side = self.tile_size + TAPS - 1
        self.positions = self.side**2
        self.shape = register_tile(target.vector_bits, self.width)
        self.tiles = self.conv.tiles(self.tile_size)
        self.block = self._block(max(BLOCK_BYTES, target.l2_bytes // 2))

    @property
    def width(self) -> int:
        """Return the columns of a panel."""
        return self.dispatch.tiling.columns or panel_width(int(self.n), self.conv.channels)

    @functools.cached_property
    def conv(self) -> Conv3x3:
        """Return the convolution that the contraction is."""
        found = conv3x3_of(self.root, self.dispatch.shapes)
        assert found is not None
        return found

    def _block(self, num_bytes: int) -> int:
        """Tiles of the image in one of the grid: as many as keep V and M within some bytes, blocks of the smallest input alike."""
        per_image = self.tiles[0] * self.tiles[1]
        most = max(self.shape.rows, num_bytes // (4 * self.positions * (self.conv.channels + self.width)))
        least = self.dispatch.table.bounds(sympy.expand(self.conv.batch * per_image))[0]
        if not least.is_Integer:
            return most
        blocks = -(-int(least) // most)
        even = -(-int(least) // blocks)
        return min(most, even)

    # -- scratch: rows of finished outputs, a run of zeros, V, M
    @property
    def zeros_at(self) -> int:
        """Return the offset of the run of zeros, in bytes of scratch."""
        return 4 * self.tile_size**2 * self.width

    @property
    def inputs_at(self) -> int:
        """Return the offset of V, in bytes of scratch."""
        return self.zeros_at + 4 * self.conv.channels

    @property
    def input_stride(self) -> int:
        """Return the float32 elements between the positions of V."""
        return self.block * self.conv.channels + LINE

    @property
    def sums_at(self) -> int:
        """Return the offset of M, in bytes of scratch."""
        return self.inputs_at + 4 * self.positions * self.input_stride

    @property
    def sum_stride(self) -> int:
        """Return the float32 elements between the positions of M."""
        return self.block * self.width + LINE

    @property
    def num_tiles(self) -> Expr:
        """Return the tiles of all images."""
        return sympy.expand(self.conv.batch * self.tiles[0] * self.tiles[1])

    @property
    def grid(self) -> list[Expr]:
        """Return the extents of the grid: blocks of tiles of the images, panels of columns."""
        return [ceil_div(self.num_tiles, self.block), ceil_div(self.n, self.width)]

    @property
    def launch(self) -> Launch:
        """Return the number of tiles, and the scratch of one."""
        return Launch(sympy.expand(product(self.grid)), sympy.Integer(self.sums_at + 4 * self.positions * self.sum_stride))


@dataclass(frozen=True)
class VectorArithmetic:
    """The arithmetic of vectors of float32."""

    b: Builder

    def add(self, a: Value, b: Value) -> Value:
        """Emit a + b."""
        return self.b.binary("arith.addf", a, b)

    def sub(self, a: Value, b: Value) -> Value:
        """Emit a - b."""
        return self.b.binary("arith.subf", a, b)

    def fma(self, factor: float, a: Value, b: Value) -> Value:
        """Emit factor * a + b."""
        return self.b.fma(self.b.splat_constant(self.b.f32, factor), a, b)


@dataclass(frozen=True)
class WinogradEmitter:
    """Emits tiles of one winograd dispatch."""

    plan: WinogradPlan
    frame: Frame
    transform: Minimal[Value]
    epilogue: Epilogue

    def emit(self, tile: Value) -> None:
        """Emit one tile of the grid: the inputs where it is the first of its block, then the products and the outputs."""
        b, plan, size = self.frame.b, self.plan, self.frame.emitter.sizes
        block, panel = split_index(b, size, tile, plan.grid)
        low = b.mul(block, b.index(plan.block))
        count = b.minimum(b.index(plan.block), b.sub(size(plan.num_tiles), low))
        first = b.binary("arith.ori", b.compare("eq", panel, b.index(0)), b.compare("eq", tile, self.frame.begin))
        with b.when(first):
            self._each_tile(low, count, self._transform_inputs)
        self._multiply(count, panel)
        self._each_tile(low, count, functools.partial(self._transform_outputs, b.mul(panel, b.index(plan.width))))

    def _each_tile(self, low: Value, count: Value, emit: Callable[[Value, list[Value]], None]) -> None:
        """`emit` for each tile of the block: its number there, and which image, row and column of tiles it is."""
        b, ev = self.frame.b, self.frame.emitter
        with b.loop(b.index(0), count, b.index(1)) as loop, ev.scope():
            extents = [self.plan.conv.batch, *map(sympy.Integer, self.plan.tiles)]
            emit(loop.iv, split_index(b, ev.sizes, b.add(low, loop.iv), extents))

    # -- inputs
    def _transform_inputs(self, number: Value, tile: list[Value]) -> None:
        """V of one tile, channels by vectors."""
        b, side, channels = self.frame.b, self.plan.side, self.plan.conv.channels
        pixels = self._pixels(tile)
        base = b.address(self._scratch(self.plan.inputs_at), b.mul(number, b.index(channels)), b.f32)
        with b.loop(b.index(0), b.index(channels), b.index(b.lanes)) as loop:
            read = [[b.load(b.address(pixel, loop.iv, b.f32), b.vec(b.f32), 4) for pixel in row] for row in pixels]
            for row, values in enumerate(self._both_ways(self.transform.inputs, read)):
                for column, value in enumerate(values):
                    at = b.add(loop.iv, b.index((row * side + column) * self.plan.input_stride))
                    b.store(value, b.address(base, at, b.f32), 4 * b.lanes)

    def _pixels(self, tile: list[Value]) -> list[list[Value]]:
        """A pointer to each pixel that a tile reads; to zeros for one outside of the image."""
        b, conv = self.frame.b, self.plan.conv
        (h, w), (image, *place) = conv.image, tile
        source = self.frame.emitter.buffers[conv.source].pointer
        outside = self._scratch(self.plan.zeros_at)
        corner = [b.sub(b.mul(p, b.index(self.plan.tile_size)), b.index(low)) for p, low in zip(place, conv.corner, strict=True)]
        rows, columns = ([b.add(start, b.index(i)) for i in range(self.plan.side)] for start in corner)
        inside = [[b.compare("ult", each, b.index(size)) for each in line] for line, size in ((rows, h), (columns, w))]
        origin = b.mul(b.add(b.mul(b.add(b.mul(image, b.index(h)), corner[0]), b.index(w)), corner[1]), b.index(conv.channels))
        base = b.address(source, origin, b.f32)
        return [
            [
                b.select(b.binary("arith.andi", up, across), b.address(base, b.index((u * w + v) * conv.channels), b.f32), outside)
                for v, across in enumerate(inside[1])
            ]
            for u, up in enumerate(inside[0])
        ]

    @staticmethod
    def _both_ways(transform: Callable[[Sequence[Value]], list[Value]], values: Sequence[Sequence[Value]]) -> list[list[Value]]:
        """A transform of the columns of a square, then of its rows."""
        columns = [transform(column) for column in zip(*values, strict=True)]
        return [transform(row) for row in zip(*columns, strict=True)]

    # -- products
    def _multiply(self, count: Value, panel: Value) -> None:
        """M of the block: at each position the tiles' rows of V by the panel."""
        b, plan, channels, width = self.frame.b, self.plan, self.plan.conv.channels, self.plan.width
        assert plan.weight is not None
        weight = self.frame.emitter.buffers[plan.weight].pointer
        with b.loop(b.index(0), b.index(self.plan.positions), b.index(1)) as loop:
            number = b.add(b.mul(panel, b.index(self.plan.positions)), loop.iv)
            right = b.address(weight, b.mul(number, b.index(channels * width)), b.f32)
            left = b.address(self._scratch(self.plan.inputs_at), b.mul(loop.iv, b.index(self.plan.input_stride)), b.f32)
            sums = b.address(self._scratch(self.plan.sums_at), b.mul(loop.iv, b.index(self.plan.sum_stride)), b.f32)

            def rows(row: Value, part: TileShape, right: Value = right, left: Value = left, sums: Value = sums) -> None:
                for column in range(0, width, part.columns):
                    operand = Strided(b.address(left, b.mul(row, b.index(channels)), b.f32), b.index(channels), b.index(1))
                    made = accumulate(b, part, operand, self._panel(right, column, row), b.index(channels), zeros(b, part))
                    store_tile(b, part, made, b.address(sums, b.add(b.mul(row, b.index(width)), b.index(column)), b.f32), width)

            for_row_blocks(b, b.index(0), count, row_tiles(self.plan.shape, width), rows)

    def _panel(self, base: Value, column: int, row: Value) -> Panel:
        """A panel from `column` on, while whose use a part of the next position's is asked for."""
        b, channels, width = self.frame.b, self.plan.conv.channels, self.plan.width
        full = UNROLL * width * 4 // CACHE_LINE  # lines of a panel for each UNROLL steps
        blocks = max(1, self.plan.block // self.plan.shape.rows)
        lines = -(-full // blocks)
        part = b.minimum(b.div(row, b.index(self.plan.shape.rows)), b.index(-(-full // lines) - 1))
        next_panel = b.address(base, b.add(b.index(channels * width), b.mul(part, b.index(channels * lines * LINE // UNROLL))), b.f32)
        return Panel(b.address(base, b.index(column), b.f32), b.index(width), min(ALIGN, self.plan.shape.lanes * 4), 0, next_panel, lines)

    # -- outputs
    def _transform_outputs(self, first: Value, number: Value, tile: list[Value]) -> None:
        """The outputs of one tile, rows of them through the epilogue."""
        b, m, width, (height, across) = self.frame.b, self.plan.tile_size, self.plan.width, self.plan.conv.out
        base = b.address(self._scratch(self.plan.sums_at), b.mul(number, b.index(width)), b.f32)
        with b.loop(b.index(0), b.index(width), b.index(b.lanes)) as loop:
            read = [
                [
                    b.load(
                        b.address(base, b.add(loop.iv, b.index((row * self.plan.side + column) * self.plan.sum_stride)), b.f32),
                        b.vec(b.f32),
                        4 * b.lanes,
                    )
                    for column in range(self.plan.side)
                ]
                for row in range(self.plan.side)
            ]
            for row, values in enumerate(self._both_ways(self.transform.outputs, read)):
                for column, value in enumerate(values):
                    at = b.add(loop.iv, b.index((row * m + column) * width))
                    b.store(value, b.address(self.frame.scratch, at, b.f32), 4 * b.lanes)
        image, *place = tile
        top, left = (b.mul(p, b.index(m)) for p in place)
        num_rows, num_columns = (b.minimum(b.index(m), b.sub(b.index(size), start)) for size, start in ((height, top), (across, left)))
        with b.loop(b.index(0), num_rows, b.index(1)) as loop, self.frame.emitter.scope():
            line = b.add(b.mul(image, b.index(height)), b.add(top, loop.iv))
            row = b.add(b.mul(line, b.index(across)), left)
            self.epilogue.from_tile(row, first, num_columns, b.mul(loop.iv, b.index(m)))

    def _scratch(self, offset: int) -> Value:
        b = self.frame.b
        return b.address(self.frame.scratch, b.index(offset), b.i8)


def winograd_tile(dispatch: Dispatch) -> int:
    """Return m of a winograd dispatch."""
    tile = DispatchFunc(dispatch.func).winograd_tile
    assert tile is not None
    return tile


def emit_winograd(module: ir.Module, dispatch: Dispatch, target: CpuTarget) -> Launch:
    """Append the kernel of a `winograd` dispatch."""
    plan = WinogradPlan(dispatch, target)
    with kernel(module, dispatch, plan.shape.lanes) as frame:
        _write_zeros(frame, plan)
        with frame.tiles() as tile:
            epilogue = Epilogue(TileCoords(frame, plan, [frame.b.index(0)] * len(plan.root.batch)), frame.outputs)
            WinogradEmitter(plan, frame, Minimal(plan.tile_size, VectorArithmetic(frame.b)), epilogue).emit(tile)
    return plan.launch


def _write_zeros(frame: Frame, plan: WinogradPlan) -> None:
    """What pixels outside of an image read, written once a call."""
    b = frame.b
    run = b.address(frame.scratch, b.index(plan.zeros_at), b.i8)
    with b.loop(b.index(0), b.index(plan.conv.channels), b.index(b.lanes)) as loop:
        b.store(b.splat_constant(b.f32, 0.0), b.address(run, loop.iv, b.f32), 4 * b.lanes)
