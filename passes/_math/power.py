"""Powers and roots in float32, and whole powers of integers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from llmos.passes._math.exponential import scaled_exp
from llmos.passes._math.expr import Expr, bits, convert, copy_sign, f32, f64, float_of_bits, fma, horner, i32, select, sqrt, truncate
from llmos.passes._math.logarithm import SMALLEST_NORMAL, split

LN2_HIGH, LN2_LOW = 0.6931471824645996, -1.904654299957768e-09
ATANH = (0.12138418108224869, 0.14249418675899506, 0.20000486075878143, 0.3333333134651184)  # (atanh(q) / q - 1) / q^2


Magnitude = Callable[[Expr, Expr], Expr]


class DoubleFloat(NamedTuple):
    """An unevaluated sum of two floats: about 48 bits."""

    high: Expr
    low: Expr


def pow(x: Expr, y: Expr, magnitude: Magnitude | None = None) -> Expr:
    """Return pow(x, y), with an error of at most 2 ulp, subnormal results included.
    Zeros, infinities, NaN and negative bases are as in C (IEEE 754 pow).

    `magnitude` is the function that computes a^y for 0 < a < infinity, by default that of float32.
    """
    is_integer = truncate(y).equals(y)
    half = y * 0.5
    is_odd = is_integer & truncate(half).differs(half)
    result = signed_pow(x, y, is_odd, magnitude or float32_magnitude)
    finite_negative = (x < 0.0) & (x > -math.inf)
    return select(finite_negative & ~is_integer & (abs(y) < math.inf), math.nan, result)


def integer_exponent_pow(x: Expr, n: Expr) -> Expr:
    """x^n for a signed integer n, as `pow`; n beyond 2^24 is rounded to a float."""
    return signed_pow(x, convert(n, f32()), (n & 1).differs(0), float32_magnitude)


def signed_pow(x: Expr, y: Expr, is_odd: Expr, power_of: Magnitude) -> Expr:
    """Return x^y, where y is an integer if x is negative, and `is_odd` says whether it is odd. `power_of` computes it of |x|."""
    a = abs(x)
    magnitude = power_of(a, y)
    at_edge = select(a.equals(0.0) ^ (y < 0.0), 0.0, a.constant(math.inf))
    magnitude = select(a.equals(0.0) | a.equals(math.inf), at_edge, magnitude)
    magnitude = select(a.equals(1.0), 1.0, magnitude)
    magnitude = select(x.differs(x) | y.differs(y), math.nan, magnitude)
    result = select(is_odd, copy_sign(magnitude, x), magnitude)
    return select(x.equals(1.0) | y.equals(0.0), 1.0, result)


def rsqrt(x: Expr) -> Expr:
    """Return rsqrt(x), with an error of at most 1.5 ulp; infinite at zero, with its sign."""
    return 1.0 / sqrt(x)


def cbrt(x: Expr) -> Expr:
    """Return cbrt(x), with an error of at most 0.51 ulp, by an estimate from the exponent and two steps of Halley's method in float64."""
    a = abs(x)
    is_subnormal = a < SMALLEST_NORMAL
    scaled = select(is_subnormal, a * 2.0**24, a)
    third = convert(convert(bits(scaled), f32()) * (1.0 / 3.0), i32())
    target = convert(scaled, f64())
    y = convert(float_of_bits(third + 0x2A5119F2), f64())
    for _ in range(2):
        cube = y * y * y
        y = y * (cube + 2.0 * target) / (2.0 * cube + target)
    root = convert(y, f32())
    root = copy_sign(select(is_subnormal, root * 2.0**-8, root), x)
    return select(x.equals(0.0) | ~(a < math.inf), x, root)


def ipow(base: Expr, exponent: Expr) -> Expr:
    """base^exponent modulo 2^bits, by squaring; a negative exponent gives 1 / base^-exponent cut to an integer, and 0 for base 0."""
    result, square = base.constant(1), base
    for bit in range(base.bit_width):
        result = select(((exponent >> bit) & 1).differs(0), result * square, result)
        square = square * square
    sign = select((exponent & 1).differs(0), base, 1)
    inverse = select(base.equals(1) | base.equals(-1), sign, 0)
    return select(exponent < 0, inverse, result)


def float32_magnitude(a: Expr, y: Expr) -> Expr:
    """exp(y log a) for 0 < a < infinity, with the logarithm and the product as double floats."""
    logarithm = _log(a)
    high = logarithm.high * y
    low = fma(logarithm.low, y, fma(logarithm.high, y, -high))
    # Beyond 200 the result is 0 or infinite anyway, and the low part may be NaN.
    return scaled_exp(high, select(abs(high) < 200.0, low, 0.0))


def _log(a: Expr) -> DoubleFloat:
    """log a = e ln 2 + 2 atanh(q), q = (m - 1) / (m + 1), to about 2^-34 of its value."""
    e, m = split(a, 0x3F3504F3)
    q = _quotient(m - 1.0, m + 1.0)
    square = q.high * q.high
    square_low = fma(q.high, q.low + q.low, fma(q.high, q.high, -square))
    cube = square * q.high
    cube_low = fma(square, q.low, fma(square_low, q.high, fma(square, q.high, -cube)))
    p = horner(square, ATANH)
    tail = fma(p, cube, fma(p, cube_low, q.low))
    main = q.high + q.high
    high = fma(e, LN2_HIGH, main)
    rounding = main - fma(e, -LN2_HIGH, high)
    low = fma(e, LN2_LOW, fma(tail, 2.0, rounding))
    total = high + low
    return DoubleFloat(total, (high - total) + low)


def _quotient(f: Expr, f_plus_2: Expr) -> DoubleFloat:
    """f / (f + 2) for an exact f = m - 1; the remainder is taken with f, as f + 2 = m + 1 may be rounded."""
    inverse = 1.0 / f_plus_2
    high = inverse * f
    return DoubleFloat(high, inverse * fma(high, -f, fma(high, -2.0, f)))
