"""Products of int8 rows by weights of 4 bits, summed in integers for each run of k: what the variants for instruction sets share.

    sum[g] = Σ x[k] * (number[k] - zero_point[g])     int32, over k of run g: exact in any order
    y      = fma chain over g, in order, from 0: float(sum[g]) * scale[g]

A number without a sign is the unsigned factor, the element of a row the signed one, as VPDPBUSD and VPMADDUBSW multiply them. The zero
point enters by the sum of the row over a run, from which a run's sums start: Σ x * (number - zero) = -zero * Σ x + Σ x * number.

Rows are copied to scratch once for all panels of a thread, each eight k as four of even and four of odd number, and behind them the
negated sum of each run: a word of a panel gives its even numbers by a mask, its odd ones by a shift and a mask, without a shuffle.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence

from llmos.compiler.backends.cpu.arithmetic.base import Operands
from llmos.compiler.backends.cpu.arithmetic.grouped import GroupArithmetic, NumberPanel, over_runs
from llmos.compiler.backends.cpu.arithmetic.register_tile import CACHE_LINE, Strided, TileShape
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.codegen.builder import Builder, Value
from llmos.compiler.ir.bindings import ir

BLOCK_K = 512  # about how many k are unpacked to scratch at once: 32 KiB of 64 columns
K_PER_WORD = 4  # of a row, and of a panel in scratch
NUMBERS = 8  # of a word of a packed panel
LOW_HALVES = 0x0F0F0F0F  # of the bytes of a word
LONGEST_16_BIT_SUM = 256  # elements of a row whose sum fits 16 bits with its sign
FEW_ROWS = 16  # that multiply numbers in registers: two blocks of 8 or four of 4

Columns = Callable[[int], list[Value]]  # number of a vector of columns -> its numbers, a vector for each word of a step
Load = Callable[[Value, int], Iterator[Columns]]  # first of some words of a run, how many -> its steps


class Int4(GroupArithmetic):
    """Rows of int8 in scratch, numbers packed in memory.

    chain: words that are summed before `finish`; an even number.
    """

    thread_rows = 128
    block_k = BLOCK_K
    k_per_row = K_PER_WORD
    chain = 8

    def __init__(self, operands: Operands) -> None:
        assert operands.numbers is not None and operands.k is not None
        super().__init__(operands.numbers)
        self.k = operands.k

    @classmethod
    def supports(cls, operands: Operands, target: CpuTarget) -> bool:
        """Return whether the right side is numbers of 4 bits with scales, the left one bytes, and the target has the instructions."""
        is_mixed = operands.numbers is not None and isinstance(operands.left, ir.IntegerType)
        return is_mixed and cls.has_instructions(target)

    @classmethod
    @abstractmethod
    def has_instructions(cls, target: CpuTarget) -> bool:
        """Return whether a target multiplies so."""

    @property
    def left_type(self) -> ir.Type:
        """Return a byte."""
        return ir.IntegerType.get_signless(8)

    def few_tiles(self, lanes: int, width: int) -> list[TileShape]:
        """Return tiles of as many sums as half of the registers, or three quarters where columns divide so."""
        most = {16: 16, 8: 8, 4: 8}[lanes]
        tiles = []
        for rows in (8, 4, 2, 1):
            wide = max(most // rows, 3 if rows == 8 else 1)
            vectors = [v for v in range(1, wide + 1) if width % (v * lanes) == 0]
            if rows * 2 <= most and vectors:
                tiles.append(TileShape(rows, vectors[-1], lanes))
        return tiles

    def few_rows(self, lanes: int) -> int:
        """Return the most rows that multiply numbers in registers."""
        return FEW_ROWS

    # -- rows
    def prepared_row_bytes(self, k: int) -> int:
        """Return the bytes from a row in scratch to the next: a line more than they need, so that they don't share cache sets."""
        num_bytes = self._sums_offset + 4 * -(-k // self.format.run)
        return -(-num_bytes // CACHE_LINE) * CACHE_LINE + CACHE_LINE

    @property
    def _sums_offset(self) -> int:
        return -(-self.k // NUMBERS) * NUMBERS

    def prepare_row(self, b: Builder, source: Value, target: Value) -> None:
        """Emit the copy of a row of bytes to scratch, even k before odd ones, zeros behind the last, and the sums of its runs."""
        vector = K_PER_WORD * b.lanes
        whole, end = self.k // vector * vector, self.k // NUMBERS * NUMBERS
        for first, last, count in ((0, whole, vector), (whole, end, NUMBERS)):
            with b.loop(b.index(first), b.index(last), b.index(count)) as loop:
                loaded = b.load(b.address(source, loop.iv, b.i8), b.vec(b.i8, count), 1)
                b.store(_evens_first(b, loaded), b.address(target, loop.iv, b.i8), NUMBERS)
        if end < self.k:
            b.store(b.splat_constant(b.i8, 0, NUMBERS), b.address(target, b.index(end), b.i8), NUMBERS)
        for k in range(end, self.k):
            place = end + (k - end) // 2 + (k - end) % 2 * K_PER_WORD
            b.store(b.load(b.address(source, b.index(k), b.i8), b.i8, 1), b.address(target, b.index(place), b.i8), 1)
        if not self._starts_at_zero:
            self._store_sums(b, source, b.address(target, b.index(self._sums_offset), b.i8))

    @property
    def _starts_at_zero(self) -> bool:
        """Whether numbers have no zero point, and so sums nothing to start from."""
        return self._constant == 0

    @property
    def _constant(self) -> int | None:
        """The zero point of numbers without a sign; None where each scale has one."""
        return None if self.format.zero_point is None else self.format.zero_point + self.flip

    def _store_sums(self, b: Builder, source: Value, target: Value) -> None:
        """The sum of each run times -1, or times the constant zero point less than 0."""
        factor = b.const(b.i32, -1 if self._constant is None else -self._constant)

        def store(run: Value, count: int, nothing: Sequence[Value]) -> list[Value]:
            first = b.address(source, b.mul(run, b.index(self.format.run)), b.i8)
            b.store(b.binary("arith.muli", _byte_sum(b, first, count), factor), b.address(target, run, b.i32), 4)
            return list(nothing)

        over_runs(b, self.k, self.format.run, (), store)

    # -- products
    @abstractmethod
    def begin(self, sums: Sequence[Value]) -> list[Value | None]:
        """Return what a chain of `dot` starts from, for each sum; None for 0."""

    @abstractmethod
    def dot(self, b: Builder, total: Value | None, numbers: Value, row: Value) -> Value:
        """Emit the products of four k, added to a chain. numbers: words of unsigned bytes; row: a word of signed ones in all lanes."""

    @abstractmethod
    def finish(self, b: Builder, total: Value, chained: Value) -> Value:
        """Emit a vector of sums, i32, from before a chain to behind it."""

    def product(self, b: Builder, zero_point: Value, negated_sum: Value) -> Value:
        """Emit the products of two vectors of i32 whose factors fit 16 bits, the first without a sign."""
        return b.binary("arith.muli", zero_point, negated_sum)

    def add_run(
        self, b: Builder, shape: TileShape, a: Strided, panel: NumberPanel, run: Value, num_k: int, totals: Sequence[Value]
    ) -> list[Value]:
        """Emit totals with the sums of run number `run`, of `num_k`."""
        begin = b.address(panel.numbers, b.mul(run, b.index(self.format.run // NUMBERS * panel.width)), b.i32)

        def load(word: Value, count: int) -> Iterator[Columns]:
            for each in range(count // 2):
                vector = self.words_at(b, shape, panel, begin, b.add(b.div(word, b.index(2)), b.index(each)))
                yield lambda v, vector=vector: self._halves(b, vector(v))  # type: ignore[misc]

        return self._add(b, shape, a, panel, run, num_k, totals, load, step=2)

    def _halves(self, b: Builder, words: Value) -> list[Value]:
        """The even and the odd numbers of a vector of words, without a sign, a byte each."""
        lanes = words.type.shape[0]
        low = b.splat_constant(b.i32, LOW_HALVES, lanes)
        made = []
        for moved in (words, b.binary("arith.shrui", words, b.splat_constant(b.i32, 4, lanes))):
            half = b.binary("arith.andi", moved, low)
            flip = b.splat_constant(b.i32, LOW_HALVES // 15 * self.flip, lanes) if self.flip else None
            made.append(half if flip is None else b.binary("arith.xori", half, flip))
        return made

    def unpacker(self, b: Builder, shape: TileShape, panel: NumberPanel, run: Value) -> Callable[[int, Value], list[Value]]:
        """Return what emits the even and the odd numbers of the words of a vector of columns, a byte each."""
        return lambda v, words: self._halves(b, words)

    def accumulate_block(
        self, b: Builder, shape: TileShape, a: Strided, panel: NumberPanel, part: Value, k: Value, num_k: int, start: Sequence[Value]
    ) -> list[Value]:
        """Emit `start` plus the products of `num_k` k from `k` on. part: of the block in scratch, the columns of the tile."""
        run, first, columns = self.format.run, b.div(k, b.index(self.format.run)), b.index(shape.columns)
        kind, align = b.vec(b.i32, shape.lanes), min(CACHE_LINE, 4 * shape.lanes)

        def add(number: Value, count: int, totals: Sequence[Value]) -> list[Value]:
            begin = b.mul(number, b.index(run // K_PER_WORD))

            def load(word: Value, count: int) -> Iterator[Columns]:
                for each in range(count):
                    at = b.address(part, b.mul(b.add(b.add(begin, word), b.index(each)), columns), b.i32)
                    yield lambda v, at=at: [b.load(b.address(at, b.index(v * shape.lanes), b.i32), kind, align)]  # type: ignore[misc]

            return self._add(b, shape, a, panel, b.add(first, number), count, totals, load, step=1)

        return over_runs(b, num_k, run, start, add)

    def _add(
        self,
        b: Builder,
        shape: TileShape,
        a: Strided,
        panel: NumberPanel,
        run: Value,
        num_k: int,
        totals: Sequence[Value],
        load: Load,
        step: int,
    ) -> list[Value]:
        """Totals with the sums of one run. load: of its words, `step` at once."""
        rows = [b.address(a.base, b.mul(b.index(r), a.row_stride), b.i8) for r in range(shape.rows)]
        starts = [b.address(row, b.mul(run, b.index(self.format.run)), b.i8) for row in rows]

        def add_chain(word: Value, count: int, sums: Sequence[Value]) -> list[Value]:
            chained = self.begin(sums)
            for number, columns in enumerate(load(word, count)):
                words = [b.add(word, b.index(number * step + each)) for each in range(step)]
                chained = self._step(b, shape, starts, words, columns, chained)
            return [self.finish(b, total, made) for total, made in zip(sums, chained, strict=True) if made is not None]

        words = -(-num_k // NUMBERS) * 2
        whole = words // self.chain * self.chain
        with b.loop(b.index(0), b.index(whole), b.index(self.chain), self._starts(b, shape, rows, panel, run)) as loop:
            loop.yield_(add_chain(loop.iv, self.chain, loop.args))
        sums = add_chain(b.index(whole), words - whole, loop.results) if whole < words else loop.results
        return self.scaled(b, shape, panel, run, self._floats(b, sums), totals)

    def _floats(self, b: Builder, sums: Sequence[Value]) -> list[Value]:
        return [b.op("arith.sitofp", [each], b.vec(b.f32, each.type.shape[0])) for each in sums]

    def _step(
        self, b: Builder, shape: TileShape, rows: Sequence[Value], words: Sequence[Value], columns: Columns, chained: Sequence[Value | None]
    ) -> list[Value | None]:
        """Chains with the products of a few words."""
        made = list(chained)

        def left(row: Value, word: Value) -> Value:
            return b.splat(b.load(b.address(row, word, b.i32), b.i32, 4), shape.lanes)

        def add(r: int, row: Value, v: int, numbers: Value) -> None:
            made[r * shape.vectors + v] = self.dot(b, made[r * shape.vectors + v], numbers, row)

        # The fewer of the two are all held in registers, the others loaded one by one.
        if shape.rows < shape.vectors:
            scalars = [[left(row, word) for row in rows] for word in words]
            for v in range(shape.vectors):
                for held, numbers in zip(scalars, columns(v), strict=True):
                    for r, row in enumerate(held):
                        add(r, row, v, numbers)
            return made
        vectors = [columns(v) for v in range(shape.vectors)]
        for each, word in enumerate(words):
            for r, row in enumerate(rows):
                scalar = left(row, word)
                for v, numbers in enumerate(vectors):
                    add(r, scalar, v, numbers[each])
        return made

    def _starts(self, b: Builder, shape: TileShape, rows: Sequence[Value], panel: NumberPanel, run: Value) -> list[Value]:
        """Minus the zero points times the sums of the rows over a run."""
        if self._starts_at_zero:
            return [b.splat_constant(b.i32, 0, shape.lanes)] * (shape.rows * shape.vectors)
        at = b.add(b.index(self._sums_offset // 4), run)
        sums = [b.splat(b.load(b.address(row, at, b.i32), b.i32, 4), shape.lanes) for row in rows]
        if self._constant is not None:
            return [each for each in sums for _ in range(shape.vectors)]
        zeros = [self._zero_points(b, panel, run, v, shape.lanes) for v in range(shape.vectors)]
        is_short = self.format.run <= LONGEST_16_BIT_SUM and not self.format.zero_is_signed
        times = self.product if is_short else _product
        return [times(b, zero, each) for each in sums for zero in zeros]

    def _zero_points(self, b: Builder, panel: NumberPanel, run: Value, vector: int, lanes: int) -> Value:
        zero = self.zero_points(b, panel, run, vector, lanes)
        return b.binary("arith.addi", zero, b.splat_constant(b.i32, self.flip, lanes)) if self.flip else zero


def _product(b: Builder, left: Value, right: Value) -> Value:
    return b.binary("arith.muli", left, right)


def _evens_first(b: Builder, values: Value) -> Value:
    """Each eight elements of a vector as those of even number, then those of odd number."""
    count = values.type.shape[0]
    order = [first + each for first in range(0, count, NUMBERS) for each in (*range(0, NUMBERS, 2), *range(1, NUMBERS, 2))]
    return b.op("vector.shuffle", [values, values], values.type, mask=ir.DenseI64ArrayAttr.get(order))


def _byte_sum(b: Builder, base: Value, count: int) -> Value:
    """The sum of signed bytes, i32."""
    lanes, i32 = b.lanes, b.i32
    whole = count // lanes * lanes
    with b.loop(b.index(0), b.index(whole), b.index(lanes), [b.splat_constant(i32, 0)]) as loop:
        each = b.load(b.address(base, loop.iv, b.i8), b.vec(b.i8), 1)
        loop.yield_([b.binary("arith.addi", loop.args[0], b.op("arith.extsi", [each], b.vec(i32)))])
    total = b.op("vector.reduction", [loop.results[0]], i32, kind=ir.Attribute.parse("#vector.kind<add>"))
    for number in range(whole, count):
        each = b.load(b.address(base, b.index(number), b.i8), b.i8, 1)
        total = b.binary("arith.addi", total, b.op("arith.extsi", [each], i32))
    return total
