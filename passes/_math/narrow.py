"""Conversions to the 16-bit float types, without the compiler runtime that LLVM would call."""

from __future__ import annotations

from llmos.compiler.ir.bindings import ir
from llmos.passes._math.expr import Expr, bits, convert, f32, f64, float_of_bits, i32, operation, select


def extend_float(x: Expr) -> Expr:
    """float16 or bfloat16 to float32, exact.

    bfloat16 goes by way of integers: LLVM would narrow floor(extend(x)) to a bfloat16 operation again, and make that a call.
    """
    if not isinstance(x.element, ir.BF16Type):
        return convert(x, f32())
    pattern = operation("arith.bitcast", x.with_element(ir.IntegerType.get_signless(16)), x)
    return float_of_bits(operation("arith.extui", x.with_element(i32()), pattern) << 16)


def truncate_float(x: Expr, element: ir.Type) -> Expr:
    """Return x as float32, float16 or bfloat16, to nearest, ties to even, with one rounding; NaN stays NaN."""
    if element == f32():
        return convert(x, element)
    single = _round_to_odd(x) if x.element == f64() else x
    return _to_bfloat16(single) if isinstance(element, ir.BF16Type) else convert(single, element)


def larger_number(a: Expr, b: Expr) -> Expr:
    """Return IEEE 754-2008 maxNum: the other operand where one is NaN."""
    return select(b.differs(b), a, select(a > b, a, b))


def smaller_number(a: Expr, b: Expr) -> Expr:
    """Return IEEE 754-2008 minNum: the other operand where one is NaN."""
    return select(b.differs(b), a, select(a < b, a, b))


def _round_to_odd(x: Expr) -> Expr:
    """float64 -> float32 such that a second rounding to fewer bits gives what one rounding would (Boldo and Melquiond)."""
    nearest = convert(x, f32())
    back = convert(nearest, f64())
    pattern = bits(nearest)
    inward = select(abs(back) > abs(x), pattern - 1, pattern)  # towards zero
    return float_of_bits(select(back.equals(x) | x.differs(x), pattern, inward | 1))


def _to_bfloat16(x: Expr) -> Expr:
    pattern = bits(x)
    odd = pattern.logical_shift_right(16) & 1
    rounded = (pattern + 0x7FFF + odd).logical_shift_right(16)
    quiet = pattern.logical_shift_right(16) | 0x40
    half = convert(select(x.differs(x), quiet, rounded), ir.IntegerType.get_signless(16))
    return operation("arith.bitcast", x.with_element(ir.BF16Type.get()), half)
