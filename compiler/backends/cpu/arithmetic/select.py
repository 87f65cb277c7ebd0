"""Which arithmetic multiplies what: the first that supports element types on a target."""

from __future__ import annotations

from llmos.compiler.backends.cpu.arithmetic.amx import Bf16Tiles, Int8Tiles
from llmos.compiler.backends.cpu.arithmetic.base import MatrixArithmetic, Operands, RegisterArithmetic
from llmos.compiler.backends.cpu.arithmetic.bf16_dot import Bf16Dot
from llmos.compiler.backends.cpu.arithmetic.bf16_extend import Bf16Extend, Bf16ExtendPanel
from llmos.compiler.backends.cpu.arithmetic.f32 import Float32
from llmos.compiler.backends.cpu.arithmetic.grouped import GroupArithmetic
from llmos.compiler.backends.cpu.arithmetic.int4 import Int4
from llmos.compiler.backends.cpu.arithmetic.int4_dot import Int4Dot
from llmos.compiler.backends.cpu.arithmetic.int4_extend import Int4Extend
from llmos.compiler.backends.cpu.arithmetic.int4_pairs import Int4Pairs
from llmos.compiler.backends.cpu.arithmetic.int4_tiles import Int4Tiles
from llmos.compiler.backends.cpu.arithmetic.int8_dot import Int8Dot
from llmos.compiler.backends.cpu.arithmetic.int8_extend import Int8Extend
from llmos.compiler.backends.cpu.arithmetic.int8_pairs import Int8Pairs
from llmos.compiler.backends.cpu.arithmetic.weight_only import WeightOnly
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.runtime.errors import UnsupportedError

ARITHMETICS = (  # best first
    *(Bf16Tiles, Bf16Dot, Bf16ExtendPanel, Bf16Extend),
    *(Int8Tiles, Int8Dot, Int8Pairs, Int8Extend),
    Float32,
)
INT4: tuple[type[Int4], ...] = (Int4Tiles, Int4Dot, Int4Pairs, Int4Extend)  # likewise


def arithmetic_of(operands: Operands, target: CpuTarget) -> RegisterArithmetic | MatrixArithmetic | GroupArithmetic:
    """The best arithmetic for some operands on a target. Raises UnsupportedError where there is none."""
    if operands.numbers is not None:
        return next((each(operands) for each in INT4 if each.supports(operands, target)), None) or WeightOnly(operands.numbers)
    for arithmetic in ARITHMETICS:
        if arithmetic.supports(operands, target):
            return arithmetic()
    raise UnsupportedError(f"{target} has no contraction of {operands.left} by {operands.right}")
