"""What is chosen for a contraction's kernel, by a measured search or an analytic model of caches; no choice changes a result."""

from __future__ import annotations

from dataclasses import dataclass

from llmos.compiler.backends.cpu.arithmetic.register_tile import TileShape, register_tile
from llmos.compiler.backends.cpu.kernels.contraction_plan import ContractionPlan
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.codegen.builder import byte_width
from llmos.compiler.codegen.kernel import ceil_div
from llmos.compiler.codegen.sums import BLOCK
from llmos.compiler.ir.tiling import Tiling

SMALL_PANEL_BYTES = 1 << 18  # a panel that is worth reading again so that there are more tiles to share out
MAX_ROWS = 256
PREFETCH = 16  # rows of a packed panel between a read and the request for it, where memory is the limit: best of 0, 16, 32 and 64


@dataclass(frozen=True)
class Schedule:
    """Sizes of one contraction's loops.

    shape: of the register tile.
    chunk: rows of a tile of the grid.
    block_rows: rows that share what is loaded of a panel.
    k_block: number of k that all rows of a tile are multiplied by before the next; 0: all.
    """

    plan: ContractionPlan
    tiling: Tiling
    shape: TileShape
    chunk: int
    block_rows: int
    k_block: int

    @classmethod
    def of(cls, plan: ContractionPlan, target: CpuTarget, chunk: int | None = None) -> Schedule:
        """Return the best that is known for a target. `chunk`: rows of a tile, where that is given."""
        tiling = plan.dispatch.tiling.on(target)
        shape = plan.arithmetic.register_tile(register_tile(target.vector_bits, plan.width), target.num_registers)
        rows, block = plan.arithmetic.block_rows(shape), _k_block(plan, shape, tiling, target)
        return cls(plan, tiling, shape, chunk or tiling.rows or row_chunk(plan, rows, target.l2_bytes, block), rows, block)

    @property
    def prefetch_distance(self) -> int:
        """Return the rows of a panel between a read and the request for it."""
        return PREFETCH if self.tiling.ahead is None else self.tiling.ahead


def _k_block(plan: ContractionPlan, shape: TileShape, tiling: Tiling, target: CpuTarget) -> int:
    """Rows of a panel that are multiplied before the next: a register tile's columns of them stay in L1; 0: all."""
    if plan.windows is not None or not plan.packed:
        return 0
    most = target.near_bytes // (4 * shape.columns) if tiling.depth is None else tiling.depth
    return plan.arithmetic.k_block(min(int(plan.k), BLOCK), most)


def row_chunk(plan: ContractionPlan, rows: int, l2_bytes: int, block: int) -> int:
    """Rows of one tile: a multiple of `rows` that keeps them in half of a level-2 cache; many where each tile packs its own panel.

    Of rows that are walked by blocks of `block` k (0: by all of k), such a block of each is in the cache: 18 rows of 3072 k instead of 64
    would read all panels three times as often.

    Few enough that of 128 rows two threads have a half each, and that even the smallest input gives each of some threads its share
    of tiles, where that has a block of rows for each.
    """
    most = MAX_ROWS // rows * rows
    if not plan.packed:
        return most
    row = plan.row_elements
    chunk = 64 // rows * rows
    if row.is_Integer:
        element = byte_width(plan.arithmetic.left_type)
        chunk = max(2 * rows, min(most, l2_bytes // 2 // (element * max(1, block or int(row))) // rows * rows))
    panels, depth = ceil_div(plan.n, plan.width), plan.k
    least = plan.dispatch.table.bounds(plan.m)[0]
    own = plan.arithmetic.thread_rows
    if plan.windows is None and own and least.is_Integer:
        chunk = min(chunk, -(-max(own, -(-int(least) // 2)) // rows) * rows)
    if not (panels.is_Integer and least.is_Integer and depth.is_Integer):
        return chunk
    wanted = 16 if 4 * int(depth) * plan.width <= SMALL_PANEL_BYTES else 8
    chunks = -(-wanted // int(panels))
    if chunks == 1 or least < chunks * rows:
        return chunk
    return max(2 * rows, min(chunk, -(-int(least) // (chunks * rows)) * rows))
