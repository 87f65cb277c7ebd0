"""Products of bfloat16 by dot products of pairs along k (VDPBF16PS), sums in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmos.compiler.backends.cpu.arithmetic.base import Operands, Prefetch, RegisterArithmetic
from llmos.compiler.backends.cpu.arithmetic.bf16_pairs import load_pairs, over_pairs
from llmos.compiler.backends.cpu.arithmetic.register_tile import Operand, Panel, Strided, TileShape
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.codegen.builder import Builder, Value
from llmos.compiler.ir.bindings import ir


class Bf16Dot(RegisterArithmetic):
    """Rows and panels of bfloat16 where they lie, a pair of a row broadcast."""

    k_per_word = 2
    prefetch = Prefetch.ROWS

    @classmethod
    def supports(cls, operands: Operands, target: CpuTarget) -> bool:
        """Return whether both sides are bfloat16 and the target has `has_dot_products`."""
        return has_dot_products(target) and all(isinstance(each, ir.BF16Type) for each in (operands.left, operands.right))

    @property
    def left_type(self) -> ir.Type:
        """Return bfloat16."""
        return ir.BF16Type.get()

    def accumulate(self, b: Builder, shape: TileShape, a: Operand, panel: Panel, k: Value, start: Sequence[Value]) -> list[Value]:
        """Emit the loop over pairs of k. `k`: a constant, and `a` dense along it."""
        num_k = b.known(k)
        assert isinstance(a, Strided) and num_k is not None
        return _accumulate(b, shape, a, panel, num_k, start)


def has_dot_products(target: CpuTarget) -> bool:
    """Return whether the target has AVX512_BF16, but no AMX.

    Processors with AMX have slow dot products: half the multiply-adds a cycle of float32.
    """
    return target.has("avx512bf16") and not target.has("amx-bf16")


def dot_pairs(b: Builder, shape: TileShape, a: Strided, panel: Panel, pairs: Value, start: Sequence[Value]) -> list[Value]:
    """Emit the loop over `pairs` whole pairs of k. `a`: dense along k, 2 * pairs elements a row."""
    step = _Step(b, shape, a, panel)
    with b.loop(b.index(0), pairs, b.index(1), list(start)) as loop:
        loop.yield_(step.of_pair(loop.iv, loop.args))
    return loop.results


def _accumulate(b: Builder, shape: TileShape, a: Strided, panel: Panel, k: int, start: Sequence[Value]) -> list[Value]:
    step = _Step(b, shape, a, panel)
    return over_pairs(b, k, start, step.of_pair, lambda sums: step.of_first(b.index(k // 2), sums))


@dataclass(frozen=True)
class _Step:
    """One pair of k of a tile."""

    b: Builder
    shape: TileShape
    a: Strided
    panel: Panel

    def of_pair(self, pair: Value, sums: Sequence[Value]) -> list[Value]:
        return self._multiplied(pair, lambda address: self.b.load(address, self.b.i32, 2), sums)

    def of_first(self, pair: Value, sums: Sequence[Value]) -> list[Value]:
        """Of the last pair of an odd k: nothing behind its first element is read."""
        b, i16 = self.b, ir.IntegerType.get_signless(16)
        return self._multiplied(pair, lambda address: b.op("arith.extui", [b.load(address, i16, 2)], b.i32), sums)

    def _multiplied(self, pair: Value, word: Callable[[Value], Value], sums: Sequence[Value]) -> list[Value]:
        b, shape, i16 = self.b, self.shape, ir.IntegerType.get_signless(16)
        vectors = [_as_pairs(b, vector) for vector in load_pairs(b, shape, self.panel, pair)]
        at = b.mul(pair, b.index(2))
        made: list[Value] = []
        for r in range(shape.rows):
            row = b.address(self.a.base, b.mul(b.index(r), self.a.row_stride), i16) if r else self.a.base
            left = _as_pairs(b, b.splat(word(b.address(row, at, i16)), shape.lanes))
            for v, vector in enumerate(vectors):
                total = sums[r * shape.vectors + v]
                made.append(b.op("x86.avx512.dot", [total, left, vector], total.type))
        return made


def _as_pairs(b: Builder, words: Value) -> Value:
    return b.op("vector.bitcast", [words], b.vec(ir.BF16Type.get(), 2 * words.type.shape[0]))
