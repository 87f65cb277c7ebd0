"""Products of unsigned by signed bytes, summed in 32 bits: what the variants for instruction sets share.

Panels are [k/4][columns][4], zero-padded past k: a word holds four neighboring k of a column. Sums of integers are exact modulo 2^32 in
any order, so every variant gives the same numbers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from llmos.compiler.backends.cpu.arithmetic.base import Operands, Prefetch, RegisterArithmetic
from llmos.compiler.backends.cpu.arithmetic.register_tile import CACHE_LINE, UNROLL, Operand, Panel, Strided, TileShape
from llmos.compiler.codegen.builder import Builder, Value
from llmos.compiler.ir.bindings import ir

K_PER_WORD = 4


def are_bytes(operands: Operands) -> bool:
    """Whether both sides are bytes; which signs they have, the contraction says (`Contraction.is_bytes`)."""
    return all(isinstance(each, ir.IntegerType) and each.width == 8 for each in (operands.left, operands.right))


class Int8(RegisterArithmetic):
    """Rows and panels of bytes where they lie, four neighboring k of a row broadcast."""

    k_per_word = K_PER_WORD
    reads_windows = True
    prefetch = Prefetch.NEXT_PANEL
    sums_are_exact = True

    @property
    def left_type(self) -> ir.Type:
        """Return a byte."""
        return ir.IntegerType.get_signless(8)

    @property
    def accumulator_type(self) -> ir.Type:
        """Return i32."""
        return ir.IntegerType.get_signless(32)

    @abstractmethod
    def prepare(self, b: Builder, words: Value) -> tuple[Value, ...]:
        """Emit what is done once for a vector of words of a panel, i32 [lanes]."""

    @abstractmethod
    def load_left(self, b: Builder, row: Value, word: Value, num_k: int, num_bytes: int) -> tuple[Value, ...]:
        """Emit the load of a word of a row, broadcast to all lanes, as `multiply` takes it.

        row: where `load_rows` put it; num_k: of the row; num_bytes: that the word has, 4 but for the last one.
        """

    @abstractmethod
    def multiply(self, b: Builder, total: Value, row: tuple[Value, ...], column: tuple[Value, ...]) -> Value:
        """Emit the addition of the products of four k to a vector of sums, i32 [lanes]."""

    def accumulate(self, b: Builder, shape: TileShape, a: Operand, panel: Panel, k: Value, start: Sequence[Value]) -> list[Value]:
        """The k of a packed weight are known; its rows are dense along k, or windows whose runs are whole words."""

        def run(rows: Sequence[Value], first_k: Value, count: Value, sums: Sequence[Value]) -> list[Value]:
            num_k = b.known(count)
            assert num_k is not None
            first, words = b.div(first_k, b.index(K_PER_WORD)) if b.known(first_k) != 0 else first_k, num_k // K_PER_WORD

            def step(word: Value, before: Sequence[Value], num_bytes: int = K_PER_WORD) -> list[Value]:
                columns = [self.prepare(b, vector) for vector in _words(b, shape, panel, b.add(first, word))]
                made = list(before)
                for r, row in enumerate(rows):
                    left = self.load_left(b, row, word, num_k, num_bytes)
                    for v, column in enumerate(columns):
                        made[r * shape.vectors + v] = self.multiply(b, before[r * shape.vectors + v], left, column)
                return made

            with b.loop(b.index(0), b.index(words // UNROLL * UNROLL), b.index(UNROLL), list(sums)) as loop:
                made = loop.args
                _prefetch_next(b, panel, b.add(first, loop.iv))
                for each in range(UNROLL):
                    made = step(b.add(loop.iv, b.index(each)), made)
                loop.yield_(made)
            made = loop.results
            for word in range(words // UNROLL * UNROLL, words):
                made = step(b.index(word), made)
            return step(b.index(words), made, num_k % K_PER_WORD) if num_k % K_PER_WORD else made

        if not isinstance(a, Strided):
            return a.sweep(b, shape.rows, k, start, run)
        rows = [b.address(a.base, b.mul(b.index(r), a.row_stride), b.i8) if r else a.base for r in range(shape.rows)]
        return run(rows, b.index(0), k, start)


def _words(b: Builder, shape: TileShape, panel: Panel, word: Value) -> list[Value]:
    """The vectors of one row of words of a panel."""
    kind = b.vec(b.i32, shape.lanes)
    at = b.address(panel.base, b.mul(word, panel.stride), b.i32)
    if panel.prefetch:
        ahead = b.address(at, b.mul(b.index(panel.prefetch), panel.stride), b.i32)
        for line in range(0, shape.columns * 4, CACHE_LINE):
            b.prefetch(b.address(ahead, b.index(line // 4), b.i32))
    return [b.load(b.address(at, b.index(v * shape.lanes), b.i32) if v else at, kind, panel.align) for v in range(shape.vectors)]


def load_word(b: Builder, row: Value, word: Value, num_bytes: int) -> Value:
    """Emit the load of a word of a row of bytes as i32; behind the last of `num_bytes` nothing is read, and the word is 0."""
    address = b.address(row, b.mul(word, b.index(K_PER_WORD)), b.i8)
    return b.load(address, b.i32, 1) if num_bytes == K_PER_WORD else _rest_of_row(b, address, num_bytes)


def _rest_of_row(b: Builder, address: Value, count: int) -> Value:
    word: Value | None = None
    for byte in range(count):
        loaded = b.op("arith.extui", [b.load(b.address(address, b.index(byte), b.i8), b.i8, 1)], b.i32)
        part = b.binary("arith.shli", loaded, b.const(b.i32, 8 * byte)) if byte else loaded
        word = part if word is None else b.binary("arith.ori", word, part)
    assert word is not None
    return word


def _prefetch_next(b: Builder, panel: Panel, word: Value) -> None:
    """Request the lines of what is read later that belong to UNROLL steps."""
    if panel.next_panel is None:
        return
    at = b.address(panel.next_panel, b.mul(word, b.index(panel.lines * CACHE_LINE // 4 // UNROLL)), b.i32)
    for line in range(panel.lines):
        b.prefetch(b.address(at, b.index(line * CACHE_LINE // 4), b.i32), level=2)
