"""The register tile over pairs of bfloat16 along k, sums in float32: out[rows, columns] += A[rows, k] * B[k, columns].

B is a panel of pairs [k/2][columns][2], zero-padded past an odd k. Each output element is one chain of multiply-adds over the pairs
in order, the second of a pair before the first (as VDPBF16PS does), whatever the tile. Where the processor has that instruction A is
bfloat16 too; elsewhere A comes in float32, B is widened in registers, and each multiply-add is an fma.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum, auto

from llmos.compiler.backends.cpu.arithmetic.register_tile import CACHE_LINE, Panel, Strided, TileShape
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.codegen.builder import Builder, Value
from llmos.compiler.codegen.sums import BLOCK, add_blocks, nothing
from llmos.compiler.ir.bindings import ir

HIGH_HALF = -(1 << 16)  # of a 32-bit word: where a bfloat16 lies in the float32 of its value


class PairArithmetic(Enum):
    """How pairs of bfloat16 are multiplied; the same panels serve all. WIDENED and DOTS give the same bits."""

    WIDENED = auto()  # in float32 registers, by fma: any processor
    DOTS = auto()  # VDPBF16PS
    TILES = auto()  # AMX (backends/cpu/arithmetic/amx.py)

    @classmethod
    def of(cls, target: CpuTarget) -> PairArithmetic:
        """The best of a target. Processors with AMX have slow dot products: half the multiply-adds a cycle of float32."""
        if target.has("amx-bf16"):
            return cls.TILES
        return cls.DOTS if target.has("avx512bf16") else cls.WIDENED


def widen_panel(b: Builder, source: Value, target: Value, num_pairs: int, width: int, lanes: int, ahead: int) -> None:
    """Rows of pairs of a panel as rows of float32, twice as many; what lies `ahead` rows of pairs further is asked for meanwhile."""
    kind = b.vec(b.i32, lanes)
    align = min(CACHE_LINE, 4 * lanes)
    with b.loop(b.index(0), b.index(num_pairs), b.index(1)) as loop:
        row = b.mul(loop.iv, b.index(width))
        read = b.address(source, row, b.i32)
        for column in range(0, width, CACHE_LINE // 4):
            b.prefetch(b.address(read, b.index(ahead * width + column), b.i32), level=2)
        write = b.address(target, b.mul(row, b.index(2)), b.f32)
        for column in range(0, width, lanes):
            words = b.load(b.address(read, b.index(column), b.i32), kind, align)
            b.store(_first(b, words), b.address(write, b.index(column), b.f32), align)
            b.store(_second(b, words), b.address(write, b.index(width + column), b.f32), align)


def accumulate_dots(b: Builder, shape: TileShape, a: Strided, panel: Panel, k: int, start: Sequence[Value]) -> list[Value]:
    """The k loop of a processor with a dot product of pairs. `a`: bfloat16, dense along k. `start`: rows * vectors accumulators."""
    i16 = ir.IntegerType.get_signless(16)
    rows = [b.address(a.base, b.mul(b.index(r), a.row_stride), i16) if r else a.base for r in range(shape.rows)]

    def step(pair: Value, word: Callable[[Value], Value], sums: Sequence[Value]) -> list[Value]:
        vectors = [_as_pairs(b, vector) for vector in _vectors(b, shape, panel, pair)]
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

    return _over_pairs(b, k, start, lambda pair, sums: step(pair, lambda address: b.load(address, b.i32, 2), sums), last)


def accumulate_widened(b: Builder, shape: TileShape, a: Strided, panel: Panel, k: int, start: Sequence[Value]) -> list[Value]:
    """The k loop of any processor. `a`: float32 (of bfloat16 values), dense along k."""
    rows = [b.address(a.base, b.mul(b.index(r), a.row_stride), b.f32) if r else a.base for r in range(shape.rows)]

    def multiply(at: Value, vectors: Sequence[Value], sums: Sequence[Value]) -> list[Value]:
        made: list[Value] = []
        for r in range(shape.rows):
            scalar = b.splat(b.load(b.address(rows[r], at, b.f32), b.f32, 4), shape.lanes)
            made += [b.fma(scalar, vector, sums[r * shape.vectors + v]) for v, vector in enumerate(vectors)]
        return made

    def step(pair: Value, sums: Sequence[Value]) -> list[Value]:
        words = _vectors(b, shape, panel, pair)
        at = b.mul(pair, b.index(2))
        made = multiply(b.add(at, b.index(1)), [_second(b, word) for word in words], sums)
        return multiply(at, [_first(b, word) for word in words], made)

    def last(sums: Sequence[Value]) -> list[Value]:
        words = _vectors(b, shape, panel, b.index(k // 2))
        return multiply(b.index(k - 1), [_first(b, word) for word in words], sums)

    return _over_pairs(b, k, start, step, last)


def _over_pairs(
    b: Builder, k: int, start: Sequence[Value], step: Callable[[Value, Sequence[Value]], list[Value]], last: Callable[..., list[Value]]
) -> list[Value]:
    """`step` for each pair of k, in blocks where there are many, then `last` for an odd one."""

    def run(low: Value, high: Value, sums: Sequence[Value]) -> list[Value]:
        with b.loop(low, high, b.index(1), list(sums)) as loop:
            loop.yield_(step(loop.iv, loop.args))
        return loop.results

    def ended(sums: list[Value]) -> list[Value]:
        return last(sums) if k % 2 else sums

    if k <= BLOCK:
        return ended(run(b.index(0), b.index(k // 2), start))
    whole = (k - 1) // BLOCK * BLOCK // 2
    rest = [nothing(b, value) for value in start]
    with b.loop(b.index(0), b.index(whole), b.index(BLOCK // 2), [*start, *rest]) as loop:
        totals, lost = loop.args[: len(start)], loop.args[len(start) :]
        sums = run(loop.iv, b.add(loop.iv, b.index(BLOCK // 2)), rest)
        loop.yield_([value for part in add_blocks(b, totals, lost, sums) for value in part])
    totals, lost = loop.results[: len(start)], loop.results[len(start) :]
    return add_blocks(b, totals, lost, ended(run(b.index(whole), b.index(k // 2), rest)))[0]


def _vectors(b: Builder, shape: TileShape, panel: Panel, pair: Value) -> list[Value]:
    """The pairs of one step, a 32-bit word each."""
    kind = b.vec(b.i32, shape.lanes)
    at = b.address(panel.base, b.mul(pair, panel.stride), b.i32)
    made = [b.load(b.address(at, b.index(v * shape.lanes), b.i32) if v else at, kind, panel.align) for v in range(shape.vectors)]
    if panel.prefetch:
        ahead = b.address(at, b.mul(b.index(panel.prefetch), panel.stride), b.i32)
        for line in range(0, shape.columns * 4, CACHE_LINE):
            b.prefetch(b.address(ahead, b.index(line // 4), b.i32))
    return made


def _as_pairs(b: Builder, words: Value) -> Value:
    return b.op("vector.bitcast", [words], b.vec(ir.BF16Type.get(), 2 * words.type.shape[0]))


def _first(b: Builder, words: Value) -> Value:
    """The first of each pair in float32."""
    lanes = words.type.shape[0]
    return b.op("arith.bitcast", [b.binary("arith.shli", words, b.neutral(b.i32, 16, lanes))], b.vec(b.f32, lanes))


def _second(b: Builder, words: Value) -> Value:
    lanes = words.type.shape[0]
    return b.op("arith.bitcast", [b.binary("arith.andi", words, b.neutral(b.i32, HIGH_HALF, lanes))], b.vec(b.f32, lanes))
