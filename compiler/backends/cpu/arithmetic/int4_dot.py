"""Products of int8 rows by weights of 4 bits by dot products of four neighboring k (VPDPBUSD)."""

from __future__ import annotations

from collections.abc import Sequence

from llmos.compiler.backends.cpu.arithmetic.int4 import Int4
from llmos.compiler.backends.cpu.arithmetic.int4_pairs import as_bytes, madd_halves
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.codegen.builder import Builder, Value


class Int4Dot(Int4):
    """One instruction for four products of each of the lanes."""

    @classmethod
    def has_instructions(cls, target: CpuTarget) -> bool:
        """Return whether the target multiplies bytes in its widest vectors."""
        return target.has("avx512vnni" if target.vector_bits == 512 else "avxvnni")

    def begin(self, sums: Sequence[Value]) -> list[Value | None]:
        """Return the sums: chains go on."""
        return list(sums)

    def dot(self, b: Builder, total: Value | None, numbers: Value, row: Value) -> Value:
        """Emit one VPDPBUSD. Returns the new sums."""
        assert total is not None
        bits = 32 * total.type.shape[0]
        return b.intrinsic(f"llvm.x86.avx512.vpdpbusd.{bits}", [total, as_bytes(b, numbers), as_bytes(b, row)], total.type)

    def finish(self, b: Builder, total: Value, chained: Value) -> Value:
        """Return the chain's end."""
        return chained

    def product(self, b: Builder, zero_point: Value, negated_sum: Value) -> Value:
        """Emit one VPMADDWD."""
        return madd_halves(b, zero_point, negated_sum)
