"""Products by weights that stay integers, scaled once for each run of k: what rows of float32 and of int8 share.

A run is a group of weights that share a scale, or `NumberFormat.run` neighboring k where a channel has one scale. Its sum is made without
scale, then added to the total by one fma, from run to run in order. So an element's bits depend on k and the format alone, whatever rows,
tiles, threads and vectors there are.

Panels are [n/w][k/8][w] words of eight nibbles, the first k lowest, or [n/w][k/4][w] words of four bytes; scales are [n/w][groups][w] of
float32 and zero points as many bytes. Few rows multiply what is unpacked in registers (`accumulate`); for many, a block of k is unpacked
to scratch (`unpack_block`), once for all rows, and multiplied from there (`accumulate_block`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmos.compiler.analysis.quantized_weights import NumberFormat
from llmos.compiler.backends.cpu.arithmetic.base import Arithmetic
from llmos.compiler.backends.cpu.arithmetic.register_tile import CACHE_LINE, Strided, TileShape, zeros
from llmos.compiler.codegen.builder import Builder, Value

AHEAD = 16  # rows of words between a read and the request for it
AT_ONCE = 4  # vectors of columns that are unpacked side by side


@dataclass(frozen=True)
class NumberPanel:
    """A panel from some column on. numbers: words; scale: float32; zero_point: bytes, None for a constant; rows `width` columns apart."""

    numbers: Value
    scale: Value
    zero_point: Value | None
    width: int

    def at(self, b: Builder, column: int) -> NumberPanel:
        """Return the panel from a column further on."""
        if not column:
            return self
        step = b.index(column)
        zero = None if self.zero_point is None else b.address(self.zero_point, step, b.i8)
        return NumberPanel(b.address(self.numbers, step, b.i32), b.address(self.scale, step, b.f32), zero, self.width)


@dataclass(frozen=True)
class ScratchBlock:
    """A block of k of a panel, unpacked to words of 32 bits, [width / columns][rows][columns]: what a register tile reads lies together.

    columns: of a register tile; rows: of a block, at most; lanes: of a vector.
    """

    base: Value
    columns: int
    rows: int
    lanes: int

    def at(self, b: Builder, column: int, row: Value) -> Value:
        """Emit the address of a row, at a column of the panel."""
        tile, within = divmod(column, self.columns)
        return b.address(self.base, b.add(b.mul(row, b.index(self.columns)), b.index(tile * self.rows * self.columns + within)), b.f32)


class GroupArithmetic(Arithmetic):
    """Rows by packed numbers, scales and zero points; sums of float32.

    flip: what makes a number unsigned by xor, and larger by as much. k_per_row: in a row of words of a block in scratch.
    """

    k_per_row: int

    def __init__(self, numbers: NumberFormat) -> None:
        self.format = numbers
        self.k_per_word = 32 // numbers.bits
        self.flip = 1 << (numbers.bits - 1) if numbers.is_signed else 0

    @property
    @abstractmethod
    def block_k(self) -> int:
        """Return about how many k are unpacked to scratch at once."""

    @abstractmethod
    def few_tiles(self, lanes: int, width: int) -> list[TileShape]:
        """Return tiles of most rows first, for few rows: as many columns of a panel as leave registers for sums and numbers."""

    @abstractmethod
    def few_rows(self, lanes: int) -> int:
        """Return the most rows for which unpacking in registers again for each block costs less than once to scratch."""

    def block_rows(self, shape: TileShape) -> int:
        """Return the rows of the register tile."""
        return shape.rows

    def k_block(self, k: int, most: int) -> int:
        """Return the k of a block in scratch: whole runs."""
        return self.format.run * max(1, self.block_k // self.format.run)

    def scratch_rows(self, k_block: int) -> int:
        """Return how many rows of words a block in scratch has: whole words of a panel."""
        return (k_block + self.k_per_word) // self.k_per_row

    def scratch_bytes(self, k: int, width: int, k_block: int) -> int:
        """Return the bytes of one block, unpacked."""
        return 4 * width * self.scratch_rows(k_block)

    # -- few rows: numbers in registers
    def accumulate(self, b: Builder, shape: TileShape, a: Strided, panel: NumberPanel, k: int) -> list[Value]:
        """Emit the sums of one register tile over all of k, from 0, row by row."""

        def add(run: Value, num_k: int, totals: Sequence[Value]) -> list[Value]:
            return self.add_run(b, shape, a, panel, run, num_k, totals)

        return over_runs(b, k, self.format.run, zeros(b, shape), add)

    @abstractmethod
    def add_run(
        self, b: Builder, shape: TileShape, a: Strided, panel: NumberPanel, run: Value, num_k: int, totals: Sequence[Value]
    ) -> list[Value]:
        """Emit totals with the sums of run number `run`, of `num_k`."""

    # -- many rows: a block of k in scratch
    def unpack_block(self, b: Builder, panel: NumberPanel, k: Value, num_k: int, block: ScratchBlock) -> None:
        """Emit `num_k` k from `k` on, unpacked, to scratch. k: a multiple of the run."""
        run, first = self.format.run, b.div(k, b.index(self.format.run))

        def unpack(number: Value, count: int, nothing: Sequence[Value]) -> list[Value]:
            self._unpack_run(b, panel, b.add(first, number), count, block, b.mul(number, b.index(run // self.k_per_row)))
            return list(nothing)

        over_runs(b, num_k, run, (), unpack)

    def _unpack_run(self, b: Builder, panel: NumberPanel, run: Value, num_k: int, block: ScratchBlock, row: Value) -> None:
        """One run, to row `row` of the block on."""
        begin = b.address(panel.numbers, b.mul(run, b.index(self.format.run // self.k_per_word * panel.width)), b.i32)
        lanes, align = block.lanes, min(CACHE_LINE, 4 * block.lanes)
        for column in range(0, panel.width, AT_ONCE * lanes):
            shape = TileShape(1, min(AT_ONCE, (panel.width - column) // lanes), lanes)
            part, source = panel.at(b, column), b.address(begin, b.index(column), b.i32)
            unpack = self.unpacker(b, shape, part, run)
            with b.loop(b.index(0), b.index(-(-num_k // self.k_per_word)), b.index(1)) as loop:
                first = b.add(row, b.mul(loop.iv, b.index(self.k_per_word // self.k_per_row)))
                for v, words in enumerate(self.words(b, shape, part, source, loop.iv)):
                    place = block.at(b, column + v * lanes, first)
                    for each, vector in enumerate(unpack(v, words)):
                        b.store(vector, b.address(place, b.index(each * block.columns), b.f32), align)

    @abstractmethod
    def unpacker(self, b: Builder, shape: TileShape, panel: NumberPanel, run: Value) -> Callable[[int, Value], list[Value]]:
        """Return what emits, for the words of vector number v of a tile, a vector for each of `k_per_row` k."""

    @abstractmethod
    def accumulate_block(
        self, b: Builder, shape: TileShape, a: Strided, panel: NumberPanel, part: Value, k: Value, num_k: int, start: Sequence[Value]
    ) -> list[Value]:
        """Emit `start` plus the products of `num_k` k from `k` on. part: of the block in scratch, the columns of the tile."""

    # -- what both share
    def words(self, b: Builder, shape: TileShape, panel: NumberPanel, begin: Value, word: Value) -> list[Value]:
        """Emit the vectors of one row of words, and requests for a later row."""
        vector = self.words_at(b, shape, panel, begin, word)
        return [vector(v) for v in range(shape.vectors)]

    def words_at(self, b: Builder, shape: TileShape, panel: NumberPanel, begin: Value, word: Value) -> Callable[[int], Value]:
        """Emit requests for a later row of words. Returns what emits the load of vector number v of this one."""
        at = b.address(begin, b.mul(word, b.index(panel.width)), b.i32)
        for line in range(0, 4 * shape.columns, CACHE_LINE):
            b.prefetch(b.address(at, b.index(AHEAD * panel.width + line // 4), b.i32))
        kind, align = b.vec(b.i32, shape.lanes), min(CACHE_LINE, 4 * shape.lanes)
        return lambda v: b.load(b.address(at, b.index(v * shape.lanes), b.i32) if v else at, kind, align)

    def scaled(
        self, b: Builder, shape: TileShape, panel: NumberPanel, run: Value, sums: Sequence[Value], totals: Sequence[Value]
    ) -> list[Value]:
        """Emit totals with the sums of one run, of float32."""
        kind, align = b.vec(b.f32, shape.lanes), min(CACHE_LINE, 4 * shape.lanes)
        at = self.parameter(b, panel, run)
        scales = [b.load(b.address(panel.scale, b.add(at, b.index(v * shape.lanes)), b.f32), kind, align) for v in range(shape.vectors)]
        return [b.fma(each, scales[i % shape.vectors], total) for i, (each, total) in enumerate(zip(sums, totals, strict=True))]

    def zero_points(self, b: Builder, panel: NumberPanel, run: Value, vector: int, lanes: int) -> Value:
        """Emit the stored zero points of a vector of columns as i32, those of the numbers before `flip`."""
        assert panel.zero_point is not None
        at = b.address(panel.zero_point, b.add(self.parameter(b, panel, run), b.index(vector * lanes)), b.i8)
        extend = "arith.extsi" if self.format.zero_is_signed else "arith.extui"
        return b.op(extend, [b.load(at, b.vec(b.i8, lanes), lanes)], b.vec(b.i32, lanes))

    def parameter(self, b: Builder, panel: NumberPanel, run: Value) -> Value:
        """Emit the place of a run's scale and zero point, in elements."""
        return b.mul(run, b.index(panel.width)) if self.format.grouped else b.index(0)


def over_runs(
    b: Builder, num_k: int, run: int, start: Sequence[Value], add: Callable[[Value, int, Sequence[Value]], list[Value]]
) -> list[Value]:
    """Emit `add(number of a run, its k, totals)` for each run of `num_k` k, in order. Returns the totals."""
    with b.loop(b.index(0), b.index(num_k // run), b.index(1), list(start)) as loop:
        loop.yield_(add(loop.iv, run, loop.args))
    return add(b.index(num_k // run), num_k % run, loop.results) if num_k % run else loop.results
