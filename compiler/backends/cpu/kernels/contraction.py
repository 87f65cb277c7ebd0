"""Contractions: sum over k of a*b with a fused prologue on either side and a fused epilogue.

Convolutions are contractions whose left side is windows, channels last (backends/cpu/kernels/implicit_gemm.py), or whose right side is,
channels first. The grid is batch x row chunks x column panels, panels fastest, so that consecutive tiles share their rows. A constant right
side is packed at compile time into panels [n/w][k][w], one layout for every instruction set (backends/cpu/packing.py); another right side
is packed by the tile into scratch (backends/cpu/kernels/panels.py). Rows are read in place where runs of k lie densely, otherwise (a
transposition, a prologue) they are evaluated into scratch first. A bfloat16 weight lies in panels of pairs
(backends/cpu/arithmetic/bf16.py); a processor that multiplies pairs reads rows in bfloat16 too, others have them widened in scratch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

import sympy

from llmos.compiler.analysis.generic import dim_positions
from llmos.compiler.backends.cpu.arithmetic.amx import BLOCK_TILES, STEP_ROWS, TILE_ROWS, copied_bytes, copy_rows, multiply_tiles
from llmos.compiler.backends.cpu.arithmetic.bf16 import PairArithmetic, accumulate_dots, accumulate_widened, widen_panel
from llmos.compiler.backends.cpu.arithmetic.f32 import accumulate
from llmos.compiler.backends.cpu.arithmetic.register_tile import (
    CACHE_LINE,
    UNROLL,
    Panel,
    Strided,
    TileShape,
    for_row_blocks,
    load_tile,
    register_tile,
    row_ranges,
    row_tiles,
    store_tile,
    zeros,
)
from llmos.compiler.backends.cpu.kernels.contraction_plan import Layout
from llmos.compiler.backends.cpu.kernels.epilogue import ALIGN, Epilogue, Points, fits_registers
from llmos.compiler.backends.cpu.kernels.implicit_gemm import WindowBlock, WindowReader
from llmos.compiler.backends.cpu.kernels.panels import PanelCopier, flat_index, nest, over_lanes
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.codegen.builder import Value
from llmos.compiler.codegen.coordinates import Coord, Lane
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.kernel import Frame, Launch, ceil_div, kernel, product, split_index
from llmos.compiler.codegen.memory import Buffer
from llmos.compiler.codegen.sums import BLOCK, TileSums, is_long
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.sizes import Expr

SMALL_PANEL_BYTES = 1 << 18  # a panel that is worth reading again so that there are more tiles to share out
MAX_ROWS = 256
PREFETCH = 16  # rows of a packed panel between a read and the request for it, where memory is the limit: best of 0, 16, 32 and 64
OWN_ROWS = 64  # of float32 that are worth a thread's reading all panels for: what it made of them for the last dispatch is in its cache
USUAL_BLOCKS = 4  # of rows in a tile whose number isn't known: by then the whole next panel has been asked for
ROW_PADDING = 16  # elements between evaluated rows, so that rows of a power of two don't share cache sets


def row_chunk(layout: Layout, rows: int, l2_bytes: int, block: int) -> int:
    """Rows of one tile: a multiple of `rows` that keeps them in half of a level-2 cache; many where each tile packs its own panel.

    Of rows that are walked by blocks of `block` k (0: by all of k), such a block of each is in the cache: 18 rows of 3072 k instead of 64
    would read all panels three times as often.

    Few enough that of 128 rows two threads have a half each, and that even the smallest input gives each of some threads its share
    of tiles, where that has a block of rows for each.
    """
    most = MAX_ROWS // rows * rows
    if not layout.packed:
        return most
    row = layout.row_elements
    chunk = 64 // rows * rows
    if row.is_Integer:
        element = 2 if layout.reads_pairs else 4
        chunk = max(2 * rows, min(most, l2_bytes // 2 // (element * max(1, block or int(row))) // rows * rows))
    panels, depth = ceil_div(layout.n, layout.width), layout.k
    least = layout.dispatch.table.bounds(layout.m)[0]
    if layout.windows is None and not layout.reads_pairs and least.is_Integer:
        chunk = min(chunk, -(-max(OWN_ROWS, -(-int(least) // 2)) // rows) * rows)
    if not (panels.is_Integer and least.is_Integer and depth.is_Integer):
        return chunk
    wanted = 16 if 4 * int(depth) * layout.width <= SMALL_PANEL_BYTES else 8
    chunks = -(-wanted // int(panels))
    if chunks == 1 or least < chunks * rows:
        return chunk
    return max(2 * rows, min(chunk, -(-int(least) // (chunks * rows)) * rows))


Left: TypeAlias = Strided | WindowBlock
Multiply: TypeAlias = Callable[[int], None]  # number of columns: the sums of some rows by a panel, and what becomes of them


@dataclass(frozen=True)
class Rows:
    """The left side of a tile: row r starts at base + (r - first) * stride elements."""

    base: Value
    stride: Value
    first: Value


class ContractionEmitter:
    """Emits one contraction dispatch."""

    def __init__(self, dispatch: Dispatch, target: CpuTarget) -> None:
        self.dispatch, self.layout = dispatch, Layout(dispatch, PairArithmetic.of(target))
        self.tiling = dispatch.tiling.on(target)
        self.shape = register_tile(target.vector_bits, self.layout.width)
        self.row_tiles = row_tiles(self.shape, self.layout.width)
        # Where registers are few, a block of a bfloat16 panel is widened in scratch, once for all rows.
        self.widens = self.layout.pairs is PairArithmetic.WIDENED and target.near_bytes > 0
        self.root, self.sizes = self.layout.root, self.layout.sizes
        self.by_tiles = self.layout.pairs is PairArithmetic.TILES
        self.block_rows = BLOCK_TILES * TILE_ROWS if self.by_tiles else self.shape.rows
        self.depth = self._block_depth(target)
        self.chunk = self.tiling.rows or row_chunk(self.layout, self.block_rows, target.l2_bytes, self.depth)
        self.ahead = PREFETCH if self.tiling.ahead is None else self.tiling.ahead
        self.in_registers = not self.by_tiles and not self.depth and fits_registers(self.layout)

    def _block_depth(self, target: CpuTarget) -> int:
        """Rows of a panel that are multiplied before the next: a register tile's columns of them stay in the first cache; 0: all."""
        layout = self.layout
        if (layout.pairs is not None and not self.widens) or layout.windows is not None or not layout.packed:
            return 0
        most = target.near_bytes // (4 * self.shape.columns) if self.tiling.depth is None else self.tiling.depth
        depth = min(int(layout.k), BLOCK)
        blocks = -(-depth // most) if most else 1
        return 0 if blocks == 1 and not self.widens else -(-depth // (blocks * UNROLL)) * UNROLL

    def emit(self, module: ir.Module) -> Launch:
        layout = self.layout
        panels, chunks, batch = ceil_div(layout.n, layout.width), ceil_div(layout.m, self.chunk), product(layout.batch)
        with kernel(module, self.dispatch, self.shape.lanes) as frame, self.zeros(frame), frame.tiles() as tile:
            b, size = frame.b, frame.evaluator.sizes
            flat, chunk, panel = split_index(b, size, tile, [batch, chunks, panels])
            low = b.mul(chunk, b.index(self.chunk))
            high = b.minimum(b.add(low, b.index(self.chunk)), size(layout.m))
            # Tiles that follow each other find the rows of their chunk in scratch.
            fresh = b.binary("arith.ori", b.compare("eq", panel, b.index(0)), b.compare("eq", tile, frame.begin))
            self.tile(Points(frame, layout, split_index(b, size, flat, layout.batch)), frame.outputs, low, high, panel, fresh)
        return Launch(sympy.expand(batch * chunks * panels), self.scratch_bytes)

    # -- scratch: the accumulator tile (of all rows, where sums wait for the next block of k), its rests and the sums of a block where k is
    # long, then evaluated rows or a run of zeros, then a panel packed or widened here or a copy of a last few rows
    @property
    def tile_sums(self) -> TileSums:
        rows = self.chunk if self.depth else self.block_rows
        return TileSums(rows * self.layout.width, self.shape.lanes, int(self.layout.k) if self.depth or self.by_tiles else 0)

    @property
    def _rows_offset(self) -> Expr:
        return sympy.Integer(self.tile_sums.num_floats * 4)

    @property
    def _panel_offset(self) -> Expr:
        windows = self.layout.windows
        if windows is not None:
            rows = 4 * windows.run if windows.padded else sympy.S.Zero
        else:
            rows = sympy.S.Zero if self.layout.in_place else 4 * self.chunk * (self.layout.k + ROW_PADDING)
        return sympy.expand(ceil_div(sympy.expand(self._rows_offset + rows), ALIGN) * ALIGN)

    @property
    def scratch_bytes(self) -> Expr:
        if self.by_tiles:
            return sympy.expand(self._panel_offset + copied_bytes(int(self.layout.k)))
        depth = self.layout.k if not self.layout.packed else self.depth if self.widens else 0
        return sympy.expand(self._panel_offset + 4 * self.layout.width * depth)

    # -- one tile
    def tile(self, points: Points, outputs: Sequence[Buffer], low: Value, high: Value, panel: Value, fresh: Value | None = None) -> None:
        """Rows [low, high) by a panel of columns, to `outputs`. `fresh`: whether rows aren't those of the tile before; None for always."""
        self.frame: Frame = points.frame
        self.points, self.epilogue = points, Epilogue(points, outputs)
        b, frame, size = self.frame.b, self.frame, self.frame.evaluator.sizes
        first = b.mul(panel, b.index(self.layout.width))
        if self.layout.weight is not None:
            weight = frame.evaluator.buffers[self.layout.weight].pointer
            base = b.address(weight, b.mul(panel, b.mul(size(self.layout.panel_rows), b.index(self.layout.width))), b.f32)
        else:
            base = b.address(frame.scratch, size(self._panel_offset), b.i8)
            PanelCopier(self.points, base).copy(first)
        rows = self._rows(low, high, fresh)
        if self.by_tiles:
            assert isinstance(rows, Rows)
            self._by_tiles(rows, low, high, first, base)
            return

        if self.depth:
            assert isinstance(rows, Rows)
            self._by_depth(rows, low, high, first, base)
            return

        def block(row: Value, tile: TileShape) -> None:
            left = rows.block(row, tile.rows) if isinstance(rows, WindowReader) else self._strided(rows, row)
            panels = functools.partial(self._panel, base, tile, b.sub(row, low))
            self._by_columns(first, functools.partial(self._multiply, tile, left, panels, row, first))
            if not self.in_registers:
                self.epilogue.from_tile(row, first, b.index(tile.rows))

        for_row_blocks(b, low, high, self.row_tiles, block)

    def _by_depth(self, rows: Rows, low: Value, high: Value, first: Value, base: Value) -> None:
        """All rows by one block of k after the other; sums wait in scratch between them: each is still one chain over k."""
        b = self.frame.b
        count = b.sub(high, low)

        def chains(begin: Value, length: int) -> None:
            self._chains(rows, low, high, first, base, begin, length)

        self.tile_sums.over_blocks(b, self.frame.scratch, b.mul(count, b.index(self.layout.width)), chains)
        self.epilogue.from_tile(low, first, count)

    def _chains(self, rows: Rows, low: Value, high: Value, first: Value, base: Value, begin: Value, length: int) -> None:
        """The sums of `length` k from `begin` on in scratch, `depth` of them after the other."""
        b = self.frame.b
        self.tile_sums.clear(b, self.tile_sums.sums_at(b, self.frame.scratch), b.mul(b.sub(high, low), b.index(self.layout.width)))
        whole = length // self.depth * self.depth
        with b.loop(b.index(0), b.index(whole), b.index(self.depth)) as loop:
            self._add_block(rows, low, high, first, base, b.add(begin, loop.iv), self.depth)
        if whole < length:
            self._add_block(rows, low, high, first, base, b.add(begin, b.index(whole)), length - whole)

    def _add_block(self, rows: Rows, low: Value, high: Value, first: Value, base: Value, k: Value, depth: int) -> None:
        """The products of `depth` k from `k` on, added to the sums in scratch."""
        b, width = self.frame.b, self.layout.width
        if self.widens:
            part = b.address(self.frame.scratch, self.frame.evaluator.sizes(self._panel_offset), b.i8)
            source = b.address(base, b.mul(b.div(k, b.index(2)), b.index(width)), b.f32)
            widen_panel(b, source, part, -(-depth // 2), width, self.shape.lanes, ahead=self.depth // 2)
        else:
            part = b.address(base, b.mul(k, b.index(width)), b.f32)
        self._by_columns(first, functools.partial(self._add_columns, rows, low, high, part, k, depth))

    def _add_columns(self, rows: Rows, low: Value, high: Value, part: Value, k: Value, depth: int, columns: int) -> None:
        """The same for the first `columns` of a panel, whose block is `part`."""
        b, width = self.frame.b, self.layout.width
        for tile, begin, end in row_ranges(b, low, high, self.row_tiles):
            for column in range(0, columns, tile.columns):
                shape = replace(tile, vectors=min(tile.vectors, -(-(columns - column) // tile.lanes)))
                with b.loop(begin, end, b.index(tile.rows)) as loop:
                    row = b.sub(loop.iv, low)
                    left = self._strided(rows, loop.iv)
                    at = b.add(b.mul(row, b.index(width)), b.index(column))
                    sums = b.address(self.tile_sums.sums_at(b, self.frame.scratch), at, b.f32)
                    a, panel = replace(left, base=b.address(left.base, k, b.f32)), self._panel(part, tile, row, column)
                    made = accumulate(b, shape, a, panel, b.index(depth), load_tile(b, shape, sums, width), pairs=self.widens)
                    store_tile(b, shape, made, sums, width)

    def _by_tiles(self, rows: Rows, low: Value, high: Value, first: Value, base: Value) -> None:
        """All rows by matrix instructions: 32, then 16, then what is left."""
        b, frame = self.frame.b, self.frame

        def block(row: Value, a: list[Strided], count: Value) -> None:
            with frame.evaluator.scope():
                panel = self._asking(Panel(base, b.index(self.layout.width), ALIGN), base, b.sub(row, low), STEP_ROWS, (0, 1))
                self._by_columns(first, functools.partial(self._multiply_tiles, a, panel))
                self.epilogue.from_tile(row, first, count)

        position = low
        for tiles in (BLOCK_TILES, 1):
            step = b.index(tiles * TILE_ROWS)
            end = b.add(position, b.mul(b.div(b.sub(high, position), step), step))
            with b.loop(position, end, step) as loop:
                block(loop.iv, [self._strided(rows, b.add(loop.iv, b.index(t * TILE_ROWS))) for t in range(tiles)], step)
            position = end
        with b.when(b.compare("slt", position, high)):
            space = b.address(frame.scratch, frame.evaluator.sizes(self._panel_offset), b.i8)
            left = b.sub(high, position)
            block(position, [copy_rows(b, self._strided(rows, position), left, int(self.layout.k), space)], left)

    def _panel(self, base: Value, tile: TileShape, row: Value, column: int) -> Panel:
        """The panel from `column` on for a block of rows, number `row` of the tile the first, with what to ask memory for meanwhile.

        A full block of rows has enough to do for a near cache to keep up by itself; what it asks for is a part of the next panel, whose
        first block would use it up faster than a far cache can send it. Fewer rows ask for the panel itself as well.
        """
        b, layout, full = self.frame.b, self.layout, tile.rows == self.shape.rows
        align = min(ALIGN, self.shape.lanes * 4)
        panel = Panel(b.address(base, b.index(column), b.f32) if column else base, b.index(layout.width), align)
        if not layout.packed or layout.pairs is not None:
            return replace(panel, prefetch=self.ahead if layout.packed and not self.widens else 0)
        if self.tiling.lines == 0:
            return replace(panel, prefetch=0 if full else self.ahead)
        if full:
            return self._asking(panel, base, row, UNROLL, (column // tile.columns, -(-layout.width // tile.columns)))
        return self._asking(replace(panel, prefetch=self.ahead), base, row, UNROLL, None)

    def _asking(self, panel: Panel, base: Value, row: Value, step: int, share: tuple[int, int] | None) -> Panel:
        """The panel with what the block that starts at number `row` of the tile asks for of what follows: its part of the lines, or all.

        `base`: of all columns. `step`: rows of a panel that one step of the inner loop takes. `share`: of the column tiles that have a part
        of the lines each, which this is, and how many there are; None: all lines. What follows is the next block of k, or the next panel.
        """
        b, layout = self.frame.b, self.layout
        full = step * layout.width * 4 // CACHE_LINE  # lines of a panel for each step
        least = layout.dispatch.table.bounds(layout.m)[0]
        blocks = max(USUAL_BLOCKS, -(-min(self.chunk, int(least)) // self.block_rows)) if least.is_Integer else USUAL_BLOCKS
        number, shares = share or (0, 1)
        lines = min(full, self.tiling.lines or -(-full // (blocks * shares))) if share else full
        parts = -(-full // (lines * shares))  # that each column tile asks for, one in each block of rows
        depth = b.index(self.depth) if self.depth else self.frame.evaluator.sizes(layout.panel_rows)
        part = b.add(b.minimum(b.div(row, b.index(self.block_rows)), b.index(parts - 1)), b.index(number * parts))
        following = b.address(base, b.mul(depth, b.index(layout.width)), b.f32)
        next_panel = b.address(following, b.mul(part, b.mul(depth, b.index(lines * CACHE_LINE // 4 // step))), b.f32)
        return replace(panel, next_panel=next_panel, lines=lines)

    # -- the left side
    def _rows(self, low: Value, high: Value, fresh: Value | None) -> Rows | WindowReader:
        ev, layout = self.frame.evaluator, self.layout
        if layout.windows is None:
            return self._rows_in_place() if layout.in_place else self._evaluated_rows(low, high, fresh)
        run_of_zeros = ev.b.address(self.frame.scratch, ev.sizes(self._rows_offset), ev.b.i8)
        point = dict(zip(self.root.batch, self.points.batch, strict=True))
        return WindowReader(ev, layout.windows, layout.sizes, tuple(layout.real(self.root.m)), point, run_of_zeros)

    @contextmanager
    def zeros(self, frame: Frame) -> Iterator[None]:
        """The run of zeros that windows outside of an image read, written once a call."""
        b, ev, windows = frame.b, frame.evaluator, self.layout.windows
        if windows is not None and windows.padded:
            run = Buffer(b.address(frame.scratch, ev.sizes(self._rows_offset), b.i8), b.f32, (windows.run,), (sympy.S.One,))
            over_lanes(ev, windows.run, lambda k: ev.store(b.const(b.f32, 0.0), run, [k]))
        yield

    def _rows_in_place(self) -> Rows:
        b, ev = self.frame.b, self.frame.evaluator
        buffer = ev.buffers[self.layout.left]
        base = ev.locate(buffer, ev.apply(self.root.lhs_map, self.points.at()))
        stride: Expr = sympy.S.Zero
        if self.layout.left_groups:
            stride = buffer.strides[dim_positions(self.root.lhs_map).index(self.layout.left_groups[-1][-1])]
        return Rows(b.address(buffer.pointer, base, buffer.kind), ev.sizes(stride), b.index(0))

    def _evaluated_rows(self, low: Value, high: Value, fresh: Value | None) -> Rows:
        """The chunk's rows in scratch, transposed and with the prologue applied."""
        b, ev = self.frame.b, self.frame.evaluator
        rows = Rows(
            b.address(self.frame.scratch, ev.sizes(self._rows_offset), b.i8), ev.sizes(sympy.expand(self.layout.k + ROW_PADDING)), low
        )
        with ExitStack() as stack:
            if fresh is not None:
                stack.enter_context(b.when(fresh))
                stack.enter_context(ev.scope())
            self._evaluate_rows(rows, low, high)
        return rows

    def _evaluate_rows(self, rows: Rows, low: Value, high: Value) -> None:
        b, ev = self.frame.b, self.frame.evaluator
        target = Buffer(rows.base, self.layout.left_kind, (self.layout.k,), (sympy.S.One,))
        k_dims = self.layout.real(self.root.k)
        with b.loop(low, high, b.index(1)) as loop, ev.scope():
            start = b.mul(b.sub(loop.iv, low), rows.stride)
            with nest(ev, self.sizes, k_dims[:-1]) as outer:

                def write(k: Coord) -> None:
                    point = self.points.at(m=loop.iv, groups=self.layout.left_groups, k={**outer, **({k_dims[-1]: k} if k_dims else {})})
                    at = flat_index(ev, self.sizes, k_dims, {**outer, **({k_dims[-1]: b.index(0)} if k_dims else {})})
                    offset = b.add(start, at)
                    where: Coord = Lane(b.add(offset, k.base)) if isinstance(k, Lane) else b.add(offset, k)
                    ev.store(ev.value(self.layout.left, ev.apply(self.root.lhs_map, point)), target, [where])

                if k_dims:
                    over_lanes(ev, self.sizes[k_dims[-1]], write)
                else:
                    write(b.index(0))

    def _strided(self, rows: Rows, row: Value) -> Strided:
        b = self.frame.b
        return Strided(b.address(rows.base, b.mul(b.sub(row, rows.first), rows.stride), self.layout.left_kind), rows.stride, b.index(1))

    # -- rows by a panel
    def _by_columns(self, first: Value, multiply: Multiply) -> None:
        """The panel that starts at column `first`, by all of its columns; the last panel may have fewer."""
        b, n, width = self.frame.b, self.layout.n, self.layout.width
        remainder = int(n) % width if n.is_Integer else 0
        if remainder == 0 or (width - remainder < self.shape.lanes and not self.in_registers):
            multiply(width)
        elif int(n) < width:
            multiply(remainder)
        else:
            end = b.add(first, b.index(width))
            with b.when(b.compare("sgt", end, b.index(int(n)))):
                multiply(remainder)
            with b.when(b.compare("sle", end, b.index(int(n)))):
                multiply(width)

    def _multiply(self, tile: TileShape, left: Left, panel: Callable[[int], Panel], row: Value, first: Value, columns: int) -> None:
        """The sums of a block of rows by the first `columns` of a panel, to memory through the epilogue or to the L1 tile.

        `panel`: the panel from a column on.
        """
        b, width = self.frame.b, self.layout.width
        for column in range(0, columns, tile.columns):
            part = replace(tile, vectors=min(tile.vectors, -(-(columns - column) // tile.lanes)))
            made = self._sums(part, left, panel(column))
            if self.in_registers:
                self.epilogue.from_registers(part, made, row, b.add(first, b.index(column)), columns - column)
            else:
                store_tile(b, part, made, b.address(self.frame.scratch, b.index(column), b.f32), width)

    def _multiply_tiles(self, a: list[Strided], panel: Panel, columns: int) -> None:
        """The same by matrix instructions, for 16 rows each of `a`, to the L1 tile."""
        b, width = self.frame.b, self.layout.width

        def chains(begin: Value, length: int) -> None:
            left = [replace(each, base=b.address(each.base, begin, ir.BF16Type.get())) for each in a]
            right = replace(panel, base=b.address(panel.base, b.mul(b.div(begin, b.index(2)), b.index(width)), b.i32))
            multiply_tiles(b, left, right, columns, length, self.tile_sums.sums_at(b, self.frame.scratch), width)

        self.tile_sums.over_blocks(b, self.frame.scratch, b.index(len(a) * TILE_ROWS * width), chains)

    def _sums(self, part: TileShape, left: Left, panel: Panel) -> list[Value]:
        b, layout = self.frame.b, self.layout
        if layout.pairs is None:
            left = replace(left, is_long=is_long(layout.dispatch.table, layout.k)) if isinstance(left, Strided) else left
            return accumulate(b, part, left, panel, self.frame.evaluator.sizes(layout.k), zeros(b, part))
        assert isinstance(left, Strided)
        return (accumulate_dots if layout.reads_pairs else accumulate_widened)(b, part, left, panel, int(layout.k), zeros(b, part))


def emit_contraction(module: ir.Module, dispatch: Dispatch, target: CpuTarget) -> Launch:
    """Append the kernel of a `contraction` dispatch."""
    return ContractionEmitter(dispatch, target).emit(module)
