"""Products of float32 by fma: out[rows, columns] (+)= A[rows, k] * B[k, columns], one chain over k in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmos.compiler.backends.cpu.arithmetic.base import Operands, Prefetch, RegisterArithmetic
from llmos.compiler.backends.cpu.arithmetic.register_tile import CACHE_LINE, UNROLL, Operand, Panel, TileShape
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.codegen.builder import Builder, Value
from llmos.compiler.ir.bindings import ir

OWN_ROWS = 64  # of float32 that are worth a thread's reading all panels for: what it made of them for the last dispatch is in its cache


class Float32(RegisterArithmetic):
    """Rows where they lie, windows of images among them; panels packed in memory, or copied to scratch by a tile."""

    k_per_word = 1
    reads_windows = True
    prefetch = Prefetch.NEXT_PANEL
    thread_rows = OWN_ROWS

    @classmethod
    def supports(cls, operands: Operands, target: CpuTarget) -> bool:
        """Return whether the right side is float32."""
        return isinstance(operands.right, ir.F32Type)

    @property
    def left_type(self) -> ir.Type:
        """Return float32."""
        return ir.F32Type.get()

    def k_block(self, k: int, most: int) -> int:
        """Return `even_block` where that makes more than one block, else 0: sums wait in scratch between them."""
        return even_block(k, most) if most and k > most else 0

    def accumulate(self, b: Builder, shape: TileShape, a: Operand, panel: Panel, k: Value, start: Sequence[Value]) -> list[Value]:
        """Emit the loop over k, one fma for each row and vector of the tile."""
        return accumulate(b, shape, a, panel, k, start)


def even_block(k: int, most: int) -> int:
    """Number of k of each block, where blocks have at most about `most` (0: any number), all as many, in multiples of UNROLL."""
    blocks = -(-k // most) if most else 1
    return -(-k // (blocks * UNROLL)) * UNROLL


def accumulate(
    b: Builder, shape: TileShape, a: Operand, panel: Panel, depth: Value, start: Sequence[Value], pairs: bool = False
) -> list[Value]:
    """The k loop. `start`: rows * vectors accumulators, row by row. `pairs`: the second of two k comes first; `depth` is known then."""

    def step(rows: Sequence[Value], first: Value, k: Value, sums: Sequence[Value]) -> list[Value]:
        at = b.mul(k, a.k_stride)
        scalars = (b.splat(b.load(b.address(row, at, b.f32), b.f32, 4), shape.lanes) for row in rows)
        vectors = _vectors(b, shape, panel, b.add(first, k))
        made = list(sums)

        def add(r: int, scalar: Value, v: int, vector: Value) -> None:
            made[r * shape.vectors + v] = b.fma(scalar, vector, sums[r * shape.vectors + v])

        # The fewer of the two are all held in registers, the others loaded one by one.
        if shape.rows < shape.vectors:
            held = list(enumerate(scalars))
            for v, vector in enumerate(vectors):
                for r, scalar in held:
                    add(r, scalar, v, vector)
        else:
            held = list(enumerate(vectors))
            for r, scalar in enumerate(scalars):
                for v, vector in held:
                    add(r, scalar, v, vector)
        return made

    def run(rows: Sequence[Value], first: Value, count: Value, sums: Sequence[Value]) -> list[Value]:
        known, together = b.known(count), b.index(UNROLL)
        whole = b.mul(b.div(count, together), together) if known is None else b.index(known // UNROLL * UNROLL)
        with b.loop(b.index(0), whole, together, list(sums)) as loop:
            made = loop.args
            _prefetch_next(b, panel, b.add(first, loop.iv))
            for k in _order(UNROLL, pairs):
                made = step(rows, first, b.add(loop.iv, b.index(k)), made)
            loop.yield_(made)
        if known is not None and known % UNROLL == 0:
            return loop.results
        if known is not None and pairs:
            made = loop.results
            for k in _order(known % UNROLL, pairs):
                made = step(rows, first, b.add(whole, b.index(k)), made)
            return made
        with b.loop(whole, count, b.index(1), loop.results) as rest:
            rest.yield_(step(rows, first, rest.iv, rest.args))
        return rest.results

    return a.sweep(b, shape.rows, depth, start, run)


def _order(count: int, pairs: bool) -> list[int]:
    """In which order a few neighboring k are added."""
    return [k ^ 1 if pairs and k ^ 1 < count else k for k in range(count)]


def _vectors(b: Builder, shape: TileShape, panel: Panel, k: Value) -> Iterator[Value]:
    """Row k of the panel, each vector loaded when it is asked for, and requests for a later row."""
    kind = b.vec(b.f32, shape.lanes)
    at = b.address(panel.base, b.mul(k, panel.stride), b.f32)
    if panel.prefetch:
        ahead = b.address(at, b.mul(b.index(panel.prefetch), panel.stride), b.f32)
        for line in range(0, shape.columns * 4, CACHE_LINE):
            b.prefetch(b.address(ahead, b.index(line // 4), b.f32))
    for v in range(shape.vectors):
        yield b.load(b.address(at, b.index(v * shape.lanes), b.f32) if v else at, kind, panel.align)


def _prefetch_next(b: Builder, panel: Panel, k: Value) -> None:
    """Ask for the lines of what is read later that belong to UNROLL steps."""
    if panel.next_panel is None:
        return
    at = b.address(panel.next_panel, b.mul(k, b.index(panel.lines * CACHE_LINE // 4 // UNROLL)), b.f32)
    for line in range(panel.lines):
        b.prefetch(b.address(at, b.index(line * CACHE_LINE // 4), b.f32), level=2)
