"""The loops of one tile of a contraction by a weight of 4 or 8 bits: few rows from registers, many by blocks of k in scratch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial

from llmos.compiler.backends.cpu.arithmetic.grouped import GroupArithmetic, NumberPanel, ScratchBlock
from llmos.compiler.backends.cpu.arithmetic.register_tile import (
    Strided,
    TileShape,
    for_row_blocks,
    load_tile,
    row_ranges,
    store_tile,
)
from llmos.compiler.backends.cpu.kernels.contraction_schedule import Schedule
from llmos.compiler.backends.cpu.kernels.contraction_tile import PanelTile
from llmos.compiler.backends.cpu.kernels.epilogue import fits_registers
from llmos.compiler.codegen.builder import Value
from llmos.compiler.codegen.sums import TileSums


@dataclass(frozen=True)
class GroupLoop:
    """Both ways in one kernel, chosen by the rows of a tile; they give the same bits."""

    schedule: Schedule
    arithmetic: GroupArithmetic

    @property
    def sums(self) -> TileSums:
        """Return the sums of all rows of a tile."""
        schedule = self.schedule
        rows = max(schedule.chunk, self._few)
        return TileSums(rows * schedule.plan.width, schedule.shape.lanes, 0)

    @property
    def _few(self) -> int:
        return self.arithmetic.few_rows(self.schedule.shape.lanes)

    @property
    def _k(self) -> int:
        return int(self.schedule.plan.k)

    @cached_property
    def _epilogue_in_registers(self) -> bool:
        return fits_registers(self.schedule.plan)

    def emit(self, tile: PanelTile) -> None:
        """Emit the tile."""
        b, most = tile.b, self.schedule.plan.dispatch.table.bounds(self.schedule.plan.m)[1]
        if most.is_Integer and int(most) <= self._few:
            self._few_rows(tile)
            return
        count, few = b.sub(tile.high, tile.low), b.index(self._few)
        with b.when(b.compare("sle", count, few)), tile.frame.emitter.scope():
            self._few_rows(tile)
        with b.when(b.compare("sgt", count, few)), tile.frame.emitter.scope():
            self._many_rows(tile)

    def _panel(self, tile: PanelTile) -> NumberPanel:
        """Where the numbers, scales and zero points of the tile's columns lie."""
        b, plan, buffers = tile.b, self.schedule.plan, tile.frame.emitter.buffers
        quantized = plan.quantized
        assert quantized is not None
        at = b.mul(tile.first, b.index(quantized.num_scales))
        zero = None if quantized.zero_point is None else b.address(buffers[quantized.zero_point].pointer, at, b.i8)
        return NumberPanel(tile.base, b.address(buffers[quantized.scale].pointer, at, b.f32), zero, plan.width)

    # -- few rows
    @property
    def _few_tiles(self) -> list[TileShape]:
        return self.arithmetic.few_tiles(self.schedule.shape.lanes, self.schedule.plan.width)

    def _few_rows(self, tile: PanelTile) -> None:
        b, panel = tile.b, self._panel(tile)
        surplus = 0 if self._epilogue_in_registers else self.schedule.shape.lanes - 1

        def block(row: Value, shape: TileShape) -> None:
            left = tile.dense_rows.block(row, shape.rows)
            tile.by_columns(partial(self._multiply, tile, shape, left, panel, row), surplus)
            if not self._epilogue_in_registers:
                tile.epilogue.from_tile(row, tile.first, b.index(shape.rows))

        for_row_blocks(b, tile.low, tile.high, self._few_tiles, block)

    def _multiply(self, tile: PanelTile, shape: TileShape, left: Strided, panel: NumberPanel, row: Value, columns: int) -> None:
        """The first `columns` of a panel by a block of rows, through the epilogue or to scratch."""
        b, width = tile.b, self.schedule.plan.width
        for column, part in _column_tiles(shape, columns):
            made = self.arithmetic.accumulate(b, part, left, panel.at(b, column), self._k)
            if self._epilogue_in_registers:
                tile.epilogue.from_registers(part, made, row, b.add(tile.first, b.index(column)), columns - column)
            else:
                store_tile(b, part, made, b.address(tile.frame.scratch, b.index(column), b.f32), width)

    # -- many rows
    @property
    def _many_tiles(self) -> list[TileShape]:
        """The target's tile, and fewer rows by as many columns: those that lie together in scratch."""
        shape = self.schedule.shape
        return [shape, *(replace(shape, rows=rows) for rows in (8, 4, 2, 1) if rows < shape.rows)]

    def _many_rows(self, tile: PanelTile) -> None:
        b, step, count = tile.b, self.schedule.k_block, tile.b.sub(tile.high, tile.low)
        self.sums.clear(b, tile.frame.scratch, b.mul(count, b.index(self.schedule.plan.width)))
        panel, whole = self._panel(tile), self._k // step * step
        with b.loop(b.index(0), b.index(whole), b.index(step)) as loop:
            self._add_block(tile, panel, loop.iv, step)
        if whole < self._k:
            self._add_block(tile, panel, b.index(whole), self._k - whole)
        tile.epilogue.from_tile(tile.low, tile.first, count)

    def _add_block(self, tile: PanelTile, panel: NumberPanel, k: Value, num_k: int) -> None:
        """The products of `num_k` k from `k` on, added to the sums in scratch."""
        b, schedule, shape = tile.b, self.schedule, self.schedule.shape
        block = ScratchBlock(tile.scratch(), shape.columns, self.arithmetic.scratch_rows(schedule.k_block), shape.lanes)
        self.arithmetic.unpack_block(b, panel, k, num_k, block)
        for part, begin, end in row_ranges(b, tile.low, tile.high, self._many_tiles):
            for column in range(0, schedule.plan.width, shape.columns):
                with b.loop(begin, end, b.index(part.rows)) as loop:
                    self._add_rows(tile, panel.at(b, column), (k, num_k), part, loop.iv, (column, block.at(b, column, b.index(0))))

    def _add_rows(
        self, tile: PanelTile, panel: NumberPanel, extent: tuple[Value, int], shape: TileShape, row: Value, place: tuple[int, Value]
    ) -> None:
        """The same for one register tile. extent: the first k and how many; place: its first column, and where its block lies."""
        b, width, (column, part) = tile.b, self.schedule.plan.width, place
        at = b.add(b.mul(b.sub(row, tile.low), b.index(width)), b.index(column))
        sums, left = b.address(tile.frame.scratch, at, b.f32), tile.dense_rows.block(row, shape.rows)
        made = self.arithmetic.accumulate_block(b, shape, left, panel, part, *extent, load_tile(b, shape, sums, width))
        store_tile(b, shape, made, sums, width)


def _column_tiles(shape: TileShape, columns: int) -> list[tuple[int, TileShape]]:
    """The first column of each tile of a panel's columns, and the tile with the vectors that there are."""
    starts = range(0, columns, shape.columns)
    return [(column, replace(shape, vectors=min(shape.vectors, -(-(columns - column) // shape.lanes)))) for column in starts]
