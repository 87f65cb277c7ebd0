"""Contractions: sum over k of a*b with a fused prologue on either side and a fused epilogue.

Convolutions are contractions whose right side is windows. The grid is batch x row chunks x column panels, panels fastest, so that
consecutive tiles share their rows. A constant right side is packed at compile time into panels [n/48][k][48], one layout for every
instruction set; another right side is packed by the tile into scratch. Rows are read in place where they lie densely along k, otherwise
(a transposition, a prologue) they are evaluated into scratch first. A bfloat16 weight lies in panels of pairs (codegen/tile_bf16.py); a
processor that multiplies pairs reads rows in bfloat16 too, others have them widened in scratch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import sympy

from llmos.compiler.codegen.builder import Value
from llmos.compiler.codegen.coordinates import Coord, Lane, Spread
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.kernel import Frame, Launch, ceil_div, kernel, product, split_index
from llmos.compiler.codegen.layout import Layout
from llmos.compiler.codegen.memory import Buffer
from llmos.compiler.codegen.packing import PANEL
from llmos.compiler.codegen.tile import Panel, Strided, TileShape, accumulate, for_row_blocks, store_tile, zeros
from llmos.compiler.codegen.tile_amx import TILE_ROWS, multiply_tiles
from llmos.compiler.codegen.tile_bf16 import PairArithmetic, accumulate_dots, accumulate_widened, widened_tile
from llmos.compiler.ir import ir
from llmos.compiler.linalg import dim_positions
from llmos.compiler.symbolic import Expr

ROW_CHUNK_BYTES = 1 << 20  # rows of one tile stay in half of a level-2 cache
MAX_ROWS = 256
ALIGN = 64
PREFETCH = 16  # rows of a packed panel between a read and the request for it: measured best of 0, 16, 32 and 64 with weights cold and warm
ROW_PADDING = 16  # elements between evaluated rows, so that rows of a power of two don't share cache sets


def row_chunk(k: Expr, packed: bool) -> int:
    """Rows of one tile: a multiple of 8 that keeps rows x k within the cache budget; many where each tile packs its own panel."""
    if not packed:
        return MAX_ROWS
    if not k.is_Integer:
        return 64
    return max(16, min(MAX_ROWS, ROW_CHUNK_BYTES // (4 * max(1, int(k))) // 8 * 8))


Multiply: TypeAlias = Callable[[Strided, Value, int], None]  # rows, panel, number of columns: their sums to the L1 tile


@dataclass(frozen=True)
class Rows:
    """The left side of a tile: row r starts at base + (r - first) * stride elements."""

    base: Value
    stride: Value
    first: Value


class ContractionEmitter:
    """Emits one contraction dispatch."""

    def __init__(self, dispatch: Dispatch, shape: TileShape, pairs: PairArithmetic) -> None:
        self.dispatch, self.layout = dispatch, Layout(dispatch, pairs)
        self.shape = widened_tile(shape) if self.layout.pairs is PairArithmetic.WIDENED else shape
        self.root, self.sizes = self.layout.root, self.layout.sizes
        self.chunk = row_chunk(self.layout.k, self.layout.packed)

    def emit(self, module: ir.Module) -> Launch:
        layout = self.layout
        panels, chunks, batch = ceil_div(layout.n, PANEL), ceil_div(layout.m, self.chunk), product(layout.batch)
        with kernel(module, self.dispatch) as frame, frame.tiles() as tile:
            self.frame: Frame = frame
            b, size = frame.b, frame.evaluator.sizes
            flat, chunk, panel = split_index(b, size, tile, [batch, chunks, panels])
            self.batch = split_index(b, size, flat, layout.batch)
            low = b.mul(chunk, b.index(self.chunk))
            high = b.minimum(b.add(low, b.index(self.chunk)), size(layout.m))
            self._tile(low, high, b.mul(panel, b.index(PANEL)), panel)
        return Launch(sympy.expand(batch * chunks * panels), self._scratch_bytes())

    # -- scratch: the accumulator tile, then evaluated rows, then a panel packed here
    @property
    def _rows_offset(self) -> Expr:
        rows = TILE_ROWS if self.layout.pairs is PairArithmetic.TILES else self.shape.rows
        return sympy.Integer(rows * PANEL * 4)

    @property
    def _panel_offset(self) -> Expr:
        rows = sympy.S.Zero if self.layout.in_place else 4 * self.chunk * (self.layout.k + ROW_PADDING)
        return sympy.expand(ceil_div(sympy.expand(self._rows_offset + rows), ALIGN) * ALIGN)

    def _scratch_bytes(self) -> Expr:
        return sympy.expand(self._panel_offset + (0 if self.layout.packed else 4 * PANEL * self.layout.k))

    # -- one tile
    def _tile(self, low: Value, high: Value, first: Value, panel: Value) -> None:
        b, frame, size = self.frame.b, self.frame, self.frame.evaluator.sizes
        if self.layout.weight is not None:
            weight = frame.evaluator.buffers[self.layout.weight].pointer
            base = b.address(weight, b.mul(panel, b.mul(size(self.layout.panel_rows), b.index(PANEL))), b.f32)
        else:
            base = b.address(frame.scratch, size(self._panel_offset), b.i8)
            self._pack_panel(base, first)
        rows = self._rows_in_place() if self.layout.in_place else self._evaluated_rows(low, high)
        if self.layout.pairs is PairArithmetic.TILES:
            with b.loop(low, high, b.index(TILE_ROWS)) as loop, frame.evaluator.scope():
                count = b.minimum(b.index(TILE_ROWS), b.sub(high, loop.iv))
                self._block(rows, base, loop.iv, first, count, functools.partial(self._multiply_tiles, count))
            return

        def block(row: Value, count: int) -> None:
            part = TileShape(min(count, self.shape.rows), self.shape.vectors, self.shape.lanes)
            upcoming = self._upcoming(base, b.sub(row, low))
            self._block(rows, base, row, first, b.index(count), functools.partial(self._accumulate, part, upcoming))

        for_row_blocks(b, low, high, self.shape.rows, block)

    def _upcoming(self, panel: Value, row: Value) -> Value | None:
        """The part of the next panel to ask memory for during a block of rows: a third in each of the first three blocks.

        The first block of a panel uses it up faster than a far cache can send it; so the panel has to be on its way before.
        """
        b, layout = self.frame.b, self.layout
        if not layout.packed or layout.pairs is not None:
            return None
        depth = self.frame.evaluator.sizes(layout.k)
        third = b.minimum(b.div(row, b.index(self.shape.rows)), b.index(2))
        following = b.address(panel, b.mul(depth, b.index(PANEL)), b.f32)
        return b.address(following, b.mul(third, b.mul(depth, b.index(PANEL // 3))), b.f32)

    def _rows_in_place(self) -> Rows:
        b, ev = self.frame.b, self.frame.evaluator
        buffer = ev.buffers[self.layout.left]
        base = ev.locate(buffer, ev.apply(self.root.lhs_map, self._point()))
        stride: Expr = sympy.S.Zero
        if self.layout.m_groups:
            stride = buffer.strides[dim_positions(self.root.lhs_map).index(self.layout.m_groups[-1][-1])]
        return Rows(b.address(buffer.pointer, base, buffer.kind), ev.sizes(stride), b.index(0))

    def _evaluated_rows(self, low: Value, high: Value) -> Rows:
        """The chunk's rows in scratch, transposed and with the prologue applied."""
        b, ev = self.frame.b, self.frame.evaluator
        rows = Rows(
            b.address(self.frame.scratch, ev.sizes(self._rows_offset), b.i8), ev.sizes(sympy.expand(self.layout.k + ROW_PADDING)), low
        )
        target = Buffer(rows.base, self.layout.left_kind, (self.layout.k,), (sympy.S.One,))
        k_dims = self.layout.real(self.root.k)
        with b.loop(low, high, b.index(1)) as loop, ev.scope():
            start = b.mul(b.sub(loop.iv, low), rows.stride)
            with self._nest(k_dims[:-1]) as outer:

                def write(k: Coord) -> None:
                    point = self._point(m=loop.iv, k={**outer, **({k_dims[-1]: k} if k_dims else {})})
                    at = self._flat(k_dims, {**outer, **({k_dims[-1]: b.index(0)} if k_dims else {})})
                    offset = b.add(start, at)
                    where: Coord = Lane(b.add(offset, k.base)) if isinstance(k, Lane) else b.add(offset, k)
                    ev.store(ev.value(self.layout.left, ev.apply(self.root.lhs_map, point)), target, [where])

                if k_dims:
                    self._over_lanes(self.sizes[k_dims[-1]], write)
                else:
                    write(b.index(0))
        return rows

    @contextmanager
    def _nest(self, dims: Sequence[int]) -> Iterator[dict[int, Coord]]:
        """Loops over some of the root's dims, outermost first; gives their counters."""
        b, ev = self.frame.b, self.frame.evaluator
        counters: dict[int, Coord] = {}
        with ExitStack() as stack:
            for dim in dims:
                loop = stack.enter_context(b.loop(b.index(0), ev.sizes(self.sizes[dim]), b.index(1)))
                stack.enter_context(ev.scope())
                counters[dim] = loop.iv
            yield counters

    def _flat(self, dims: Sequence[int], counters: dict[int, Coord]) -> Value:
        """The row-major number of a point of some dims."""
        b, flat = self.frame.b, self.frame.b.index(0)
        for dim in dims:
            flat = b.add(b.mul(flat, self.frame.evaluator.sizes(self.sizes[dim])), counters[dim])
        return flat

    def _over_lanes(self, extent: Expr, point: Callable[[Coord], None]) -> None:
        """Call `point` over an extent by vectors, the last one under a mask."""
        b, ev = self.frame.b, self.frame.evaluator
        high, width = ev.sizes(extent), b.index(b.lanes)
        whole = b.mul(b.div(high, width), width)
        with b.loop(b.index(0), whole, width) as loop, ev.scope():
            point(Lane(loop.iv))
        if extent.is_Integer and int(extent) % b.lanes == 0:
            return
        with b.loop(whole, high, width) as loop, ev.scope(), ev.masked(b.tail_mask(b.sub(high, loop.iv))):
            point(Lane(loop.iv))

    def _pack_panel(self, base: Value, first: Value) -> None:
        """48 columns of the right side into scratch as [k][48]. Columns past the end hold anything: no output reads them.

        Columns that can't be walked as one (the pixels of several image rows) are copied run by run, each within one row.
        """
        b, size, groups = self.frame.b, self.frame.evaluator.sizes, self.layout.right_groups
        end = b.minimum(b.add(first, b.index(PANEL)), size(self.layout.n))
        if len(groups) <= 1:
            self._copy_run(base, b.index(0), {}, first, b.sub(end, first))
            return
        width = size(self.layout.extent(groups[-1]))
        row, last = b.div(first, width), b.div(b.sub(end, b.index(1)), width)
        with b.loop(row, b.add(last, b.index(1)), b.index(1)) as loop, self.frame.evaluator.scope():
            start = b.mul(loop.iv, width)
            low = b.binary("arith.maxsi", start, first)
            extents = [self.layout.extent(group) for group in groups[:-1]]
            outer = {group[-1]: index for group, index in zip(groups, split_index(b, size, loop.iv, extents), strict=False)}
            self._copy_run(base, b.sub(low, first), outer, b.sub(low, start), b.sub(b.minimum(b.add(start, width), end), low))

    def _copy_run(self, base: Value, column: Value, outer: dict[int, Coord], first: Value, length: Value) -> None:
        """Neighbouring columns, from coordinate `first` of the innermost n dim on, to `column` of the panel, for every k."""
        b, ev, groups = self.frame.b, self.frame.evaluator, self.layout.right_groups
        target = Buffer(base, b.f32, (), (sympy.S.One,))
        k_dims = self.layout.real(self.root.k)
        width = self.layout.extent(groups[-1]) if groups else sympy.S.One
        longest = min(PANEL, int(width)) if width.is_Integer else PANEL
        pieces = [(b.index(at), b.tail_mask(b.sub(length, b.index(at)))) for at in range(0, longest, b.lanes)]
        with self._nest(k_dims) as counters:
            row = b.add(b.mul(self._flat(k_dims, counters), b.index(PANEL)), column)
            for at, mask in pieces:
                n = {**outer, **({groups[-1][-1]: Lane(b.add(first, at))} if groups else {})}
                with ev.masked(mask):
                    value = b.splat(ev.value(self.root.rhs, ev.apply(self.root.rhs_map, self._point(n=n, k=counters))))
                    ev.store(value, target, [Lane(b.add(row, at))])

    # -- points of the root's loops
    def _point(self, m: Value | None = None, n: dict[int, Coord] | None = None, k: dict[int, Coord] | None = None) -> list[Coord]:
        """Loop coordinates from a flat m and the counters of n and k; what is not given is 0."""
        b, groups = self.frame.b, self.layout.m_groups
        point: list[Coord] = [b.index(0)] * self.layout.generic.rank
        for dim, coord in zip(self.root.batch, self.batch, strict=True):
            point[dim] = coord
        if m is not None and groups:
            extents = [self.layout.extent(group) for group in groups]
            for group, index in zip(groups, split_index(b, self.frame.evaluator.sizes, m, extents), strict=True):
                point[group[-1]] = index
        for dim, coord in {**(n or {}), **(k or {})}.items():
            point[dim] = coord
        return point

    def _lanes(self, groups: Sequence[Sequence[int]], first: Value) -> dict[int, Coord]:
        """Coordinates of the n dims for a vector of columns: neighbours where the dims can be walked as one, spread otherwise."""
        b, ev = self.frame.b, self.frame.evaluator
        if len(groups) <= 1:
            return {groups[0][-1]: Lane(first)} if groups else {}
        flat = ev.lanes_of(Lane(first))
        coords: dict[int, Coord] = {}
        for group in reversed(groups[1:]):
            size = ev.sizes(self.layout.extent(group))
            coords[group[-1]] = Spread(b.index(0), b.binary("arith.remsi", flat, size))
            flat = b.binary("arith.divsi", flat, size)
        coords[groups[0][-1]] = Spread(b.index(0), flat)
        return coords

    # -- rows by a panel
    def _block(self, rows: Rows, panel: Value, row: Value, first: Value, count: Value, multiply: Multiply) -> None:
        """`count` rows by one panel: accumulate in registers, then the epilogue from an L1 tile."""
        b, shape = self.frame.b, self.shape
        lhs = Strided(b.address(rows.base, b.mul(b.sub(row, rows.first), rows.stride), self.layout.left_kind), rows.stride, b.index(1))
        remainder = int(self.layout.n) % PANEL if self.layout.n.is_Integer else 0
        if remainder == 0 or PANEL - remainder < shape.lanes:
            multiply(lhs, panel, PANEL)
        else:  # the last panel is narrower
            is_last = b.compare("sgt", b.add(first, b.index(PANEL)), b.index(int(self.layout.n)))
            with b.when(is_last):
                multiply(lhs, panel, remainder)
            with b.when(b.compare("sle", b.add(first, b.index(PANEL)), b.index(int(self.layout.n)))):
                multiply(lhs, panel, PANEL)
        self._epilogue(row, first, count)

    def _accumulate(self, part: TileShape, upcoming: Value | None, lhs: Strided, panel: Value, columns: int) -> None:
        """The sums of some rows by the first `columns` of a panel, to the L1 tile."""
        b, shape = self.frame.b, self.shape
        prefetch = PREFETCH if self.layout.packed else 0
        for column in range(0, columns, shape.columns):
            vectors = min(shape.vectors, -(-(columns - column) // shape.lanes))
            part = TileShape(part.rows, vectors, part.lanes)
            right = Panel(b.address(panel, b.index(column), b.f32), b.index(PANEL), min(ALIGN, shape.lanes * 4), prefetch, upcoming)
            made = self._sums(part, lhs, right)
            store_tile(b, part, made, b.address(self.frame.scratch, b.index(column), b.f32), PANEL)

    def _multiply_tiles(self, count: Value, lhs: Strided, panel: Value, columns: int) -> None:
        """The same by matrix instructions, for up to 16 rows."""
        b = self.frame.b
        multiply_tiles(b, count, lhs, Panel(panel, b.index(PANEL), ALIGN), columns, int(self.layout.k), self.frame.scratch, PANEL)

    def _sums(self, part: TileShape, lhs: Strided, panel: Panel) -> list[Value]:
        b, layout = self.frame.b, self.layout
        if layout.pairs is None:
            return accumulate(b, part, lhs, panel, self.frame.evaluator.sizes(layout.k), zeros(b, part))
        return (accumulate_dots if layout.reads_pairs else accumulate_widened)(b, part, lhs, panel, int(layout.k), zeros(b, part))

    def _epilogue(self, row: Value, first: Value, count: Value) -> None:
        b, ev, n = self.frame.b, self.frame.evaluator, self.layout.n
        with b.loop(b.index(0), count, b.index(1)) as loop, ev.scope():
            m, at = b.add(row, loop.iv), b.mul(loop.iv, b.index(PANEL))
            if n.is_Integer and int(n) % PANEL == 0:
                self._columns(m, at, first, masked=False)
                return
            end = b.add(first, b.index(PANEL))
            with b.when(b.compare("sle", end, ev.sizes(n))), ev.scope():
                self._columns(m, at, first, masked=False)
            with b.when(b.compare("sgt", end, ev.sizes(n))), ev.scope():
                self._columns(m, at, first, masked=True)

    def _columns(self, m: Value, at: Value, first: Value, masked: bool) -> None:
        """One row of the tile through the epilogue to memory."""
        b, ev = self.frame.b, self.frame.evaluator
        with b.loop(b.index(0), b.index(PANEL), b.index(b.lanes)) as loop, ev.scope():
            n = b.add(first, loop.iv)
            mask = b.tail_mask(b.sub(ev.sizes(self.layout.n), n)) if masked else None
            with ev.masked(mask):
                total = b.load(b.address(self.frame.scratch, b.add(at, loop.iv), b.f32), b.vec(b.f32), ALIGN)
                self._finish(total, self._point(m=m, n=self._lanes(self.layout.n_groups, n)))

    def _finish(self, total: Value, point: list[Coord]) -> None:
        """The epilogue of one vector of sums, and its stores."""
        b, ev, root = self.frame.b, self.frame.evaluator, self.layout.value
        coords = ev.apply(self.root.out_map, point)
        if not self.layout.starts_at_zero:
            total = b.binary("arith.addf", b.splat(ev.value(self.layout.generic.inits[0], coords)), total)
        ev.bound[root] = lambda _: total
        for value, buffer in zip(self.dispatch.results, self.frame.outputs, strict=True):
            at = ev.result_coords(value, root, coords)
            ev.store(ev.value(value, at), buffer, at)
        del ev.bound[root]


def emit_contraction(module: ir.Module, dispatch: Dispatch, shape: TileShape, pairs: PairArithmetic) -> Launch:
    """Append the kernel of a `contraction` dispatch. `pairs`: how the processor multiplies bfloat16 best."""
    return ContractionEmitter(dispatch, shape, pairs).emit(module)
