"""Products of bytes by 16-bit products of pairs (VPMADDWD), for processors without dot products of bytes.

VPMADDUBSW would multiply bytes as they are, but saturates its sums of two at 16 bits. So each word of four bytes becomes two words of two
16-bit numbers, of the even and of the odd k: they need no shuffle, and sums stay exact.
"""

from __future__ import annotations

from llmos.compiler.backends.cpu.arithmetic.base import Operands
from llmos.compiler.backends.cpu.arithmetic.int8 import Int8, are_bytes
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.codegen.builder import Builder, Value
from llmos.compiler.ir.bindings import ir

LOW_BYTES = 0x00FF00FF  # of the two 16-bit halves of a word
_MADD = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}  # by lanes of 32 bits


class Int8Pairs(Int8):
    """Two instructions for four products of each of the lanes, and two additions."""

    @classmethod
    def supports(cls, operands: Operands, target: CpuTarget) -> bool:
        """Return whether both sides are bytes on x86."""
        return are_bytes(operands) and target.arch == "x86_64"

    def prepare(self, b: Builder, words: Value) -> tuple[Value, ...]:
        """Emit the even and the odd signed bytes of each word, in 16 bits."""
        halves, eight = _as_halves(b, words), _splat16(b, words, 8)
        even = b.binary("arith.shrsi", b.binary("arith.shli", halves, eight), eight)
        return even, b.binary("arith.shrsi", halves, eight)

    def prepare_row(self, b: Builder, words: Value) -> tuple[Value, ...]:
        """Emit the even and the odd unsigned bytes of each word, in 16 bits."""
        low = b.binary("arith.andi", words, b.splat_constant(b.i32, LOW_BYTES, words.type.shape[0]))
        return _as_halves(b, low), b.binary("arith.shrui", _as_halves(b, words), _splat16(b, words, 8))

    def multiply(self, b: Builder, total: Value, row: tuple[Value, ...], column: tuple[Value, ...]) -> Value:
        """Emit two VPMADDWD and their additions. Returns the new sums."""
        name = _MADD[total.type.shape[0]]
        for left, right in zip(row, column, strict=True):
            total = b.binary("arith.addi", total, b.intrinsic(name, [left, right], total.type))
        return total


def _as_halves(b: Builder, words: Value) -> Value:
    return b.op("vector.bitcast", [words], b.vec(ir.IntegerType.get_signless(16), 2 * words.type.shape[0]))


def _splat16(b: Builder, words: Value, number: int) -> Value:
    return b.splat_constant(ir.IntegerType.get_signless(16), number, 2 * words.type.shape[0])
