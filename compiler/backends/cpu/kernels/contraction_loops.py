"""The loops of one tile of a contraction: rows by a panel of columns, in blocks that an arithmetic multiplies at once.

Sums stay in registers over all of k (`RegisterLoop`), wait in scratch while all rows are multiplied by a block of k (`KBlockLoop`), or
are matrix registers (`MatrixLoop`). Each sum is one chain over k in any case, of a long k one for each block (codegen/sums.py). Weights of
4 or 8 bits have loops of their own (contraction_groups.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from llmos.compiler.backends.cpu.arithmetic.base import MatrixArithmetic, PanelBlock, RegisterArithmetic
from llmos.compiler.backends.cpu.arithmetic.grouped import GroupArithmetic
from llmos.compiler.backends.cpu.arithmetic.register_tile import (
    Operand,
    Panel,
    Strided,
    TileShape,
    for_row_blocks,
    load_tile,
    row_ranges,
    row_tiles,
    store_tile,
    zeros,
)
from llmos.compiler.backends.cpu.kernels.contraction_groups import GroupLoop
from llmos.compiler.backends.cpu.kernels.contraction_prefetch import PanelPrefetch
from llmos.compiler.backends.cpu.kernels.contraction_schedule import Schedule
from llmos.compiler.backends.cpu.kernels.contraction_tile import PanelTile
from llmos.compiler.backends.cpu.kernels.epilogue import ALIGN, fits_registers
from llmos.compiler.codegen.builder import Value
from llmos.compiler.codegen.sums import TileSums


class MainLoop(Protocol):
    """Emits the products of a tile, and its epilogue."""

    @property
    def sums(self) -> TileSums:
        """Return the sums that lie at the beginning of scratch."""
        ...

    def emit(self, tile: PanelTile) -> None:
        """Emit the products of a tile and what follows them."""
        ...


def main_loop(schedule: Schedule) -> MainLoop:
    """Return the loops for a schedule and its plan's arithmetic."""
    arithmetic = schedule.plan.arithmetic
    if isinstance(arithmetic, GroupArithmetic):
        return GroupLoop(schedule, arithmetic)
    if isinstance(arithmetic, MatrixArithmetic):
        return MatrixLoop(schedule, arithmetic)
    return KBlockLoop(schedule, arithmetic) if schedule.k_block else RegisterLoop(schedule, arithmetic)


