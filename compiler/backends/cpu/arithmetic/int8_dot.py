"""Products of bytes by dot products of four neighboring k (VPDPBUSD)."""

from __future__ import annotations

from llmos.compiler.backends.cpu.arithmetic.base import Operands
from llmos.compiler.backends.cpu.arithmetic.int8 import Int8, are_bytes, load_word
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.codegen.builder import Builder, Value


class Int8Dot(Int8):
    """One instruction for four products of each of the lanes."""

    @classmethod
    def supports(cls, operands: Operands, target: CpuTarget) -> bool:
        """Return whether both sides are bytes and the target multiplies them in its widest vectors."""
        needed = "avx512vnni" if target.vector_bits == 512 else "avxvnni"
        return are_bytes(operands) and target.has(needed)

    def prepare(self, b: Builder, words: Value) -> tuple[Value, ...]:
        """Emit the words as bytes."""
        return (_as_bytes(b, words),)

    def load_left(self, b: Builder, row: Value, word: Value, num_k: int, num_bytes: int) -> tuple[Value, ...]:
        """Emit the load of a word as bytes in all lanes."""
        return (_as_bytes(b, b.splat(load_word(b, row, word, num_bytes))),)

    def multiply(self, b: Builder, total: Value, row: tuple[Value, ...], column: tuple[Value, ...]) -> Value:
        """Emit one VPDPBUSD. Returns the new sums."""
        bits = 32 * total.type.shape[0]
        return b.intrinsic(f"llvm.x86.avx512.vpdpbusd.{bits}", [total, *row, *column], total.type)


def _as_bytes(b: Builder, words: Value) -> Value:
    return b.op("vector.bitcast", [words], b.vec(b.i8, 4 * words.type.shape[0]))
