"""Products of int8 rows by weights of 4 bits by multiplications of 32 bits, for processors without instructions for bytes."""

from __future__ import annotations

from collections.abc import Sequence

from llmos.compiler.backends.cpu.arithmetic.int4 import K_PER_WORD, Int4
from llmos.compiler.backends.cpu.arithmetic.int8_extend import extended_byte
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.codegen.builder import Builder, Value


class Int4Extend(Int4):
    """Four multiplications and additions for four products of each of the lanes."""

    @classmethod
    def has_instructions(cls, target: CpuTarget) -> bool:
        """Return that every target multiplies so."""
        return True

    def begin(self, sums: Sequence[Value]) -> list[Value | None]:
        """Return the sums: chains go on."""
        return list(sums)

    def dot(self, b: Builder, total: Value | None, numbers: Value, row: Value) -> Value:
        """Emit four multiplications and additions. Returns the new sums."""
        assert total is not None
        for byte in range(K_PER_WORD):
            factors = extended_byte(b, numbers, byte, "arith.shrui"), extended_byte(b, row, byte, "arith.shrsi")
            total = b.binary("arith.addi", total, b.binary("arith.muli", *factors))
        return total

    def finish(self, b: Builder, total: Value, chained: Value) -> Value:
        """Return the chain's end."""
        return chained
