"""Products of int8 rows by weights of 4 bits by 16-bit sums of pairs (VPMADDUBSW), for processors without dot products of bytes.

VPMADDUBSW saturates its sums at 16 bits. Here they can't: a number has 4 bits, so a sum of two products is at most 2 * 15 * 128, and eight
of these, 30,720, are added in 16 bits before VPMADDWD by ones adds neighbors in 32.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmos.compiler.backends.cpu.arithmetic.int4 import Int4
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.codegen.builder import Builder, Value
from llmos.compiler.ir.bindings import ir

_MADD_BYTES = {8: "llvm.x86.avx2.pmadd.ub.sw", 16: "llvm.x86.avx512.pmaddubs.w.512"}  # by lanes of 32 bits
_MADD_HALVES = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}


class Int4Pairs(Int4):
    """One instruction for four products of each of the lanes, and an addition; two more for eight of them."""

    chain = 8

    @classmethod
    def has_instructions(cls, target: CpuTarget) -> bool:
        """Return whether the target is x86."""
        return target.arch == "x86_64"

    def begin(self, sums: Sequence[Value]) -> list[Value | None]:
        """Return nothing: chains are of 16 bits."""
        return [None] * len(sums)

    def dot(self, b: Builder, total: Value | None, numbers: Value, row: Value) -> Value:
        """Emit one VPMADDUBSW and the addition of its 16-bit sums.

        The addition is one that saturates, though it never does: LLVM would reorder other chains into trees that don't fit registers.
        """
        lanes = numbers.type.shape[0]
        pairs = b.intrinsic(_MADD_BYTES[lanes], [as_bytes(b, numbers), as_bytes(b, row)], b.vec(_i16(), 2 * lanes))
        return pairs if total is None else b.intrinsic(f"llvm.sadd.sat.v{2 * lanes}i16", [total, pairs], pairs.type)

    def finish(self, b: Builder, total: Value, chained: Value) -> Value:
        """Emit one VPMADDWD by ones and an addition."""
        lanes = total.type.shape[0]
        ones = b.splat_constant(_i16(), 1, 2 * lanes)
        return b.binary("arith.addi", total, b.intrinsic(_MADD_HALVES[lanes], [chained, ones], total.type))

    def product(self, b: Builder, zero_point: Value, negated_sum: Value) -> Value:
        """Emit one VPMADDWD."""
        return madd_halves(b, zero_point, negated_sum)


def madd_halves(b: Builder, left: Value, right: Value) -> Value:
    """Emit the products of the low halves of i32 words plus those of their high halves; halves are signed."""
    lanes = left.type.shape[0]
    halves = [b.op("vector.bitcast", [each], b.vec(_i16(), 2 * lanes)) for each in (left, right)]
    return b.intrinsic(_MADD_HALVES[lanes], halves, left.type)


def as_bytes(b: Builder, words: Value) -> Value:
    """Emit i32 words as bytes."""
    return b.op("vector.bitcast", [words], b.vec(b.i8, 4 * words.type.shape[0]))


def _i16() -> ir.Type:
    return ir.IntegerType.get_signless(16)
