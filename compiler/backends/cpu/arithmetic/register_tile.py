"""The register tile: rows by vectors of accumulators, its operands, and how blocks of rows cover a tile of a contraction.

What is multiplied in it is an arithmetic's (arithmetic/base.py). Each output element is one chain of multiply-adds over k in order (of a
long k one for each block, `sums.py`), whatever the tile, so every shape gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from llmos.compiler.codegen.builder import Builder, Value
from llmos.compiler.codegen.sums import BLOCK, loop_over_blocks, with_rests
from llmos.compiler.ir.bindings import ir

CACHE_LINE = 64
UNROLL = 4  # steps of k between two jumps
MAX_VECTORS = 6  # of a tile of few rows: enough chains of sums to keep the multipliers busy


@dataclass(frozen=True)
class TileShape:
    """Rows and vectors of a register tile; `lanes` f32 a vector."""

    rows: int
    vectors: int
    lanes: int

    @property
    def columns(self) -> int:
        """Return the columns of the tile, in float32."""
        return self.vectors * self.lanes


def register_tile(vector_bits: int, width: int = 48) -> TileShape:
    """The tile that fills the register file, for panels of `width` columns: 24 of 32 accumulators of 512 or 128 bits, 12 of 16 of 256.

    Fewer where a panel is narrow. Of 12 accumulators six rows of two read less of the panel than four of three: 1.2x with it in a
    level-2 cache that sends 32 bytes a cycle.
    """
    lanes = vector_bits // 32
    if vector_bits == 256:
        return TileShape(6, 2, lanes)
    vectors = next(v for v in (4, 3, 2, 1) if width % (v * lanes) == 0 and (width % 64 == 0 or v < 4))
    return TileShape(6 if vectors == 4 else 8, vectors, lanes)


def row_tiles(shape: TileShape, width: int) -> list[TileShape]:
    """`shape`, then tiles for what rows its blocks leave: fewer of them by as many more columns of a panel as there are accumulators."""
    accumulators = shape.rows * shape.vectors
    tiles = [shape]
    for rows in (4, 2, 1):
        if rows < shape.rows:
            most = max(shape.vectors, min(accumulators // rows, MAX_VECTORS))
            vectors = max((v for v in range(1, most + 1) if width % (v * shape.lanes) == 0), default=shape.vectors)
            tiles.append(TileShape(rows, vectors, shape.lanes))
    return tiles


# One run of k: a pointer to the first element of each row, the number of that k in the panel, how many follow, sums before -> sums after.
Run: TypeAlias = Callable[[Sequence[Value], Value, Value, Sequence[Value]], list[Value]]


class Operand(Protocol):
    """The scalar operand of a register tile: rows that are walked along k, in one run or in several."""

    @property
    def k_stride(self) -> Value:
        """Elements from one k of a run to the next."""
        ...

    def sweep(self, b: Builder, num_rows: int, depth: Value, start: Sequence[Value], run: Run) -> list[Value]:
        """Emit `run` over all of k in order. `depth`: the number of k; `start`: sums before the first. Returns the sums.

        More than `sums.BLOCK` k are summed in blocks.
        """
        ...


@dataclass(frozen=True)
class Strided:
    """A scalar operand: element (row, k) at base + row * row_stride + k * k_stride elements."""

    base: Value
    row_stride: Value
    k_stride: Value
    is_long: bool = False  # whether a number of k that isn't known may be more than a block of a sum

    def sweep(self, b: Builder, num_rows: int, depth: Value, start: Sequence[Value], run: Run) -> list[Value]:
        """Emit all of k in one run, or a run for each block."""
        rows = [b.address(self.base, b.mul(b.index(r), self.row_stride), b.f32) if r else self.base for r in range(num_rows)]
        known = b.known(depth)
        if (known is not None and known <= BLOCK) or (known is None and not self.is_long):
            return run(rows, b.index(0), depth, start)

        def block(first: Value, end: Value, sums: list[Value]) -> list[Value]:
            at = b.mul(first, self.k_stride)
            return run([b.address(row, at, b.f32) for row in rows], first, b.sub(end, first), sums)

        def blocks() -> list[Value]:
            sums = [True] * len(start)
            return loop_over_blocks(b, b.index(0), depth, BLOCK, with_rests(b, start, sums), sums, block)[: len(start)]

        if known is not None:
            return blocks()
        is_one = b.compare("sle", depth, b.index(BLOCK))  # asked once, so that a short k has nothing but its chain
        return b.branch(is_one, [value.type for value in start], lambda: run(rows, b.index(0), depth, start), blocks)


@dataclass(frozen=True)
class Panel:
    """A vector operand: row k starts at base + k * stride elements; `align` in bytes."""

    base: Value
    stride: Value
    align: int
    prefetch: int = 0  # how many k ahead to ask memory for; 0 where the panel is in a near cache already
    next_panel: Value | None = None  # what is read after this panel, and how many lines of it to ask for in UNROLL steps
    lines: int = 0


def zeros(b: Builder, shape: TileShape, element: ir.Type | None = None) -> list[Value]:
    """Return the accumulators of a tile at 0, row by row. element: of 32 bits, float32 where it isn't given."""
    return [b.splat_constant(element or b.f32, 0, shape.lanes)] * (shape.rows * shape.vectors)


def store_tile(b: Builder, shape: TileShape, values: Sequence[Value], base: Value, row_stride: int) -> None:
    """Write accumulators row by row at base, `row_stride` elements between rows, 64-byte aligned."""
    for r in range(shape.rows):
        for v in range(shape.vectors):
            offset = b.index(r * row_stride + v * shape.lanes)
            b.store(values[r * shape.vectors + v], b.address(base, offset, b.f32), shape.lanes * 4)


def load_tile(b: Builder, shape: TileShape, base: Value, row_stride: int, element: ir.Type | None = None) -> list[Value]:
    """Emit the load of what `store_tile` wrote: accumulators, row by row. element: as in `zeros`."""
    kind = b.vec(element or b.f32, shape.lanes)
    offsets = [b.index(r * row_stride + v * shape.lanes) for r in range(shape.rows) for v in range(shape.vectors)]
    return [b.load(b.address(base, offset, b.f32), kind, shape.lanes * 4) for offset in offsets]


def row_ranges(b: Builder, low: Value, high: Value, tiles: Sequence[TileShape]) -> Iterator[tuple[TileShape, Value, Value]]:
    """Rows [low, high) by blocks of the first tile's rows, what is left by the next's, and so on: each tile and the range of its blocks."""
    position = low
    for tile in tiles:
        step = b.index(tile.rows)
        end = b.add(position, b.mul(b.div(b.sub(high, position), step), step))
        yield tile, position, end
        position = end


def for_row_blocks(b: Builder, low: Value, high: Value, tiles: Sequence[TileShape], body: Callable[[Value, TileShape], None]) -> None:
    """Cover rows [low, high): body(first row, the tile for it and as many rows as it has)."""
    for tile, position, end in row_ranges(b, low, high, tiles):
        with b.loop(position, end, b.index(tile.rows)) as loop:
            body(loop.iv, tile)
