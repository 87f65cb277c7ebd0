"""The matrix tiles of AMX: C[rows, 16] += A[rows, 32] * B[32, 16] in one instruction, bfloat16 with sums in float32.

A is read in place, B from a panel of pairs (codegen/packing.py), whose layout is that of an AMX operand. The order of additions
depends on k alone. LLVM allots the tile registers and configures them; a register keeps one shape all through a kernel, so the
number of rows is a value, not a variant.
"""

from __future__ import annotations

from llmos.compiler.codegen.builder import Builder, Value
from llmos.compiler.codegen.tile import Panel, Strided
from llmos.compiler.ir import ir

TILE_ROWS = 16
TILE_DEPTH = 32  # k of one instruction
TILE_COLUMNS = 16
ROW_BYTES = 64


def multiply_tiles(b: Builder, rows: Value, a: Strided, panel: Panel, columns: int, k: int, out: Value, out_stride: int) -> None:
    """out[rows, columns] = A * B. `rows`: up to 16; `k`: a multiple of 32; `out`: float32, `out_stride` elements between rows."""
    tiles = -(-columns // TILE_COLUMNS)
    i16 = ir.IntegerType.get_signless(16)
    height, depth = b.op("arith.trunci", [rows], i16), b.const(i16, TILE_DEPTH // 2)
    width = b.const(i16, ROW_BYTES)
    stride, panel_stride = b.mul(a.row_stride, b.index(2)), b.mul(panel.stride, b.index(4))
    start = [_intrinsic(b, "tilezero", [height, width]) for _ in range(tiles)]
    with b.loop(b.index(0), b.index(k // TILE_DEPTH), b.index(1), start) as loop:
        left = b.address(a.base, b.mul(loop.iv, b.index(TILE_DEPTH)), i16)
        right = b.address(panel.base, b.mul(loop.iv, b.mul(panel.stride, b.index(TILE_DEPTH // 2))), b.i32)
        rows_of_a = _intrinsic(b, "tileloadd64", [height, width, left, stride])
        made = []
        for tile, total in enumerate(loop.args):
            part = b.address(right, b.index(tile * TILE_COLUMNS), b.i32)
            loaded = _intrinsic(b, "tileloadd64", [depth, width, part, panel_stride])
            made.append(_intrinsic(b, "tdpbf16ps", [height, width, width, total, rows_of_a, loaded]))
        loop.yield_(made)
    for tile, total in enumerate(loop.results):
        address = b.address(out, b.index(tile * TILE_COLUMNS), b.f32)
        _intrinsic(b, "tilestored64", [height, width, address, b.index(out_stride * 4), total], has_result=False)


def _intrinsic(b: Builder, name: str, operands: list[Value], has_result: bool = True) -> Value:
    return b.op(
        "llvm.call_intrinsic",
        operands,
        ir.Type.parse("!llvm.x86_amx") if has_result else None,
        intrin=ir.StringAttr.get(f"llvm.x86.{name}.internal"),
        op_bundle_sizes=ir.DenseI32ArrayAttr.get([]),
        operandSegmentSizes=ir.DenseI32ArrayAttr.get([len(operands), 0]),
    )
