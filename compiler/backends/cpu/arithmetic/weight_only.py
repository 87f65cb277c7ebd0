"""Products of float32 rows by weights of 4 or 8 bits, by fma: the integers become floats in registers, and each run of k is scaled once.

    sum[g] = fma chain over k of run g, in order, from 0: x[k] * float(number[k] - zero_point[g])
    y      = fma chain over g, in order, from 0: sum[g] * scale[g]

A run is a group of weights that share a scale, or 256 k where a channel has one scale. So an element's bits depend on k and the format
alone, whatever rows, tiles, threads and vectors there are.

Panels are [n/w][k/8][w] words of eight nibbles, the first k lowest, or [n/w][k/4][w] words of four bytes; scales are [n/w][groups][w] of
float32 and zero points as many bytes. An integer becomes a float without a conversion: its bits, put under the exponent of 2^23 (or of
less where it lies higher in the mantissa), are that power plus the integer; the power plus the zero point is then subtracted, exactly.

Few rows multiply what is in registers (`accumulate`); for many, a block of k is written to scratch as floats (`dequantize_block`), once
for all rows, and multiplied as float32 (`accumulate_block`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmos.compiler.analysis.quantized_weights import NumberFormat
from llmos.compiler.backends.cpu.arithmetic.base import Arithmetic, Operands
from llmos.compiler.backends.cpu.arithmetic.f32 import OWN_ROWS, accumulate
from llmos.compiler.backends.cpu.arithmetic.register_tile import CACHE_LINE, Panel, Strided, TileShape, zeros
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.codegen.builder import Builder, Value
from llmos.compiler.ir.bindings import ir

BLOCK_K = 256  # about how many k are written to scratch at once
MANTISSA = 23  # bits of a float32's fraction
EXPONENT = 0x4B000000  # of 2^23
AHEAD = 16  # rows of words between a read and the request for it
AT_ONCE = 4  # vectors of columns that are dequantized side by side


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
    """A block of k of a panel as floats, [width / columns][rows][columns]: what a register tile reads lies together.

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


