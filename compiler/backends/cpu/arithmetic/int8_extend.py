"""Products of bytes in plain 32-bit arithmetic, for architectures whose instructions are not known here."""

from __future__ import annotations

from llmos.compiler.backends.cpu.arithmetic.base import Operands
from llmos.compiler.backends.cpu.arithmetic.int8 import K_PER_WORD, Int8, are_bytes, load_word
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.codegen.builder import Builder, Value


class Int8Extend(Int8):
    """Four multiplications and additions for four products of each of the lanes."""

    @classmethod
    def supports(cls, operands: Operands, target: CpuTarget) -> bool:
        """Return whether both sides are bytes."""
        return are_bytes(operands)

    def prepare(self, b: Builder, words: Value) -> tuple[Value, ...]:
        """Emit the four signed bytes of each word, in 32 bits."""
        return tuple(extended_byte(b, words, number, "arith.shrsi") for number in range(K_PER_WORD))

    def load_left(self, b: Builder, row: Value, word: Value, num_k: int, num_bytes: int) -> tuple[Value, ...]:
        """Emit the four unsigned bytes of a word in all lanes, in 32 bits."""
        words = b.splat(load_word(b, row, word, num_bytes))
        return tuple(extended_byte(b, words, number, "arith.shrui") for number in range(K_PER_WORD))

    def multiply(self, b: Builder, total: Value, row: tuple[Value, ...], column: tuple[Value, ...]) -> Value:
        """Emit four multiplications and additions. Returns the new sums."""
        for left, right in zip(row, column, strict=True):
            total = b.binary("arith.addi", total, b.binary("arith.muli", left, right))
        return total


def extended_byte(b: Builder, words: Value, number: int, shift: str) -> Value:
    """Emit byte `number` of each word, lowest first, extended by a right shift: signed ("arith.shrsi") or not."""
    lanes = words.type.shape[0]
    left = b.binary("arith.shli", words, b.splat_constant(b.i32, 24 - 8 * number, lanes)) if number < K_PER_WORD - 1 else words
    return b.binary(shift, left, b.splat_constant(b.i32, 24, lanes))
