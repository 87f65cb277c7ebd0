"""Products of bytes by 16-bit products of pairs (VPMADDWD), for processors without dot products of bytes.

VPMADDUBSW would multiply bytes as they are, but saturates its sums of two at 16 bits. So each word of four bytes becomes two words of two
16-bit numbers, of the even and of the odd k: they need no shuffle, and sums stay exact. Rows are split once for a panel, in scratch, each
vector of a panel once for all rows of a register tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from llmos.compiler.backends.cpu.arithmetic.base import Operands
from llmos.compiler.backends.cpu.arithmetic.int8 import K_PER_WORD, Int8, are_bytes, load_word
from llmos.compiler.backends.cpu.arithmetic.register_tile import CACHE_LINE, Operand, Strided, TileShape
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.codegen.builder import Builder, Value
from llmos.compiler.ir.bindings import ir

MAX_ROWS = 8  # of a register tile
LOW_BYTES = 0x00FF00FF  # of the two 16-bit halves of a word
_MADD = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}  # by lanes of 32 bits


class Int8Pairs(Int8):
    """Two instructions for four products of each of the lanes, and two additions."""

    reads_windows = False  # they are copied to scratch, where rows are split

    @classmethod
    def supports(cls, operands: Operands, target: CpuTarget) -> bool:
        """Return whether both sides are bytes on x86."""
        return are_bytes(operands) and target.arch == "x86_64"

    def prepare(self, b: Builder, words: Value) -> tuple[Value, ...]:
        """Emit the even and the odd signed bytes of each word, in 16 bits."""
        halves, eight = _as_halves(b, words), _splat16(b, words, 8)
        even = b.binary("arith.shrsi", b.binary("arith.shli", halves, eight), eight)
        return even, b.binary("arith.shrsi", halves, eight)

    def register_tile(self, shape: TileShape, num_registers: int) -> TileShape:
        """Return more rows by fewer vectors of a panel, since each is two in registers: 8 by 1 of 16 registers, 8 by 2 of 32."""
        return replace(shape, rows=MAX_ROWS, vectors=min(shape.vectors, num_registers // 16))

    def scratch_bytes(self, k: int, width: int, k_block: int) -> int:
        """Return the bytes of the rows that `load_rows` writes."""
        return MAX_ROWS * _row_bytes(k)

    def load_rows(self, b: Builder, a: Operand, num_rows: int, k: Value, scratch: Callable[[], Value]) -> Operand:
        """Emit the split of rows of bytes into even and odd ones, each extended to 16 bits: half a row of words of each."""
        num_k, target = b.known(k), scratch()
        assert isinstance(a, Strided) and num_k is not None and num_rows <= MAX_ROWS
        words, stride = num_k // K_PER_WORD, b.index(_row_bytes(num_k))
        with b.loop(b.index(0), b.index(num_rows), b.index(1)) as rows:
            source = b.address(a.base, b.mul(rows.iv, a.row_stride), b.i8)
            split = _Split(b, b.address(target, b.mul(rows.iv, stride), b.i8), num_words(num_k))
            with b.loop(b.index(0), b.index(words // b.lanes * b.lanes), b.index(b.lanes)) as loop:
                at = b.address(source, b.mul(loop.iv, b.index(K_PER_WORD)), b.i8)
                split.store(b.load(at, b.vec(b.i32), 1), loop.iv)
            with b.loop(b.index(words // b.lanes * b.lanes), b.index(words), b.index(1)) as loop:
                split.store(load_word(b, source, loop.iv, K_PER_WORD), loop.iv)
            if num_k % K_PER_WORD:
                split.store(load_word(b, source, b.index(words), num_k % K_PER_WORD), b.index(words))
        return Strided(target, stride, b.index(1))

    def load_left(self, b: Builder, row: Value, word: Value, num_k: int, num_bytes: int) -> tuple[Value, ...]:
        """Emit the loads of the even and of the odd bytes of a word in all lanes."""
        odd = b.add(word, b.index(num_words(num_k)))
        return tuple(_as_halves(b, b.splat(b.load(b.address(row, at, b.i32), b.i32, 4))) for at in (word, odd))

    def multiply(self, b: Builder, total: Value, row: tuple[Value, ...], column: tuple[Value, ...]) -> Value:
        """Emit two VPMADDWD and their additions. Returns the new sums."""
        name = _MADD[total.type.shape[0]]
        for left, right in zip(row, column, strict=True):
            total = b.binary("arith.addi", total, b.intrinsic(name, [left, right], total.type))
        return total


@dataclass(frozen=True)
class _Split:
    """Writes words of bytes as words of their even bytes at `base`, and of their odd bytes `num_words` words behind."""

    b: Builder
    base: Value
    num_words: int

    def store(self, words: Value, at: Value) -> None:
        """Emit it for the word number `at`, i32, or for as many as there are lanes."""
        b, mask = self.b, self.b.const(self.b.i32, LOW_BYTES)
        for place, shift in ((at, 0), (b.add(at, b.index(self.num_words)), 8)):
            shifted = b.binary("arith.shrui", words, b.const(b.i32, shift)) if shift else words
            b.store(b.binary("arith.andi", shifted, mask), b.address(self.base, place, b.i32), 4)


def num_words(k: int) -> int:
    """Return how many words of four bytes a row has."""
    return -(-k // K_PER_WORD)


def _row_bytes(k: int) -> int:
    """Between two rows of `load_rows`: a line more than they need, so that rows of a power of two don't share cache sets."""
    return -(-8 * num_words(k) // CACHE_LINE) * CACHE_LINE + CACHE_LINE


def _as_halves(b: Builder, words: Value) -> Value:
    return b.op("vector.bitcast", [words], b.vec(ir.IntegerType.get_signless(16), 2 * words.type.shape[0]))


def _splat16(b: Builder, words: Value, number: int) -> Value:
    return b.splat_constant(ir.IntegerType.get_signless(16), number, 2 * words.type.shape[0])
