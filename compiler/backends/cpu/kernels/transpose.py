"""Blocks of numbers transposed in vector registers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmos.compiler.codegen.builder import Builder, Value
from llmos.compiler.ir.bindings import ir


def transpose(b: Builder, rows: Sequence[Value]) -> list[Value]:
    """Vectors of n lanes, n of them (missing ones are taken as the last), transposed: lane i of vector j becomes lane j of vector i."""
    return _shuffled(b, rows, _transpose)


def interleave(b: Builder, rows: Sequence[Value]) -> list[Value]:
    """Some vectors of n lanes as as many that hold lane 0 of each in order, then lane 1 of each, and so on."""
    return _shuffled(b, rows, _interleave)


def _shuffled(b: Builder, rows: Sequence[Value], shuffle: Callable[[Builder, Sequence[Value]], list[Value]]) -> list[Value]:
    """LLVM would shuffle 16-bit floats in float32 and round by a call: they are shuffled as integers."""
    kind = rows[0].type
    if not isinstance(kind.element_type, (ir.F16Type, ir.BF16Type)):
        return shuffle(b, rows)
    bits = b.vec(ir.IntegerType.get_signless(16), kind.shape[0])
    return [b.op("arith.bitcast", [v], kind) for v in shuffle(b, [b.op("arith.bitcast", [v], bits) for v in rows])]


def _interleave(b: Builder, rows: Sequence[Value]) -> list[Value]:
    count, lanes = len(rows), rows[0].type.shape[0]
    made = []
    for first in range(0, count * lanes, lanes):
        places = [divmod(first + j, count) for j in range(lanes)]  # lane and row that each lane comes from
        vector, held = rows[places[0][1]], {places[0][1]}
        mask = [lane if row in held else 0 for lane, row in places]
        for row in dict.fromkeys(row for _, row in places[1:]):
            if row in held:
                continue
            mask = [lanes + lane if r == row else m for m, (lane, r) in zip(mask, places, strict=True)]
            vector, mask = _shuffle(b, [vector, rows[row]], mask), list(range(lanes))
            held.add(row)
        made.append(vector if len(held) > 1 else _shuffle(b, [vector, vector], mask))
    return made


def _transpose(b: Builder, rows: Sequence[Value]) -> list[Value]:
    lanes = rows[0].type.shape[0]
    current = [rows[min(i, len(rows) - 1)] for i in range(lanes)]
    step = 1
    while step < lanes:  # blocks of step x step are exchanged across the diagonal
        low = [(i if not i & step else i - step + lanes) for i in range(lanes)]
        high = [(i + step if not i & step else i + lanes) for i in range(lanes)]
        following = list(current)
        for i in range(lanes):
            if not i & step:
                pair = [current[i], current[i + step]]
                following[i], following[i + step] = (_shuffle(b, pair, mask) for mask in (low, high))
        current, step = following, step * 2
    return current


def _shuffle(b: Builder, pair: Sequence[Value], mask: Sequence[int]) -> Value:
    return b.op("vector.shuffle", pair, pair[0].type, mask=ir.DenseI64ArrayAttr.get(list(mask)))
