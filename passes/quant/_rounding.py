"""Quantization to 8 bits as IR: range of the elements, scale, zero point, rounded numbers.

Formulas, of elements x along the reduced axes; rounding is to nearest, halves to even:

    symmetric     scale = max|x| / 127                        q = clamp(round(x / scale), -127, 127)
    asymmetric    scale = max(x, 0) / 255 - min(x, 0) / 255   q = clamp(round(x / scale) + zero_point, 0, 255)
                  zero_point = round(-min(x, 0) / scale)
"""

from __future__ import annotations

import math as pymath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llmos.compiler.analysis.quantization import Numbers, mark
from llmos.compiler.ir.bindings import arith, ir, math
from llmos.passes.quant._generics import Body, Read, after, axis_sizes, constant, elementwise, reduced, reductions

LARGEST = 127  # of a symmetric number's magnitude: -128 has no opposite
STEPS = 255  # between the smallest and the largest asymmetric number
ZERO_POINT = 128  # of symmetric numbers that are stored without a sign


@dataclass(frozen=True)
class Quantized:
    """A quantized tensor. numbers: i8, of its shape; scale: f32, of the `kept` axes; zero_point: i32, of the same, if there is one."""

    numbers: ir.Value
    scale: ir.Value
    kept: tuple[int, ...]
    zero_point: ir.Value | None = None


def symmetric(x: ir.Value, axes: Sequence[int], dtype: Literal["int8", "uint8"]) -> Quantized:
    """Quantize a float32 tensor with a scale for all elements along `axes`, right after what makes it.

    dtype: "int8", or "uint8" for numbers with zero point 128. Where the elements are all 0 the scale is 1; where one is NaN or infinite
    it is NaN, and the numbers are in range but mean nothing.
    """
    kept, shift = _others(x, axes), ZERO_POINT if dtype == "uint8" else 0
    with after(x):
        largest = reduced(x, axes, _f32(0.0), lambda each, acc: arith.maximumf(acc, math.absf(each)))
        scale = _over([largest], ir.F32Type.get(), lambda each: scale_of_step(arith.divf(each, _f32(LARGEST))))

        def number(each: ir.Value, scale: ir.Value) -> ir.Value:
            within = bounded(math.roundeven(arith.divf(each, scale)), -LARGEST, LARGEST)
            return as_i8(arith.addf(within, _f32(shift)) if shift else within)

        numbers = elementwise([Read.whole(x), Read.at(scale, kept)], axis_sizes(x), _integer(8), number)
    bounds = (shift - LARGEST, shift + LARGEST)
    mark(numbers.owner.operation, "quantize", Numbers(dtype, bounds, ("input", "scale"), zero_point=shift or None))
    return Quantized(numbers, scale, kept)


def asymmetric(x: ir.Value, axes: Sequence[int]) -> Quantized:
    """Quantize a float32 tensor to uint8 with a scale and a zero point for all elements along `axes`, right after what makes it.

    Zeros and what isn't finite as in `symmetric`.
    """
    kept = _others(x, axes)
    with after(x):
        low, high = reductions(
            x, axes, _f32(0.0), [lambda each, acc: arith.minimumf(acc, each), lambda each, acc: arith.maximumf(acc, each)]
        )

        def scale_of(low: ir.Value, high: ir.Value) -> ir.Value:
            return scale_of_step(arith.subf(arith.divf(high, _f32(STEPS)), arith.divf(low, _f32(STEPS))))

        def zero_of(low: ir.Value, scale: ir.Value) -> ir.Value:
            return arith.fptosi(_integer(32), bounded(math.roundeven(arith.divf(arith.negf(low), scale)), 0, STEPS))

        scale = _over([low, high], ir.F32Type.get(), scale_of)
        zero_point = _over([low, scale], _integer(32), zero_of)

        def number(each: ir.Value, scale: ir.Value, zero: ir.Value) -> ir.Value:
            shifted = arith.addf(math.roundeven(arith.divf(each, scale)), arith.sitofp(each.type, zero))
            return as_i8(bounded(shifted, 0, STEPS))

        reads = [Read.whole(x), Read.at(scale, kept), Read.at(zero_point, kept)]
        numbers = elementwise(reads, axis_sizes(x), _integer(8), number)
    mark(numbers.owner.operation, "quantize", Numbers("uint8", (0, STEPS), ("input", "scale", "zero_point")))
    return Quantized(numbers, scale, kept, zero_point)


def _others(x: ir.Value, axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(axis for axis in range(x.type.rank) if axis not in axes)


def _over(values: Sequence[ir.Value], element: ir.Type, body: Body) -> ir.Value:
    """An elementwise op over tensors of one shape."""
    return elementwise([Read.whole(value) for value in values], axis_sizes(values[0]), element, body)


def _f32(number: float) -> ir.Value:
    return constant(float(number), ir.F32Type.get())


def _integer(width: int) -> ir.Type:
    return ir.IntegerType.get_signless(width)


def scale_of_step(step: ir.Value) -> ir.Value:
    """The step between numbers; 1 where that is 0, NaN where it is infinite or NaN."""
    is_zero = arith.cmpf(arith.CmpFPredicate.OEQ, step, _f32(0.0))
    is_finite = arith.cmpf(arith.CmpFPredicate.OLT, step, _f32(pymath.inf))
    return arith.select(is_finite, arith.select(is_zero, _f32(1.0), step), _f32(pymath.nan))


def bounded(value: ir.Value, low: int, high: int) -> ir.Value:
    """Clamp; the lower bound takes the place of NaN, which has no integer."""
    return arith.minnumf(arith.maxnumf(value, _f32(low)), _f32(high))


def as_i8(value: ir.Value) -> ir.Value:
    """Convert a float that is an integer of 8 bits, with a sign or not."""
    return arith.trunci(_integer(8), arith.fptosi(_integer(32), value))