@dataclass(frozen=True)
class RegisterLoop:
    """Blocks of rows by all of k, whose sums go from registers through the epilogue where that is cheap, otherwise to L1 before."""

    schedule: Schedule
    arithmetic: RegisterArithmetic

    @functools.cached_property
    def _epilogue_in_registers(self) -> bool:
        return fits_registers(self.schedule.plan)

    @property
    def sums(self) -> TileSums:
        """Return the sums of one block of rows."""
        schedule = self.schedule
        return TileSums(schedule.block_rows * schedule.plan.width, schedule.shape.lanes, 0)

    def emit(self, tile: PanelTile) -> None:
        """Emit the tile a block of rows at a time."""
        b, shape = tile.b, self.schedule.shape
        surplus = 0 if self._epilogue_in_registers else shape.lanes - 1
        prefetch = PanelPrefetch(self.schedule, tile.frame)

        def block(row: Value, part: TileShape) -> None:
            k = tile.frame.emitter.sizes(self.schedule.plan.k)
            left = self.arithmetic.load_rows(b, tile.rows.block(row, part.rows), part.rows, k, tile.scratch)
            panels = functools.partial(prefetch.panel, tile.base, part, b.sub(row, tile.low))
            tile.by_columns(functools.partial(self._multiply, tile, part, left, panels, row), surplus)
            if not self._epilogue_in_registers:
                tile.epilogue.from_tile(row, tile.first, b.index(part.rows))

        for_row_blocks(b, tile.low, tile.high, row_tiles(shape, self.schedule.plan.width), block)

    def _multiply(self, tile: PanelTile, shape: TileShape, left: Operand, panel: Callable[[int], Panel], row: Value, columns: int) -> None:
        """The sums of a block of rows by the first `columns` of a panel. `panel`: the panel from a column on."""
        b, plan = tile.b, self.schedule.plan
        for column in range(0, columns, shape.columns):
            part = replace(shape, vectors=min(shape.vectors, -(-(columns - column) // shape.lanes)))
            start = zeros(b, part, self.arithmetic.accumulator_type)
            made = self.arithmetic.accumulate(b, part, left, panel(column), tile.frame.emitter.sizes(plan.k), start)
            if self._epilogue_in_registers:
                tile.epilogue.from_registers(part, made, row, b.add(tile.first, b.index(column)), columns - column)
            else:
                store_tile(b, part, made, b.address(tile.frame.scratch, b.index(column), b.f32), plan.width)


@dataclass(frozen=True)
class KBlockLoop:
    """All rows by one block of k after the other; sums wait in scratch between them: each is still one chain over k."""

    schedule: Schedule
    arithmetic: RegisterArithmetic

    @property
    def sums(self) -> TileSums:
        """Return the sums of all rows of a tile."""
        schedule = self.schedule
        return TileSums(schedule.chunk * schedule.plan.width, schedule.shape.lanes, int(schedule.plan.k))

    def emit(self, tile: PanelTile) -> None:
        """Emit the tile a block of k at a time, then the epilogue of all rows."""
        b = tile.b
        count = b.sub(tile.high, tile.low)
        chains = functools.partial(self._chains, tile)
        self.sums.over_blocks(b, tile.frame.scratch, b.mul(count, b.index(self.schedule.plan.width)), chains)
        tile.epilogue.from_tile(tile.low, tile.first, count)

    def _chains(self, tile: PanelTile, begin: Value, length: int) -> None:
        """The sums of `length` k from `begin` on in scratch, a block of them after the other."""
        b, step, width = tile.b, self.schedule.k_block, self.schedule.plan.width
        self.sums.clear(b, self.sums.sums_at(b, tile.frame.scratch), b.mul(b.sub(tile.high, tile.low), b.index(width)))
        whole = length // step * step
        with b.loop(b.index(0), b.index(whole), b.index(step)) as loop:
            self._add_block(tile, b.add(begin, loop.iv), step)
        if whole < length:
            self._add_block(tile, b.add(begin, b.index(whole)), length - whole)

    def _add_block(self, tile: PanelTile, k: Value, num_k: int) -> None:
        """The products of `num_k` k from `k` on, added to the sums in scratch."""
        schedule = self.schedule
        block = PanelBlock(num_k, schedule.plan.width, schedule.shape.lanes, schedule.k_block)
        part = self.arithmetic.load_block(tile.b, tile.base, k, block, tile.scratch)
        tile.by_columns(functools.partial(self._add_columns, tile, part, k, num_k), schedule.shape.lanes - 1)

    def _add_columns(self, tile: PanelTile, part: Value, k: Value, num_k: int, columns: int) -> None:
        """The same for the first `columns` of a panel, whose block is `part`."""
        b, width = tile.b, self.schedule.plan.width
        for shape, begin, end in row_ranges(b, tile.low, tile.high, row_tiles(self.schedule.shape, width)):
            for column in range(0, columns, shape.columns):
                narrow = replace(shape, vectors=min(shape.vectors, -(-(columns - column) // shape.lanes)))
                with b.loop(begin, end, b.index(shape.rows)) as loop:
                    self._add_rows(tile, part, k, num_k, (shape, narrow), loop.iv, column)

    def _add_rows(
        self, tile: PanelTile, part: Value, k: Value, num_k: int, shapes: tuple[TileShape, TileShape], first: Value, column: int
    ) -> None:
        """The same for one register tile. `shapes`: of all columns, and of those that there are."""
        b, width, (shape, narrow) = tile.b, self.schedule.plan.width, shapes
        row = b.sub(first, tile.low)
        left = tile.dense_rows.block(first, shape.rows)
        at = b.add(b.mul(row, b.index(width)), b.index(column))
        sums = b.address(self.sums.sums_at(b, tile.frame.scratch), at, b.f32)
        a = replace(left, base=b.address(left.base, k, b.f32))
        panel = PanelPrefetch(self.schedule, tile.frame).panel(part, shape, row, column)
        start = load_tile(b, narrow, sums, width, self.arithmetic.accumulator_type)
        made = self.arithmetic.accumulate(b, narrow, a, panel, b.index(num_k), start)
        store_tile(b, narrow, made, sums, width)


@dataclass(frozen=True)
class MatrixLoop:
    """Blocks of matrix tiles of rows by all of k, largest first; the last few rows are copied so that a tile of them may be read."""

    schedule: Schedule
    arithmetic: MatrixArithmetic

    @property
    def sums(self) -> TileSums:
        """Return the sums of one block of rows."""
        schedule = self.schedule
        long = 0 if self.arithmetic.sums_are_exact else int(schedule.plan.k)
        return TileSums(schedule.block_rows * schedule.plan.width, schedule.shape.lanes, long)

    def emit(self, tile: PanelTile) -> None:
        """Emit the tile a block of matrix tiles at a time."""
        b, rows, tile_rows = tile.b, tile.dense_rows, self.arithmetic.tile_rows
        position = tile.low
        for tiles in self.arithmetic.row_tiles:
            step = b.index(tiles * tile_rows)
            end = b.add(position, b.mul(b.div(b.sub(tile.high, position), step), step))
            with b.loop(position, end, step) as loop:
                left = [rows.block(b.add(loop.iv, b.index(t * tile_rows)), tile_rows) for t in range(tiles)]
                self._block(tile, loop.iv, left, step)
            position = end
        with b.when(b.compare("slt", position, tile.high)):
            space, count = tile.scratch(), b.sub(tile.high, position)
            few = rows.block(position, tile_rows)
            self._block(tile, position, [self.arithmetic.copy_rows(b, few, count, int(self.schedule.plan.k), space)], count)

    def _block(self, tile: PanelTile, row: Value, a: list[Strided], count: Value) -> None:
        """`count` rows from `row` on, which are those of `a`."""
        b, plan = tile.b, self.schedule.plan
        prefetch = PanelPrefetch(self.schedule, tile.frame)
        with tile.frame.emitter.scope():
            panel = Panel(tile.base, b.index(plan.width), ALIGN)
            panel = prefetch.next_panel(panel, tile.base, b.sub(row, tile.low), self.arithmetic.words_per_step, (0, 1))
            tile.by_columns(functools.partial(self._multiply, tile, a, panel), self.schedule.shape.lanes - 1)
            tile.epilogue.from_tile(row, tile.first, count)

    def _multiply(self, tile: PanelTile, a: list[Strided], panel: Panel, columns: int) -> None:
        """The sums of a tile of rows for each of `a`, in L1."""
        b, width, arithmetic = tile.b, self.schedule.plan.width, self.arithmetic

        def chains(begin: Value, length: int) -> None:
            left = [replace(each, base=b.address(each.base, begin, arithmetic.left_type)) for each in a]
            words = b.mul(b.div(begin, b.index(arithmetic.k_per_word)), b.index(width))
            right = replace(panel, base=b.address(panel.base, words, b.i32))
            arithmetic.multiply(b, left, right, columns, length, self.sums.sums_at(b, tile.frame.scratch), width)

        if arithmetic.sums_are_exact:
            chains(b.index(0), int(self.schedule.plan.k))
            return
        self.sums.over_blocks(b, tile.frame.scratch, b.index(len(a) * arithmetic.tile_rows * width), chains)
