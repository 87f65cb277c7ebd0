"""What a contraction's inner loop requests from memory while it multiplies: later rows of a panel, or the panel that follows."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llmos.compiler.backends.cpu.arithmetic.base import Prefetch
from llmos.compiler.backends.cpu.arithmetic.register_tile import CACHE_LINE, UNROLL, Panel, TileShape
from llmos.compiler.backends.cpu.kernels.contraction_schedule import Schedule
from llmos.compiler.backends.cpu.kernels.epilogue import ALIGN
from llmos.compiler.codegen.builder import Value
from llmos.compiler.codegen.kernel import Frame

DEFAULT_BLOCKS = 4  # of rows in a tile whose number isn't known: by then the whole next panel has been requested


@dataclass(frozen=True)
class PanelPrefetch:
    """Emits panels with their requests, in one kernel."""

    schedule: Schedule
    frame: Frame

    def panel(self, base: Value, tile: TileShape, row: Value, column: int) -> Panel:
        """The panel from `column` on for a block of rows, number `row` of the tile the first, with what to request meanwhile.

        A full block of rows has enough to do for L1 to keep up by itself; what it requests is a part of the next panel, whose first
        block would use it up faster than a far cache can send it. Fewer rows request the panel itself as well.
        """
        b, plan, shape = self.frame.b, self.schedule.plan, self.schedule.shape
        distance = self.schedule.prefetch_distance
        panel = Panel(b.address(base, b.index(column), b.f32) if column else base, b.index(plan.width), min(ALIGN, shape.lanes * 4))
        what, full = plan.arithmetic.prefetch if plan.packed else Prefetch.NONE, tile.rows == shape.rows
        if what is not Prefetch.NEXT_PANEL:
            return replace(panel, prefetch=distance if what is Prefetch.ROWS else 0)
        if self.schedule.tiling.lines == 0:
            return replace(panel, prefetch=0 if full else distance)
        if full:
            return self.next_panel(panel, base, row, UNROLL, (column // tile.columns, -(-plan.width // tile.columns)))
        return self.next_panel(replace(panel, prefetch=distance), base, row, UNROLL, None)

    def next_panel(self, panel: Panel, base: Value, row: Value, step: int, share: tuple[int, int] | None) -> Panel:
        """The panel with what the block that starts at number `row` of the tile requests of what follows: its part of the lines, or all.

        `base`: of all columns. `step`: rows of a panel that one step of the inner loop takes. `share`: of the column tiles that have a part
        of the lines each, which this is, and how many there are; None: all lines. What follows is the next block of k, or the next panel.
        """
        b, plan, schedule = self.frame.b, self.schedule.plan, self.schedule
        full = step * plan.width * 4 // CACHE_LINE  # lines of a panel for each step
        least = plan.dispatch.table.bounds(plan.m)[0]
        blocks = max(DEFAULT_BLOCKS, -(-min(schedule.chunk, int(least)) // schedule.block_rows)) if least.is_Integer else DEFAULT_BLOCKS
        number, shares = share or (0, 1)
        lines = min(full, schedule.tiling.lines or -(-full // (blocks * shares))) if share else full
        parts = -(-full // (lines * shares))  # that each column tile requests, one in each block of rows
        depth = b.index(schedule.k_block) if schedule.k_block else self.frame.emitter.sizes(plan.panel_rows)
        part = b.add(b.minimum(b.div(row, b.index(schedule.block_rows)), b.index(parts - 1)), b.index(number * parts))
        following = b.address(base, b.mul(depth, b.index(plan.width)), b.f32)
        at = b.address(following, b.mul(part, b.mul(depth, b.index(lines * CACHE_LINE // 4 // step))), b.f32)
        return replace(panel, next_panel=at, lines=lines)
