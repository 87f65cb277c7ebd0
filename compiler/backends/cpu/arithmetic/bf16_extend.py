"""Products of bfloat16 weights extended to float32, by fma: for any processor. Rows are float32, or extended to it in scratch.

Where a processor has many vector registers, pairs are extended in them (`Bf16Extend`); where it has few and a slow L2, a block of k
of the panel is extended in scratch, once for all rows (`Bf16ExtendPanel`). Both give the bits of dot products (bf16_pairs.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llmos.compiler.backends.cpu.arithmetic.base import Operands, PanelBlock, Prefetch, RegisterArithmetic
from llmos.compiler.backends.cpu.arithmetic.bf16_pairs import extend_first, extend_second, load_pairs, over_pairs
from llmos.compiler.backends.cpu.arithmetic.f32 import OWN_ROWS, accumulate, even_block
from llmos.compiler.backends.cpu.arithmetic.register_tile import CACHE_LINE, Operand, Panel, Strided, TileShape
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.codegen.builder import Builder, Value
from llmos.compiler.ir.bindings import ir


class Bf16Extend(RegisterArithmetic):
    """The weight extended in registers: a shift or a mask, then one fma for each half of a pair."""

    k_per_word = 2
    prefetch = Prefetch.ROWS
    thread_rows = OWN_ROWS

    @classmethod
    def supports(cls, operands: Operands, target: CpuTarget) -> bool:
        """Return whether the weight is bfloat16."""
        return isinstance(operands.right, ir.BF16Type)

    @property
    def left_type(self) -> ir.Type:
        """Return float32."""
        return ir.F32Type.get()

    def accumulate(self, b: Builder, shape: TileShape, a: Operand, panel: Panel, k: Value, start: Sequence[Value]) -> list[Value]:
        """Emit the loop over pairs of k. `k`: a constant, and `a` dense along it."""
        num_k = b.known(k)
        assert isinstance(a, Strided) and num_k is not None
        return _accumulate(b, shape, a, panel, num_k, start)


class Bf16ExtendPanel(RegisterArithmetic):
    """A block of k of the weight extended in scratch, then multiplied as float32, the second k of a pair first."""

    k_per_word = 2
    thread_rows = OWN_ROWS

    @classmethod
    def supports(cls, operands: Operands, target: CpuTarget) -> bool:
        """Return whether the weight is bfloat16 and the target gains from panels in L1 (`near_bytes`)."""
        return isinstance(operands.right, ir.BF16Type) and target.near_bytes > 0

    @property
    def left_type(self) -> ir.Type:
        """Return float32."""
        return ir.F32Type.get()

    def k_block(self, k: int, most: int) -> int:
        """Return `even_block`: a weight is extended in blocks even where one is all of it."""
        return even_block(k, most)

    def scratch_bytes(self, k: int, width: int, k_block: int) -> int:
        """Return the bytes of one block, in float32."""
        return 4 * width * k_block

    def load_block(self, b: Builder, base: Value, k: Value, block: PanelBlock, scratch: Callable[[], Value]) -> Value:
        """Emit the block into scratch, as [num_k][width] of float32; a block further is requested from memory meanwhile."""
        part = scratch()
        source = b.address(base, b.mul(b.div(k, b.index(2)), b.index(block.width)), b.f32)
        _extend_panel(b, source, part, block)
        return part

    def accumulate(self, b: Builder, shape: TileShape, a: Operand, panel: Panel, k: Value, start: Sequence[Value]) -> list[Value]:
        """Emit the loop over a block that `load_block` has extended."""
        return accumulate(b, shape, a, panel, k, start, pairs=True)


def _accumulate(b: Builder, shape: TileShape, a: Strided, panel: Panel, k: int, start: Sequence[Value]) -> list[Value]:
    rows = [b.address(a.base, b.mul(b.index(r), a.row_stride), b.f32) if r else a.base for r in range(shape.rows)]

    def multiply(at: Value, vectors: Sequence[Value], sums: Sequence[Value]) -> list[Value]:
        made: list[Value] = []
        for r in range(shape.rows):
            scalar = b.splat(b.load(b.address(rows[r], at, b.f32), b.f32, 4), shape.lanes)
            made += [b.fma(scalar, vector, sums[r * shape.vectors + v]) for v, vector in enumerate(vectors)]
        return made

    def step(pair: Value, sums: Sequence[Value]) -> list[Value]:
        words = load_pairs(b, shape, panel, pair)
        at = b.mul(pair, b.index(2))
        made = multiply(b.add(at, b.index(1)), [extend_second(b, word) for word in words], sums)
        return multiply(at, [extend_first(b, word) for word in words], made)

    def last(sums: Sequence[Value]) -> list[Value]:
        words = load_pairs(b, shape, panel, b.index(k // 2))
        return multiply(b.index(k - 1), [extend_first(b, word) for word in words], sums)

    return over_pairs(b, k, start, step, last)


def _extend_panel(b: Builder, source: Value, target: Value, block: PanelBlock) -> None:
    """Rows of pairs of a panel as rows of float32, twice as many."""
    width, lanes, ahead = block.width, block.lanes, block.step // 2
    kind = b.vec(b.i32, lanes)
    align = min(CACHE_LINE, 4 * lanes)
    with b.loop(b.index(0), b.index(-(-block.num_k // 2)), b.index(1)) as loop:
        row = b.mul(loop.iv, b.index(width))
        read = b.address(source, row, b.i32)
        for column in range(0, width, CACHE_LINE // 4):
            b.prefetch(b.address(read, b.index(ahead * width + column), b.i32), level=2)
        write = b.address(target, b.mul(row, b.index(2)), b.f32)
        for column in range(0, width, lanes):
            words = b.load(b.address(read, b.index(column), b.i32), kind, align)
            b.store(extend_first(b, words), b.address(write, b.index(column), b.f32), align)
            b.store(extend_second(b, words), b.address(write, b.index(width + column), b.f32), align)
