"""Panels of pairs of bfloat16 along k, [k/2][columns][2], zero-padded past an odd k: their loads, and the loop over pairs.

Each output element is one chain of multiply-adds over the pairs in order, the second of a pair before the first (as VDPBF16PS does),
whatever the tile: by dot products and in float32 it has the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmos.compiler.backends.cpu.arithmetic.register_tile import CACHE_LINE, Panel, TileShape
from llmos.compiler.codegen.builder import Builder, Value
from llmos.compiler.codegen.sums import BLOCK, add_blocks, nothing

HIGH_HALF = -(1 << 16)  # of a 32-bit word: where a bfloat16 lies in the float32 of its value


def over_pairs(
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


def load_pairs(b: Builder, shape: TileShape, panel: Panel, pair: Value) -> list[Value]:
    """Emit the load of the pairs of one step, a 32-bit word each: `shape.vectors` vectors."""
    kind = b.vec(b.i32, shape.lanes)
    at = b.address(panel.base, b.mul(pair, panel.stride), b.i32)
    made = [b.load(b.address(at, b.index(v * shape.lanes), b.i32) if v else at, kind, panel.align) for v in range(shape.vectors)]
    if panel.prefetch:
        ahead = b.address(at, b.mul(b.index(panel.prefetch), panel.stride), b.i32)
        for line in range(0, shape.columns * 4, CACHE_LINE):
            b.prefetch(b.address(ahead, b.index(line // 4), b.i32))
    return made


def extend_first(b: Builder, words: Value) -> Value:
    """Emit the first of each pair, in float32."""
    lanes = words.type.shape[0]
    return b.op("arith.bitcast", [b.binary("arith.shli", words, b.splat_constant(b.i32, 16, lanes))], b.vec(b.f32, lanes))


def extend_second(b: Builder, words: Value) -> Value:
    """Emit the second of each pair, in float32."""
    lanes = words.type.shape[0]
    return b.op("arith.bitcast", [b.binary("arith.andi", words, b.splat_constant(b.i32, HIGH_HALF, lanes))], b.vec(b.f32, lanes))
