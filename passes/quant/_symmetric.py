"""Symmetric quantization to 8 bits as IR: absolute maximum, scale, rounded numbers.

Formulas, of elements x along the reduced axes: scale = max|x| / 127, q = clamp(round(x / scale), -127, 127), halves to even.
"""

from __future__ import annotations

import math as pymath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llmos.compiler.analysis.quantization import Numbers, mark
from llmos.compiler.ir.bindings import arith, ir, math
from llmos.passes.quant._generics import Read, after, axis_sizes, constant, elementwise, reduced

LARGEST = 127  # of a quantized number's magnitude: -128 has no opposite
ZERO_POINT = 128  # of numbers that are stored without a sign


@dataclass(frozen=True)
class Quantized:
    """A quantized tensor. numbers: i8, of the tensor's shape; scale: f32, of the `kept` axes."""

    numbers: ir.Value
    scale: ir.Value
    kept: tuple[int, ...]


def quantized(x: ir.Value, axes: Sequence[int], dtype: Literal["int8", "uint8"]) -> Quantized:
    """Quantize a float32 tensor with a scale for all elements along `axes`, right after what makes it.

    dtype: "int8", or "uint8" for numbers with zero point 128. Where the elements are all 0 the scale is 1; where one is NaN or infinite
    it is NaN, and the numbers are in range but mean nothing.
    """
    kept = tuple(axis for axis in range(x.type.rank) if axis not in axes)
    with after(x):
        f32 = ir.F32Type.get()
        largest = reduced(x, axes, constant(0.0, f32), lambda each, acc: arith.maximumf(acc, math.absf(each)))
        scale = elementwise([Read.whole(largest)], axis_sizes(largest), f32, _scale)
        shift = ZERO_POINT if dtype == "uint8" else 0
        reads = [Read.whole(x), Read.at(scale, kept)]
        i8 = ir.IntegerType.get_signless(8)
        numbers = elementwise(reads, axis_sizes(x), i8, lambda each, by: _number(each, by, shift))
    bounds = (shift - LARGEST, shift + LARGEST)
    mark(numbers.owner.operation, "quantize", Numbers(dtype, bounds, ("input", "scale"), zero_point=shift or None))
    return Quantized(numbers, scale, kept)


def _scale(largest: ir.Value) -> ir.Value:
    """max / 127; 1 where that is 0, NaN where the largest is infinite or NaN."""
    kind = largest.type
    ratio = arith.divf(largest, constant(float(LARGEST), kind))
    is_zero = arith.cmpf(arith.CmpFPredicate.OEQ, ratio, constant(0.0, kind))
    is_finite = arith.cmpf(arith.CmpFPredicate.OLT, largest, constant(pymath.inf, kind))
    return arith.select(is_finite, arith.select(is_zero, constant(1.0, kind), ratio), constant(pymath.nan, kind))


def _number(x: ir.Value, scale: ir.Value, shift: int) -> ir.Value:
    """The bounds take the place of NaN, which has no integer."""
    rounded = math.roundeven(arith.divf(x, scale))
    bounded = arith.minnumf(arith.maxnumf(rounded, constant(-float(LARGEST), x.type)), constant(float(LARGEST), x.type))
    i32 = ir.IntegerType.get_signless(32)
    number = arith.fptosi(i32, bounded)
    shifted = arith.addi(number, constant(shift, i32)) if shift else number
    return arith.trunci(ir.IntegerType.get_signless(8), shifted)
