"""Default schedules: how the blocks of a dispatch become tiles of a grid that the host starts.

TVM's primitives move the blocks. The grid's loops are taken off when the function is lowered, so that the thread pool of the runtime
walks the grid as it does for other kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tvm
from tvm import s_tir, tirx

from llmos.compiler.backends.tvm.blocks import Blocks
from llmos.compiler.backends.tvm.expressions import Expr
from llmos.runtime.errors import UnsupportedError


@dataclass(frozen=True)
class ColumnTile:
    """How a tile walks the last axis of a result: `vectors` of `lanes` at a time, unrolled if `in_registers`."""

    lanes: int
    vectors: int
    in_registers: bool = False

    @property
    def columns(self) -> int:
        """Return how many elements that are."""
        return self.lanes * self.vectors


@dataclass(frozen=True)
class Scheduled:
    """A function whose outermost loops are the grid. unit_axes: for each of them, whether it has one iteration, and so will be left out."""

    func: Expr
    unit_axes: Sequence[bool]


def scheduled(blocks: Blocks, tile: ColumnTile, row_axis: int | None = None, rows: int = 1) -> Scheduled:
    """Return the function of `blocks` with the grid around all that it computes.

    The grid: of a contraction panels of columns, the other axes, blocks of `rows` along `row_axis`; of sums along rows the rows; of all
    others the axes but the last, and tiles along the last. Raises UnsupportedError for blocks that TVM can't move so.
    """
    try:
        schedule = s_tir.Schedule(tvm.IRModule({"main": blocks.func}))
        for name in blocks.inlined:
            schedule.compute_inline(schedule.get_sblock(name))
        if row_axis is not None or tile.in_registers:
            num_grid = _contraction(schedule, blocks, tile, row_axis, rows)
        elif blocks.row_sums:
            num_grid = _rows(schedule, blocks, tile)
        else:
            num_grid = _columns(schedule, blocks, tile)
        return _grid(schedule, blocks, num_grid)
    except s_tir.schedule.ScheduleError as error:
        raise UnsupportedError(f"a schedule that TVM refuses ({_first_line(error)})") from error


def _contraction(schedule: Expr, blocks: Blocks, tile: ColumnTile, row_axis: int | None, rows: int) -> int:
    """A register tile: rows by vectors of sums, with the loops over k around."""
    if blocks.row_sums or list(blocks.column_sums) != ["contraction"]:
        raise UnsupportedError("a contraction with further reductions")
    result, sums = schedule.get_sblock(blocks.result), schedule.get_sblock("contraction")
    *others, last = schedule.get_loops(result)
    count = len(others) + 1
    panel, vector, lane = _split_columns(schedule, last, tile)
    inner = []
    if row_axis is not None:
        outer, row = schedule.split(others[row_axis], [None, rows])
        others = [*others[:row_axis], *others[row_axis + 1 :], outer]
        inner = [row]
    schedule.reorder(panel, *others, *inner, vector, lane)
    schedule.compute_at(sums, others[-1] if others else panel, preserve_unit_loops=True)
    own = schedule.get_loops(sums)[1 + len(others) :]
    axes, depth = own[:count], own[count:]
    units = [axis for number, axis in enumerate(axes[:-1]) if number != row_axis]
    held = [axes[row_axis]] if row_axis is not None else []
    vectors, lanes = schedule.split(axes[-1], [None, tile.lanes])
    schedule.reorder(*depth, *units, *held, vectors, lanes)
    schedule.set_scope(sums, 0, "local")
    for unrolled in (*inner, vector, *held, vectors):
        schedule.unroll(unrolled)
    for vectorized in (lane, lanes):
        schedule.vectorize(vectorized)
    schedule.decompose_reduction(sums, depth[0])
    return 1 + len(others)


def _rows(schedule: Expr, blocks: Blocks, tile: ColumnTile) -> int:
    """Sums along rows: a row a tile."""
    result = schedule.get_sblock(blocks.result)
    loops = schedule.get_loops(result)
    at = blocks.num_row_axes
    if at > len(loops):
        raise UnsupportedError("rows whose result is smaller")
    if at < len(loops):
        _, _, lane = _split_columns(schedule, loops[-1], tile)
        _vectorize(schedule, lane, tile)
    if at:
        for name in reversed(_in_order(blocks)):
            schedule.compute_at(schedule.get_sblock(name), loops[at - 1], preserve_unit_loops=True)
    for name in blocks.row_sums:
        _sum_by_lanes(schedule, name, 1) if name.startswith("lanes") else _sum(schedule, name)
    for name in blocks.column_sums:
        _sum(schedule, name)
    return at


def _columns(schedule: Expr, blocks: Blocks, tile: ColumnTile) -> int:
    """Elementwise, and sums along other axes than the last: tiles of columns."""
    result = schedule.get_sblock(blocks.result)
    *others, last = schedule.get_loops(result)
    outer, _, lane = _split_columns(schedule, last, tile)
    _vectorize(schedule, lane, tile)
    for name in reversed(blocks.column_sums):
        schedule.compute_at(schedule.get_sblock(name), outer, preserve_unit_loops=True)
    for name in blocks.column_sums:
        _sum_by_lanes(schedule, name, tile.lanes)
    return len(others) + 1


def _split_columns(schedule: Expr, last: Expr, tile: ColumnTile) -> tuple[Expr, Expr, Expr]:
    outer, vector, lane = schedule.split(last, [None, tile.vectors, tile.lanes])
    return outer, vector, lane


def _vectorize(schedule: Expr, lane: Expr, tile: ColumnTile) -> None:
    if tile.lanes > 1:
        schedule.vectorize(lane)


def _in_order(blocks: Blocks) -> list[str]:
    """Reductions as the program has them: their names end in their numbers."""
    return sorted([*blocks.row_sums, *blocks.column_sums], key=lambda name: int(name.lstrip("lanesum")))


def _sum(schedule: Expr, name: str) -> None:
    """Start a reduction before its loops, however often they run, and hold what it sums on the stack."""
    block = schedule.get_sblock(name)
    schedule.set_scope(block, 0, "local")
    _, reduced = _loops(schedule, block)
    schedule.decompose_reduction(block, reduced[0])


def _sum_by_lanes(schedule: Expr, name: str, lanes: int) -> None:
    """As `_sum`, with the loop over the last spatial axis, of vectors of `lanes` (1: of all of it), inside of what is reduced."""
    block = schedule.get_sblock(name)
    schedule.set_scope(block, 0, "local")
    spatial, reduced = _loops(schedule, block)
    inner = [spatial[-1]] if lanes == 1 else list(schedule.split(spatial[-1], [None, lanes]))
    schedule.reorder(*reduced, *inner)
    schedule.vectorize(inner[-1])
    schedule.decompose_reduction(block, reduced[0])


def _loops(schedule: Expr, block: Expr) -> tuple[list[Expr], list[Expr]]:
    """The loops of a reduction over its spatial axes, and over those that it reduces."""
    kinds = [axis.iter_type for axis in schedule.get(block).iter_vars]
    loops = list(schedule.get_loops(block))[-len(kinds) :]
    sides: tuple[list[Expr], list[Expr]] = ([], [])
    for loop, kind in zip(loops, kinds, strict=True):
        sides[kind != tirx.IterVar.DataPar].append(loop)
    return sides


def _grid(schedule: Expr, blocks: Blocks, num_grid: int) -> Scheduled:
    loops = [schedule.get(loop) for loop in schedule.get_loops(schedule.get_sblock(blocks.result))[:num_grid]]
    return Scheduled(schedule.mod["main"], [isinstance(loop.extent, tirx.IntImm) and loop.extent.value == 1 for loop in loops])


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.startswith("Error message: ")]
    return lines[0].removeprefix("Error message: ").rstrip(".") if lines else type(error).__name__
