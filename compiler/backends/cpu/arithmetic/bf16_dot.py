"""Products of bfloat16 by dot products of pairs along k (VDPBF16PS), sums in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
        """Return whether both sides are bfloat16 and the target has AVX512_BF16, but no AMX.

        Processors with AMX have slow dot products: half the multiply-adds a cycle of float32.
        """
        both = all(isinstance(each, ir.BF16Type) for each in (operands.left, operands.right))
        return both and target.has("avx512bf16") and not target.has("amx-bf16")

    @property
    def left_type(self) -> ir.Type:
        """Return bfloat16."""
        return ir.BF16Type.get()

    def accumulate(self, b: Builder, shape: TileShape, a: Operand, panel: Panel, k: Value, start: Sequence[Value]) -> list[Value]:
        """Emit the loop over pairs of k. `k`: a constant, and `a` dense along it."""
        num_k = b.known(k)
        assert isinstance(a, Strided) and num_k is not None
        return _accumulate(b, shape, a, panel, num_k, start)


def _accumulate(b: Builder, shape: TileShape, a: Strided, panel: Panel, k: int, start: Sequence[Value]) -> list[Value]:
    i16 = ir.IntegerType.get_signless(16)
    rows = [b.address(a.base, b.mul(b.index(r), a.row_stride), i16) if r else a.base for r in range(shape.rows)]

    def step(pair: Value, word: Callable[[Value], Value], sums: Sequence[Value]) -> list[Value]:
        vectors = [_as_pairs(b, vector) for vector in load_pairs(b, shape, panel, pair)]
        at = b.mul(pair, b.index(2))
        made: list[Value] = []
        for r in range(shape.rows):
            left = _as_pairs(b, b.splat(word(b.address(rows[r], at, i16)), shape.lanes))
            for v, vector in enumerate(vectors):
                total = sums[r * shape.vectors + v]
                made.append(b.op("x86.avx512.dot", [total, left, vector], total.type))
        return made

    def last(sums: Sequence[Value]) -> list[Value]:
        return step(b.index(k // 2), lambda address: b.op("arith.extui", [b.load(address, i16, 2)], b.i32), sums)

    return over_pairs(b, k, start, lambda pair, sums: step(pair, lambda address: b.load(address, b.i32, 2), sums), last)


def _as_pairs(b: Builder, words: Value) -> Value:
    return b.op("vector.bitcast", [words], b.vec(ir.BF16Type.get(), 2 * words.type.shape[0]))
