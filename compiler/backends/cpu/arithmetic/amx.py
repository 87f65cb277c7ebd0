"""The matrix tiles of AMX: C[16, 16] += A[16, k] * B[k, 16] in one instruction; bfloat16 with sums in float32, 32 k of it, or unsigned by
signed bytes with sums in 32 bits, 64 k.

A is read in place, B from a panel of words of two or four k (backends/cpu/packing.py), whose layout is that of an AMX operand. The order
of additions depends on k alone. LLVM allots the tile registers and configures them, each with one shape all through a kernel: so all tiles
have 16 rows, and fewer rows are copied to scratch first (`copy_rows`), where what follows them may hold anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmos.compiler.backends.cpu.arithmetic.base import MatrixArithmetic, Operands
from llmos.compiler.backends.cpu.arithmetic.int8 import K_PER_WORD, are_bytes
from llmos.compiler.backends.cpu.arithmetic.register_tile import CACHE_LINE, Panel, Strided
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.codegen.builder import Builder, Value
from llmos.compiler.ir.bindings import ir

TILE_ROWS = 16
TILE_COLUMNS = 16
ROW_BYTES = 64
REGISTERS = 8
BLOCK_TILES = 2  # tiles of rows that share what is loaded of a panel
STEP_ROWS = ROW_BYTES // 4  # rows of words of a panel that one step of k takes


@dataclass(frozen=True)
class TileProduct:
    """An instruction that multiplies tiles. element_bytes: of what it multiplies, on both sides."""

    instruction: str
    element_bytes: int

    @property
    def depth(self) -> int:
        """Number of k of one instruction."""
        return ROW_BYTES // self.element_bytes


BF16 = TileProduct("tdpbf16ps", 2)
INT8 = TileProduct("tdpbusd", 1)


class MatrixTiles(MatrixArithmetic):
    """Rows and panels where they lie; of k a multiple of what one instruction takes."""

    product: TileProduct
    tile_rows = TILE_ROWS
    row_tiles = (BLOCK_TILES, 1)
    words_per_step = STEP_ROWS

    def scratch_bytes(self, k: int, width: int, k_block: int) -> int:
        """Return the bytes that `copy_rows` needs."""
        return TILE_ROWS * (k + self.product.depth) * self.product.element_bytes

    def copy_rows(self, b: Builder, a: Strided, count: Value, k: int, target: Value) -> Strided:
        """Emit the copy of `count` rows of k elements to scratch of `scratch_bytes`, one instruction's k more apart."""
        words, depth = b.vec(b.i32, ROW_BYTES // 4), self.product.depth
        stride, element = k + depth, ir.IntegerType.get_signless(8 * self.product.element_bytes)
        with b.loop(b.index(0), count, b.index(1)) as rows, b.loop(b.index(0), b.index(k), b.index(depth)) as loop:
            source = b.address(a.base, b.add(b.mul(rows.iv, a.row_stride), loop.iv), element)
            place = b.address(target, b.add(b.mul(rows.iv, b.index(stride)), loop.iv), element)
            b.store(b.load(source, words, self.product.element_bytes), place, ROW_BYTES)
        return Strided(target, b.index(stride), b.index(1))

    def multiply(self, b: Builder, a: Sequence[Strided], panel: Panel, columns: int, k: int, out: Value, out_stride: int) -> None:
        """Emit `multiply_tiles` of one or two tiles of rows."""
        multiply_tiles(b, a, panel, columns, k, out, out_stride, product=self.product)


class Bf16Tiles(MatrixTiles):
    """Products of bfloat16. Even and odd k of 32 are added apart."""

    product = BF16
    k_per_word = 2

    @classmethod
    def supports(cls, operands: Operands, target: CpuTarget) -> bool:
        """Return whether both sides are bfloat16, k is a multiple of 32 and the target has AMX."""
        both = all(isinstance(each, ir.BF16Type) for each in (operands.left, operands.right))
        return both and has_matrix_tiles(target) and operands.k is not None and operands.k % BF16.depth == 0

    @property
    def left_type(self) -> ir.Type:
        """Return bfloat16."""
        return ir.BF16Type.get()


class Int8Tiles(MatrixTiles):
    """Products of bytes, exact."""

    product = INT8
    k_per_word = K_PER_WORD
    sums_are_exact = True

    @classmethod
    def supports(cls, operands: Operands, target: CpuTarget) -> bool:
        """Return whether both sides are bytes, k is a multiple of 64 and the target has AMX for them."""
        return are_bytes(operands) and target.has("amx-int8") and operands.k is not None and operands.k % INT8.depth == 0

    @property
    def left_type(self) -> ir.Type:
        """Return a byte, unsigned on the left."""
        return ir.IntegerType.get_signless(8)

    @property
    def accumulator_type(self) -> ir.Type:
        """Return i32."""
        return ir.IntegerType.get_signless(32)


def has_matrix_tiles(target: CpuTarget) -> bool:
    """Whether kernels for a target may multiply bfloat16 by `multiply_tiles`."""
    return target.has("amx-bf16")


def multiply_tiles(
    b: Builder,
    a: Sequence[Strided],
    panel: Panel,
    columns: int,
    k: int,
    out: Value,
    out_stride: int,
    onto: bool = False,
    product: TileProduct = BF16,
) -> None:
    """out[16 * len(a), columns] = A * B, or += with `onto`. `a`: 16 rows each, one or two; `k`: a multiple of product.depth.

    out_stride: elements of 32 bits between rows of `out`.
    """
    tiles = -(-columns // TILE_COLUMNS)
    most = next(count for count in (4, 3, 2, 1) if len(a) * count + 2 <= REGISTERS and (tiles % count == 0 or tiles > 4))
    for first in range(0, tiles, most):
        part = Panel(
            b.address(panel.base, b.index(first * TILE_COLUMNS), b.i32),
            panel.stride,
            panel.align,
            next_panel=panel.next_panel if first == 0 else None,
            lines=panel.lines,
        )
        count = min(most, tiles - first)
        place = b.address(out, b.index(first * TILE_COLUMNS), b.f32)
        _multiply_block(b, a, part, (count, k), (place, out_stride), onto, product)


def dot_tiles(b: Builder, a: Strided, right: Value, k: int, out: Value, product: TileProduct) -> None:
    """out[16, 16] = A * B of a few k, a multiple of product.depth, unrolled. right: words of B, 16 columns a row; out: dense."""
    size, line = _shape(b), b.index(ROW_BYTES)
    element = ir.IntegerType.get_signless(8 * product.element_bytes)
    stride = b.mul(a.row_stride, b.index(product.element_bytes))
    total = _intrinsic(b, "tilezero", size)
    for step in range(k // product.depth):
        left = _intrinsic(b, "tileloadd64", [*size, b.address(a.base, b.index(step * product.depth), element), stride])
        words = _intrinsic(b, "tileloadd64", [*size, b.address(right, b.index(step * STEP_ROWS * TILE_COLUMNS), b.i32), line])
        total = _intrinsic(b, product.instruction, [*size, size[1], total, left, words])
    _intrinsic(b, "tilestored64", [*size, out, line, total], has_result=False)


def _multiply_block(
    b: Builder,
    a: Sequence[Strided],
    panel: Panel,
    extents: tuple[int, int],
    destination: tuple[Value, int],
    onto: bool,
    product: TileProduct,
) -> None:
    """All of k for len(a) x tiles accumulators, which the registers hold beside one tile of either side.

    extents: tiles and k; destination: where the sums go, and elements between their rows.
    """
    (tiles, k), (out, out_stride) = extents, destination
    element, size = ir.IntegerType.get_signless(8 * product.element_bytes), _shape(b)
    strides = [b.mul(rows.row_stride, b.index(product.element_bytes)) for rows in a]
    panel_stride = b.mul(panel.stride, b.index(4))
    stride = b.index(out_stride * 4)
    places = [
        b.address(out, b.index(r * TILE_ROWS * out_stride + tile * TILE_COLUMNS), b.f32) for r in range(len(a)) for tile in range(tiles)
    ]
    start = [_intrinsic(b, "tileloadd64", [*size, at, stride]) if onto else _intrinsic(b, "tilezero", size) for at in places]
    with b.loop(b.index(0), b.index(k // product.depth), b.index(1), start) as loop:
        _prefetch_next(b, panel, loop.iv)
        right = b.address(panel.base, b.mul(loop.iv, b.mul(panel.stride, b.index(STEP_ROWS))), b.i32)
        made, order = list(loop.args), list(range(tiles))
        loaded: dict[int, Value] = {}
        for r, rows in enumerate(a):
            at = b.address(rows.base, b.mul(loop.iv, b.index(product.depth)), element)
            left = _intrinsic(b, "tileloadd64", [*size, at, strides[r]])
            for tile in order:
                if tile not in loaded:
                    part = b.address(right, b.index(tile * TILE_COLUMNS), b.i32)
                    loaded[tile] = _intrinsic(b, "tileloadd64", [*size, part, panel_stride])
                sums = made[r * tiles + tile]
                made[r * tiles + tile] = _intrinsic(b, product.instruction, [*size, size[1], sums, left, loaded[tile]])
            order.reverse()
            if len(made) + tiles + 1 > REGISTERS:  # only the last one is kept: reading it again is cheaper than fewer accumulators
                loaded = {order[0]: loaded[order[0]]}
        loop.yield_(made)
    for at, total in zip(places, loop.results, strict=True):
        _intrinsic(b, "tilestored64", [*size, at, stride, total], has_result=False)


def _shape(b: Builder) -> list[Value]:
    """Rows, and bytes of a row, of every tile."""
    i16 = ir.IntegerType.get_signless(16)
    return [b.const(i16, TILE_ROWS), b.const(i16, ROW_BYTES)]


def _prefetch_next(b: Builder, panel: Panel, step: Value) -> None:
    """Ask for the lines of what is read later that belong to one step of k."""
    if panel.next_panel is None:
        return
    at = b.address(panel.next_panel, b.mul(step, b.index(panel.lines * CACHE_LINE)), b.i8)
    for line in range(panel.lines):
        b.prefetch(b.address(at, b.index(line * CACHE_LINE), b.i8), level=2)


def _intrinsic(b: Builder, name: str, operands: list[Value], has_result: bool = True) -> Value:
    return b.intrinsic(f"llvm.x86.{name}.internal", operands, ir.Type.parse("!llvm.x86_amx") if has_result else None)