class WeightOnly(Arithmetic):
    """Rows of float32 where they lie; numbers, scales and zero points packed in memory."""

    thread_rows = OWN_ROWS

    def __init__(self, numbers: NumberFormat) -> None:
        self.format = numbers
        self.k_per_word = 32 // numbers.bits
        self.positions = (0, numbers.bits)  # where in a mantissa numbers are read
        self.flip = 1 << (numbers.bits - 1) if numbers.is_signed else 0  # makes a number unsigned, and larger by as much

    @classmethod
    def supports(cls, operands: Operands, target: CpuTarget) -> bool:
        """Return whether the right side is numbers with scales."""
        return operands.numbers is not None

    @property
    def left_type(self) -> ir.Type:
        """Return float32."""
        return ir.F32Type.get()

    def block_rows(self, shape: TileShape) -> int:
        """Return the rows of the register tile."""
        return shape.rows

    def k_block(self, k: int, most: int) -> int:
        """Return the k of a block in scratch: whole runs."""
        return self.format.run * max(1, BLOCK_K // self.format.run)

    def scratch_bytes(self, k: int, width: int, k_block: int) -> int:
        """Return the bytes of one block, in float32."""
        return 4 * width * (k_block + self.k_per_word)

    # -- few rows: numbers in registers
    def accumulate(self, b: Builder, shape: TileShape, a: Strided, panel: NumberPanel, k: int) -> list[Value]:
        """Emit the sums of one register tile over all of k, from 0, row by row."""
        run = self.format.run
        with b.loop(b.index(0), b.index(k // run), b.index(1), zeros(b, shape)) as loop:
            loop.yield_(self._add_run(b, shape, a, panel, loop.iv, run, loop.args))
        if k % run == 0:
            return loop.results
        return self._add_run(b, shape, a, panel, b.index(k // run), k % run, loop.results)

    def _add_run(
        self, b: Builder, shape: TileShape, a: Strided, panel: NumberPanel, run: Value, num_k: int, totals: Sequence[Value]
    ) -> list[Value]:
        first = b.mul(run, b.index(self.format.run))
        rows = [b.address(a.base, b.add(b.mul(b.index(r), a.row_stride), first), b.f32) for r in range(shape.rows)]
        biases = [self._biases(b, shape.lanes, panel, run, v) for v in range(shape.vectors)]
        begin = b.address(panel.numbers, b.mul(b.div(first, b.index(self.k_per_word)), b.index(panel.width)), b.i32)

        def step(word: Value, count: int, sums: Sequence[Value]) -> list[Value]:
            columns = [self._numbers(b, words, biases[v]) for v, words in enumerate(self._words(b, shape, panel, begin, word))]
            made, at = list(sums), b.mul(word, b.index(self.k_per_word))
            for each in range(count):
                for r, row in enumerate(rows):
                    scalar = b.splat(b.load(b.address(row, b.add(at, b.index(each)), b.f32), b.f32, 4), shape.lanes)
                    for v in range(shape.vectors):
                        made[r * shape.vectors + v] = b.fma(scalar, columns[v][each], made[r * shape.vectors + v])
            return made

        words, rest = divmod(num_k, self.k_per_word)
        with b.loop(b.index(0), b.index(words), b.index(1), zeros(b, shape)) as loop:
            loop.yield_(step(loop.iv, self.k_per_word, loop.args))
        sums = step(b.index(words), rest, loop.results) if rest else loop.results
        return self._scaled(b, shape, panel, run, sums, totals)

    def _words(self, b: Builder, shape: TileShape, panel: NumberPanel, begin: Value, word: Value) -> list[Value]:
        """The vectors of one row of words, and requests for a later row."""
        at = b.address(begin, b.mul(word, b.index(panel.width)), b.i32)
        for line in range(0, 4 * shape.columns, CACHE_LINE):
            b.prefetch(b.address(at, b.index(AHEAD * panel.width + line // 4), b.i32))
        kind, align = b.vec(b.i32, shape.lanes), min(CACHE_LINE, 4 * shape.lanes)
        return [b.load(b.address(at, b.index(v * shape.lanes), b.i32) if v else at, kind, align) for v in range(shape.vectors)]

    def _scaled(
        self, b: Builder, shape: TileShape, panel: NumberPanel, run: Value, sums: Sequence[Value], totals: Sequence[Value]
    ) -> list[Value]:
        """Totals with the sums of one run."""
        kind, align = b.vec(b.f32, shape.lanes), min(CACHE_LINE, 4 * shape.lanes)
        at = self._parameter(b, panel, run)
        scales = [b.load(b.address(panel.scale, b.add(at, b.index(v * shape.lanes)), b.f32), kind, align) for v in range(shape.vectors)]
        return [b.fma(each, scales[i % shape.vectors], total) for i, (each, total) in enumerate(zip(sums, totals, strict=True))]

    def _parameter(self, b: Builder, panel: NumberPanel, run: Value) -> Value:
        """The place of a run's scale and zero point, in elements."""
        return b.mul(run, b.index(panel.width)) if self.format.grouped else b.index(0)

    # -- numbers as floats
    def _biases(self, b: Builder, lanes: int, panel: NumberPanel, run: Value, vector: int) -> list[Value]:
        """For each position in a mantissa the power of two there plus the zero point: what is subtracted from a number's float."""
        powers = [float(1 << (MANTISSA - position)) for position in self.positions]
        if panel.zero_point is None:
            constant = self.flip + (self.format.zero_point or 0)
            return [b.splat_constant(b.f32, power + constant, lanes) for power in powers]
        at = b.address(panel.zero_point, b.add(self._parameter(b, panel, run), b.index(vector * lanes)), b.i8)
        extend = "arith.extsi" if self.format.zero_is_signed else "arith.extui"
        wide = b.op(extend, [b.load(at, b.vec(b.i8, lanes), lanes)], b.vec(b.i32, lanes))
        zero = b.op("arith.sitofp", [wide], b.vec(b.f32, lanes))
        return [b.binary("arith.addf", zero, b.splat_constant(b.f32, power + self.flip, lanes)) for power in powers]

    def _numbers(self, b: Builder, words: Value, biases: Sequence[Value]) -> list[Value]:
        """The numbers of a vector of words less their zero points, a float vector for each k of a word."""
        lanes, bits = words.type.shape[0], self.format.bits
        together = bits * len(self.positions)
        made = []
        for each in range(self.k_per_word):
            shift, part = divmod(each * bits, together)
            moved = b.binary("arith.shrui", words, b.splat_constant(b.i32, shift * together, lanes)) if shift else words
            position, number = part, part // bits
            mask = ((1 << bits) - 1) << position
            one = (EXPONENT - (position << MANTISSA)) | (self.flip << position)
            masked = b.binary("arith.andi", moved, b.splat_constant(b.i32, mask, lanes))
            value = b.op("arith.bitcast", [b.binary("arith.xori", masked, b.splat_constant(b.i32, one, lanes))], b.vec(b.f32, lanes))
            made.append(b.binary("arith.subf", value, biases[number]))
        return made

    # -- many rows: a block of k as floats in scratch
    def dequantize_block(self, b: Builder, panel: NumberPanel, k: Value, num_k: int, block: ScratchBlock) -> None:
        """Emit the numbers of `num_k` k from `k` on, less their zero points, to scratch. k: a multiple of the run."""
        run, first = self.format.run, b.div(k, b.index(self.format.run))
        with b.loop(b.index(0), b.index(num_k // run), b.index(1)) as loop:
            self._dequantize_run(b, panel, b.add(first, loop.iv), run, block, b.mul(loop.iv, b.index(run)))
        if num_k % run:
            whole = num_k // run
            self._dequantize_run(b, panel, b.add(first, b.index(whole)), num_k % run, block, b.index(whole * run))

    def _dequantize_run(self, b: Builder, panel: NumberPanel, run: Value, num_k: int, block: ScratchBlock, row: Value) -> None:
        """One run, to row `row` of the block on."""
        begin = b.address(panel.numbers, b.mul(run, b.index(self.format.run // self.k_per_word * panel.width)), b.i32)
        lanes, align = block.lanes, min(CACHE_LINE, 4 * block.lanes)
        for column in range(0, panel.width, AT_ONCE * lanes):
            shape = TileShape(1, min(AT_ONCE, (panel.width - column) // lanes), lanes)
            part, source = panel.at(b, column), b.address(begin, b.index(column), b.i32)
            biases = [self._biases(b, lanes, part, run, v) for v in range(shape.vectors)]
            with b.loop(b.index(0), b.index(-(-num_k // self.k_per_word)), b.index(1)) as loop:
                first = b.add(row, b.mul(loop.iv, b.index(self.k_per_word)))
                for v, words in enumerate(self._words(b, shape, part, source, loop.iv)):
                    place = block.at(b, column + v * lanes, first)
                    for each, number in enumerate(self._numbers(b, words, biases[v])):
                        b.store(number, b.address(place, b.index(each * block.columns), b.f32), align)

    def accumulate_block(
        self, b: Builder, shape: TileShape, a: Strided, panel: NumberPanel, part: Value, k: Value, num_k: int, start: Sequence[Value]
    ) -> list[Value]:
        """Emit `start` plus the products of `num_k` k from `k` on. part: of the block in scratch, the columns of the tile."""
        run, first, columns = self.format.run, b.div(k, b.index(self.format.run)), b.index(shape.columns)

        def add(number: Value, count: int, totals: Sequence[Value]) -> list[Value]:
            row = b.mul(number, b.index(run))
            left = Strided(b.address(a.base, b.add(k, row), b.f32), a.row_stride, a.k_stride)
            right = Panel(b.address(part, b.mul(row, columns), b.f32), columns, min(CACHE_LINE, 4 * shape.lanes))
            sums = accumulate(b, shape, left, right, b.index(count), zeros(b, shape))
            return self._scaled(b, shape, panel, b.add(first, number), sums, totals)

        with b.loop(b.index(0), b.index(num_k // run), b.index(1), list(start)) as loop:
            loop.yield_(add(loop.iv, run, loop.args))
        return add(b.index(num_k // run), num_k % run, loop.results) if num_k % run else loop.results
