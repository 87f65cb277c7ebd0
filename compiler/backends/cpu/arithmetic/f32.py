"""The register tile: out[rows, columns] (+)= A[rows, k] * B[k, columns], the inner loop of contractions and attention.

Each output element is one chain of fused multiply-adds over k in order (of a long k one for each block, `sums.py`), whatever the tile,
so every variant gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from llmos.compiler.codegen.builder import Builder, Value
from llmos.compiler.codegen.sums import BLOCK, loop_over_blocks, with_rests

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
        """All of k in one run, or a run for each block."""
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
    upcoming: Value | None = None  # what is read after this panel, and how many lines of it to ask for in UNROLL steps
    lines: int = 0


def accumulate(
    b: Builder, shape: TileShape, a: Operand, panel: Panel, depth: Value, start: Sequence[Value], pairs: bool = False
) -> list[Value]:
    """The k loop. `start`: rows * vectors accumulators, row by row. `pairs`: the second of two k comes first; `depth` is known then."""

    def step(rows: Sequence[Value], first: Value, k: Value, sums: Sequence[Value]) -> list[Value]:
        at = b.mul(k, a.k_stride)
        scalars = (b.splat(b.load(b.address(row, at, b.f32), b.f32, 4), shape.lanes) for row in rows)
        vectors = _vectors(b, shape, panel, b.add(first, k))
        made = list(sums)

        def add(r: int, scalar: Value, v: int, vector: Value) -> None:
            made[r * shape.vectors + v] = b.fma(scalar, vector, sums[r * shape.vectors + v])

        # The fewer of the two are all held in registers, the others loaded one by one.
        if shape.rows < shape.vectors:
            held = list(enumerate(scalars))
            for v, vector in enumerate(vectors):
                for r, scalar in held:
                    add(r, scalar, v, vector)
        else:
            held = list(enumerate(vectors))
            for r, scalar in enumerate(scalars):
                for v, vector in held:
                    add(r, scalar, v, vector)
        return made

    def run(rows: Sequence[Value], first: Value, count: Value, sums: Sequence[Value]) -> list[Value]:
        known, together = b.known(count), b.index(UNROLL)
        whole = b.mul(b.div(count, together), together) if known is None else b.index(known // UNROLL * UNROLL)
        with b.loop(b.index(0), whole, together, list(sums)) as loop:
            made = loop.args
            _ask_ahead(b, panel, b.add(first, loop.iv))
            for k in _order(UNROLL, pairs):
                made = step(rows, first, b.add(loop.iv, b.index(k)), made)
            loop.yield_(made)
        if known is not None and known % UNROLL == 0:
            return loop.results
        if known is not None and pairs:
            made = loop.results
            for k in _order(known % UNROLL, pairs):
                made = step(rows, first, b.add(whole, b.index(k)), made)
            return made
        with b.loop(whole, count, b.index(1), loop.results) as rest:
            rest.yield_(step(rows, first, rest.iv, rest.args))
        return rest.results

    return a.sweep(b, shape.rows, depth, start, run)


def _order(count: int, pairs: bool) -> list[int]:
    """In which order a few neighbouring k are added."""
    return [k ^ 1 if pairs and k ^ 1 < count else k for k in range(count)]


def _vectors(b: Builder, shape: TileShape, panel: Panel, k: Value) -> Iterator[Value]:
    """Row k of the panel, each vector loaded when it is asked for, and requests for a later row."""
    kind = b.vec(b.f32, shape.lanes)
    at = b.address(panel.base, b.mul(k, panel.stride), b.f32)
    if panel.prefetch:
        ahead = b.address(at, b.mul(b.index(panel.prefetch), panel.stride), b.f32)
        for line in range(0, shape.columns * 4, CACHE_LINE):
            b.prefetch(b.address(ahead, b.index(line // 4), b.f32))
    for v in range(shape.vectors):
        yield b.load(b.address(at, b.index(v * shape.lanes), b.f32) if v else at, kind, panel.align)


def _ask_ahead(b: Builder, panel: Panel, k: Value) -> None:
    """Ask for the lines of what is read later that belong to UNROLL steps."""
    if panel.upcoming is None:
        return
    at = b.address(panel.upcoming, b.mul(k, b.index(panel.lines * CACHE_LINE // 4 // UNROLL)), b.f32)
    for line in range(panel.lines):
        b.prefetch(b.address(at, b.index(line * CACHE_LINE // 4), b.f32), level=2)


def zeros(b: Builder, shape: TileShape) -> list[Value]:
    return [b.neutral(b.f32, 0.0, shape.lanes)] * (shape.rows * shape.vectors)


def store_tile(b: Builder, shape: TileShape, values: Sequence[Value], base: Value, row_stride: int) -> None:
    """Write accumulators row by row at base, `row_stride` elements between rows, 64-byte aligned."""
    for r in range(shape.rows):
        for v in range(shape.vectors):
            offset = b.index(r * row_stride + v * shape.lanes)
            b.store(values[r * shape.vectors + v], b.address(base, offset, b.f32), shape.lanes * 4)


def load_tile(b: Builder, shape: TileShape, base: Value, row_stride: int) -> list[Value]:
    """What `store_tile` wrote."""
    kind = b.vec(b.f32, shape.lanes)
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
