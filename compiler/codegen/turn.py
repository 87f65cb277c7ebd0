"""Square blocks of numbers turned round in vector registers."""

from __future__ import annotations

from collections.abc import Sequence

from llmos.compiler.codegen.builder import Builder, Value
from llmos.compiler.ir import ir


def transpose(b: Builder, rows: Sequence[Value]) -> list[Value]:
    """Vectors of n lanes, n of them (missing ones are taken as the last), turned round: lane i of vector j becomes lane j of vector i."""
    kind, lanes = rows[0].type, rows[0].type.shape[0]
    if isinstance(kind.element_type, (ir.F16Type, ir.BF16Type)):  # LLVM would shuffle them in float32 and round by a call
        bits = b.vec(ir.IntegerType.get_signless(16), lanes)
        return [b.op("arith.bitcast", [v], kind) for v in transpose(b, [b.op("arith.bitcast", [v], bits) for v in rows])]
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
