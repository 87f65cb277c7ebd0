"""Products of float32 rows by weights of 4 or 8 bits, by fma: the numbers become floats in registers, and each run of k is scaled once.

    sum[g] = fma chain over k of run g, in order, from 0: x[k] * float(number[k] - zero_point[g])
    y      = fma chain over g, in order, from 0: sum[g] * scale[g]

A run is a group of weights that share a scale, or 256 k where a channel has one scale (arithmetic/grouped.py has the panels). An integer
becomes a float without a conversion: its bits, put under the exponent of 2^23 (or of less where it lies higher in the mantissa), are that
power plus the integer; the power plus the zero point is then subtracted, exactly. A code of float8 (E4M3) is shifted to where sign,
exponent and fraction of a float32 lie, and multiplied by 2^120, exactly (passes/quant/_float8.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmos.compiler.analysis.quantized_weights import NumberFormat
from llmos.compiler.backends.cpu.arithmetic.base import Operands
from llmos.compiler.backends.cpu.arithmetic.f32 import OWN_ROWS, accumulate
from llmos.compiler.backends.cpu.arithmetic.grouped import GroupArithmetic, NumberPanel, over_runs
from llmos.compiler.backends.cpu.arithmetic.register_tile import CACHE_LINE, Panel, Strided, TileShape, zeros
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.codegen.builder import Builder, Value
from llmos.compiler.ir.bindings import ir

BLOCK_K = 256  # about how many k are written to scratch at once
MANTISSA = 23  # bits of a float32's fraction
EXPONENT = 0x4B000000  # of 2^23
FEW_BLOCKS = 4  # of rows that multiply numbers in registers
CODE_BITS = 0x87F00000 - (1 << 32)  # of a float8's sign and magnitude in a float32
CODE_FACTOR = 2.0**120  # between their exponents
TILE_ROWS = {16: 8, 8: 4, 4: 4}  # rows that share numbers in registers, by lanes of a vector


class WeightOnly(GroupArithmetic):
    """Rows of float32 where they lie; numbers, scales and zero points packed in memory."""

    thread_rows = OWN_ROWS
    block_k = BLOCK_K
    k_per_row = 1

    def __init__(self, numbers: NumberFormat) -> None:
        super().__init__(numbers)
        self.positions = (0, numbers.bits)  # where in a mantissa numbers are read

    @classmethod
    def supports(cls, operands: Operands, target: CpuTarget) -> bool:
        """Return whether the right side is numbers with scales, the left one float32."""
        return operands.numbers is not None and isinstance(operands.left, ir.F32Type)

    @property
    def left_type(self) -> ir.Type:
        """Return float32."""
        return ir.F32Type.get()

    def few_tiles(self, lanes: int, width: int) -> list[TileShape]:
        """Return tiles of 8 (4) rows by two vectors, and of fewer by four."""
        tiles = []
        for rows in (8, 4, 2, 1):
            if rows <= TILE_ROWS[lanes]:
                most = 2 if rows == TILE_ROWS[lanes] else 4
                tiles.append(TileShape(rows, max(v for v in range(1, most + 1) if width % (v * lanes) == 0), lanes))
        return tiles

    def few_rows(self, lanes: int) -> int:
        """Return the rows of a few blocks."""
        return FEW_BLOCKS * TILE_ROWS[lanes]

    # -- few rows: numbers in registers
    def add_run(
        self, b: Builder, shape: TileShape, a: Strided, panel: NumberPanel, run: Value, num_k: int, totals: Sequence[Value]
    ) -> list[Value]:
        """Emit totals with the sums of run number `run`, of `num_k`."""
        first = b.mul(run, b.index(self.format.run))
        rows = [b.address(a.base, b.add(b.mul(b.index(r), a.row_stride), first), b.f32) for r in range(shape.rows)]
        biases = [self._biases(b, shape.lanes, panel, run, v) for v in range(shape.vectors)]
        begin = b.address(panel.numbers, b.mul(b.div(first, b.index(self.k_per_word)), b.index(panel.width)), b.i32)

        def step(word: Value, count: int, sums: Sequence[Value]) -> list[Value]:
            columns = [self._numbers(b, words, biases[v]) for v, words in enumerate(self.words(b, shape, panel, begin, word))]
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
        return self.scaled(b, shape, panel, run, sums, totals)

    # -- numbers as floats
    def _biases(self, b: Builder, lanes: int, panel: NumberPanel, run: Value, vector: int) -> list[Value]:
        """For each position in a mantissa the power of two there plus the zero point: what is subtracted from a number's float."""
        if self.format.is_float:
            return []
        powers = [float(1 << (MANTISSA - position)) for position in self.positions]
        if panel.zero_point is None:
            constant = self.flip + (self.format.zero_point or 0)
            return [b.splat_constant(b.f32, power + constant, lanes) for power in powers]
        zero = b.op("arith.sitofp", [self.zero_points(b, panel, run, vector, lanes)], b.vec(b.f32, lanes))
        return [b.binary("arith.addf", zero, b.splat_constant(b.f32, power + self.flip, lanes)) for power in powers]

    def _numbers(self, b: Builder, words: Value, biases: Sequence[Value]) -> list[Value]:
        """The numbers of a vector of words less their zero points, a float vector for each k of a word."""
        if self.format.is_float:
            return [self._decoded(b, words, each) for each in range(self.k_per_word)]
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

    def _decoded(self, b: Builder, words: Value, number: int) -> Value:
        """The floats of the codes in byte `number` of each word."""
        lanes, bits = words.type.shape[0], self.format.bits
        above = 32 - bits - number * bits
        highest = b.binary("arith.shli", words, b.splat_constant(b.i32, above, lanes)) if above else words
        placed = b.binary("arith.shrsi", highest, b.splat_constant(b.i32, 4, lanes))
        masked = b.binary("arith.andi", placed, b.splat_constant(b.i32, CODE_BITS, lanes))
        value = b.op("arith.bitcast", [masked], b.vec(b.f32, lanes))
        return b.binary("arith.mulf", value, b.splat_constant(b.f32, CODE_FACTOR, lanes))

    # -- many rows: a block of k as floats in scratch
    def unpacker(self, b: Builder, shape: TileShape, panel: NumberPanel, run: Value) -> Callable[[int, Value], list[Value]]:
        """Return what emits, for the words of vector number v of a tile, their numbers less zero points, a float vector for each k."""
        biases = [self._biases(b, shape.lanes, panel, run, v) for v in range(shape.vectors)]
        return lambda v, words: self._numbers(b, words, biases[v])

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
            return self.scaled(b, shape, panel, b.add(first, number), sums, totals)

        return over_runs(b, num_k, run, start, add)
