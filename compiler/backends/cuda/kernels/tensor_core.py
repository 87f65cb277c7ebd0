"""How tensor cores multiply: the element types in shared memory, the fragments that a lane holds, and the products of a step along k.

Fragments are those of PTX ISA, "Matrix Fragments for mma.m16n8k8, mma.m16n8k16 and mma.m16n8k32"; 32 bytes of a row in each. Sums are
float32, and int32 of bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from llmos.compiler.codegen.builder import Builder, Value
from llmos.compiler.ir.bindings import ir

ROWS, COLUMNS = 16, 8  # of what one instruction adds to
SUMS = 4  # of them a lane holds: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1) of lane 4g + t
TF32_BITS = -(1 << 13)  # of a float32 that tf32 keeps
ORDERED = 7  # as arith.cmpf numbers it


@dataclass(frozen=True)
class TensorCore(ABC):
    """depth: k of one instruction. element_bytes: in shared memory. padding: elements behind a row there, which keep lanes apart.
    tile_depth: k of a step."""

    depth: int
    element_bytes: int
    padding: int
    tile_depth: int = 32

    @property
    def total(self) -> ir.Type:
        """Return the type of a sum."""
        return ir.F32Type.get()

    @abstractmethod
    def element(self) -> ir.Type:
        """Return the element type in shared memory, of the width of what is multiplied."""

    @abstractmethod
    def multiply(self, b: Builder, left: Sequence[Value], right: Sequence[Value], sums: Sequence[Value]) -> list[Value]:
        """Emit sums + left * right. left: 4 words; right: 2; sums: 4 of them."""

    def product(self, b: Builder, name: str, words: Sequence[Value], sums: Sequence[Value]) -> list[Value]:
        """Emit one instruction by its intrinsic. Returns the 4 sums."""
        kind = ir.Type.parse(f"!llvm.struct<({', '.join([str(self.total)] * SUMS)})>")
        made = b.intrinsic(f"llvm.nvvm.mma.{name}", [*words, *sums], kind)
        return [b.op("llvm.extractvalue", [made], self.total, position=ir.DenseI64ArrayAttr.get([i])) for i in range(SUMS)]


@dataclass(frozen=True)
class Bf16(TensorCore):
    """bfloat16 by bfloat16."""

    depth: int = 16
    element_bytes: int = 2
    padding: int = 8

    def element(self) -> ir.Type:
        """Return i16: bits of bfloat16."""
        return ir.IntegerType.get_signless(16)

    def multiply(self, b: Builder, left: Sequence[Value], right: Sequence[Value], sums: Sequence[Value]) -> list[Value]:
        """Emit sums + left * right."""
        return self.product(b, "m16n8k16.row.col.bf16", [*left, *right], sums)


@dataclass(frozen=True)
class Bytes(TensorCore):
    """Unsigned bytes by signed bytes, summed in int32: exact, as long as the sum fits."""

    depth: int = 32
    element_bytes: int = 1
    padding: int = 16
    tile_depth: int = 64

    @property
    def total(self) -> ir.Type:
        """Return int32."""
        return ir.IntegerType.get_signless(32)

    def element(self) -> ir.Type:
        """Return i8."""
        return ir.IntegerType.get_signless(8)

    def multiply(self, b: Builder, left: Sequence[Value], right: Sequence[Value], sums: Sequence[Value]) -> list[Value]:
        """Emit sums + left * right."""
        return self.product(b, "m16n8k32.row.col.u8.s8", [*left, *right], sums)


@dataclass(frozen=True)
class Tf32x3(TensorCore):
    """float32 by float32, each as the sum of two tf32: three products of the four, so that about 21 bits count.

    The small ones come first. What is infinite has no rest.
    """

    depth: int = 8
    element_bytes: int = 4
    padding: int = 4

    def element(self) -> ir.Type:
        """Return float32."""
        return ir.F32Type.get()

    def multiply(self, b: Builder, left: Sequence[Value], right: Sequence[Value], sums: Sequence[Value]) -> list[Value]:
        """Emit sums + left * right."""
        (left_high, left_factor, left_rest), (right_high, right_factor, right_rest) = self._split(b, left), self._split(b, right)
        for words in ([*left_rest, *right_factor], [*left_factor, *right_rest], [*left_high, *right_high]):
            sums = self.product(b, "m16n8k8.row.col.tf32", words, sums)
        return list(sums)

    def _split(self, b: Builder, words: Sequence[Value]) -> tuple[list[Value], list[Value], list[Value]]:
        """The high part of each number, the same as a factor of the other side's rests, and its own rest. Infinity times a rest of 0 would
        be NaN, so what has no finite rest counts once."""
        parts = [self._parts(b, word) for word in words]
        high, factor, rest = ([part[i] for part in parts] for i in range(3))
        return high, factor, rest

    def _parts(self, b: Builder, word: Value) -> tuple[Value, Value, Value]:
        high = b.binary("arith.andi", word, b.const(b.i32, TF32_BITS))
        number, top = (b.op("arith.bitcast", [each], b.f32) for each in (word, high))
        rest = b.binary("arith.subf", number, top)
        finite = b.op("arith.cmpf", [rest, rest], b.i1, predicate=ir.IntegerAttr.get(b.i64, ORDERED))
        zero = b.const(b.i32, 0)
        return high, b.select(finite, high, zero), b.select(finite, b.op("arith.bitcast", [rest], b.i32), zero)
