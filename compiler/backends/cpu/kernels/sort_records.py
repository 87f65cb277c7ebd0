"""Keys of a sort in scratch, each with the place that it came from.

A key of up to 32 bits and its place share one word of 64 bits, the key above, so that comparing words compares keys, then places. Keys of
64 bits lie in an array of their own, with an array of places behind it. An array is `Builder.lanes` words longer than the row, so that
whole vectors are read and written at its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmos.compiler.codegen.builder import Builder, Value
from llmos.compiler.codegen.coordinates import Lane

PLACE_BITS = 32
PLACE_MASK = (1 << PLACE_BITS) - 1
LARGEST = -1  # as an unsigned word


@dataclass(frozen=True)
class Records:
    """`array_bytes`: of one array of words. `wide`: keys of 64 bits."""

    b: Builder
    array_bytes: Value
    wide: bool

    def load(self, plane: Value, at: Value) -> list[Value]:
        """Emit the read of the record at a place (i64): its words."""
        return [self.b.load(self._word(array, at), self.b.i64, 8) for array in self._arrays(plane)]

    def store(self, plane: Value, at: Value, record: Sequence[Value]) -> None:
        """Emit the write of a record's words at a place (i64)."""
        for array, word in zip(self._arrays(plane), record, strict=True):
            self.b.store(word, self._word(array, at), 8)

    def key(self, record: Sequence[Value]) -> Value:
        """Emit the key of a record, as an unsigned i64."""
        return record[0] if self.wide else self.b.binary("arith.shrui", record[0], self.b.index(PLACE_BITS))

    def store_lanes(self, plane: Value, lane: Lane, keys: Value, places: Value) -> None:
        """Emit the write of a vector of keys (unsigned i64) and their places (i64)."""
        b = self.b
        above = b.splat_constant(b.i64, PLACE_BITS)
        words = [keys, places] if self.wide else [b.binary("arith.ori", b.binary("arith.shli", keys, above), places)]
        for array, word in zip(self._arrays(plane), words, strict=True):
            b.store(word, self._word(array, lane.base), 8)

    def places(self, plane: Value, at: Value) -> Value:
        """Emit the read of a vector of places (i64), from the record at `at` on."""
        b = self.b
        words = b.load(self._word(self._arrays(plane)[-1], at), b.vec(b.i64), 8)
        return words if self.wide else b.binary("arith.andi", words, b.splat_constant(b.i64, PLACE_MASK))

    def pad(self, plane: Value, count: Value) -> None:
        """Emit a vector of the largest keys behind the last of `count` records."""
        self.b.store(self.b.splat_constant(self.b.i64, LARGEST), self._word(plane, count), 8)

    def come_before(self, plane: Value, at: Value, record: Sequence[Value], number: Value) -> Value:
        """Emit which of the records from `at` on come before a record in order, as a mask. `number`: its place in the plane."""
        b = self.b
        keys = b.load(self._word(plane, at), b.vec(b.i64), 8)
        less = b.compare("ult", keys, record[0])
        if not self.wide:
            return less
        earlier = b.compare("slt", b.binary("arith.addi", b.iota(), b.splat(at)), number)
        return b.binary("arith.ori", less, b.binary("arith.andi", b.compare("eq", keys, record[0]), earlier))

    def _arrays(self, plane: Value) -> list[Value]:
        return [plane, self.b.address(plane, self.array_bytes, self.b.i8)] if self.wide else [plane]

    def _word(self, array: Value, at: Value) -> Value:
        return self.b.address(array, at, self.b.i64)
