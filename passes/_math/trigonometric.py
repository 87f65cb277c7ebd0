"""sin, cos, tan and their inverses, in float32.

The argument is reduced by multiples of pi/2 in float64, where two fused multiply-adds leave an error of 1e-16 up to |x| = 2^50; float32
lanes convert exactly. Beyond that the reduction is a loop over the bits of 2/pi (reduction.py), where some lane needs it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from llmos.passes._math.expr import (
    Expr,
    bits,
    convert,
    copy_sign,
    f32,
    f64,
    float_of_bits,
    fma,
    horner,
    i32,
    select,
    sqrt,
)
from llmos.passes._math.reduction import where_large

ROUND_F64 = 6755399441055744.0  # 1.5 * 2^52: a float64 of this size has no fraction
LARGEST_SIMPLE = 2.0**50
TWO_OVER_PI = 0.6366197723675814
HALF_PI_F64, HALF_PI_F64_LOW = 1.5707963267948966, 6.123233995736766e-17
HALF_PI, HALF_PI_LOW = 1.5707963705062866, -4.3711390001862426e-08

SIN = (-0.00019518393673934042, 0.008332190103828907, -0.16666655242443085)
COS = (2.443066841806285e-05, -0.00138873013202101, 0.04166664555668831)
ASIN = (0.04221171513199806, 0.024152128025889397, 0.0454760380089283, 0.07495252043008804, 0.16666753590106964)
ATAN = (
    -0.0017875476041808724,
    0.010887361131608486,
    -0.031127002090215683,
    0.05790654569864273,
    -0.08400475233793259,
    0.10951174795627594,
    -0.14264051616191864,
    0.1999853104352951,
    -0.33333298563957214,
)


class Reduced(NamedTuple):
    """sin and cos of the reduced argument, and the number of quarter turns taken off (its low two bits count)."""

    sin: Expr
    cos: Expr
    quarters: Expr


class SinCos(NamedTuple):
    """The sine and the cosine of one argument."""

    sin: Expr
    cos: Expr


def sin(x: Expr) -> Expr:
    """Return sin(x), with an error of at most 1e-7 and 2 ulp; keeps the sign of zero."""
    return sincos(x).sin


def cos(x: Expr) -> Expr:
    """Return cos(x), with an error of at most 1e-7 and 2 ulp."""
    return sincos(x).cos


def sincos(x: Expr) -> SinCos:
    """Return sine and cosine of x in radians, both from one reduction."""
    reduced = _reduce(x)
    swap = (reduced.quarters & 1).differs(0)
    sine = _flip_sign(select(swap, reduced.cos, reduced.sin), reduced.quarters)
    cosine = _flip_sign(select(swap, reduced.sin, reduced.cos), reduced.quarters + 1)
    return SinCos(select(abs(x) < 1e-4, x, _finite_only(x, sine)), _finite_only(x, cosine))


def tan(x: Expr) -> Expr:
    """Return tan(x), with an error of at most 4 ulp; keeps the sign of zero."""
    reduced = _reduce(x)
    swap = (reduced.quarters & 1).differs(0)
    over = select(swap, -reduced.cos, reduced.sin)
    under = select(swap, reduced.sin, reduced.cos)
    return select(abs(x) < 1e-4, x, _finite_only(x, over / under))


def asin(x: Expr) -> Expr:
    """Return asin(x), with an error of at most 2.5 ulp; NaN beyond 1. asin(x) = pi/2 - 2 asin(sqrt((1 - x) / 2)) above one half."""
    magnitude = abs(x)
    is_large = magnitude > 0.5
    p = _asin_of_half(magnitude, is_large)
    return copy_sign(select(is_large, _half_pi_minus(p + p), p), x)


def acos(x: Expr) -> Expr:
    """Return acos(x), with an error of at most 2 ulp; NaN beyond 1."""
    magnitude = abs(x)
    is_large = magnitude > 0.5
    p = _asin_of_half(magnitude, is_large)
    large = select(x < 0.0, 2.0 * _half_pi_minus(p), p + p)
    return select(is_large, large, _half_pi_minus(copy_sign(p, x)))


def atan(x: Expr) -> Expr:
    """Return atan(x), with an error of at most 2 ulp. atan(x) = pi/2 - atan(1 / x) above one."""
    magnitude = abs(x)
    is_large = magnitude > 1.0
    p = _atan_of_fraction(select(is_large, 1.0 / magnitude, magnitude))
    return copy_sign(select(is_large, _half_pi_minus(p), p), x)


def atan2(y: Expr, x: Expr) -> Expr:
    """Return atan2(y, x), with an error of at most 3 ulp; zeros, signs and infinities as in C."""
    across, up = abs(x), abs(y)
    is_steep = up > across
    low, high = select(is_steep, across, up), select(is_steep, up, across)
    ratio = select(high.equals(0.0), 0.0, select(low.equals(math.inf), 1.0, low / high))
    p = _atan_of_fraction(ratio)
    angle = select(is_steep, _half_pi_minus(p), p)
    angle = select(bits(x) < 0, (2.0 * HALF_PI_LOW - angle) + 2.0 * HALF_PI, angle)
    return select(x.differs(x) | y.differs(y), x + y, copy_sign(angle, y))


def _reduce(x: Expr) -> Reduced:
    wide = convert(x, f64())
    shifted = fma(wide, TWO_OVER_PI, ROUND_F64)
    n = shifted - ROUND_F64
    simple = convert(fma(n, -HALF_PI_F64_LOW, fma(n, -HALF_PI_F64, wide)), f32()), convert(bits(shifted), i32())
    r, quarters = where_large(
        abs(x) > LARGEST_SIMPLE, wide, simple, lambda transposed: (convert(transposed.high, f32()), convert(transposed.quarters, i32()))
    )
    s = r * r
    sine = fma(r * s, horner(s, SIN), r)
    cosine = fma(s * s, horner(s, COS), fma(s, -0.5, 1.0))
    return Reduced(sine, cosine, quarters)


def _flip_sign(x: Expr, quarters: Expr) -> Expr:
    """-x after two or three quarter turns."""
    return float_of_bits(bits(x) ^ ((quarters & 2) << 30))


def _finite_only(x: Expr, result: Expr) -> Expr:
    return select(abs(x) < math.inf, result, math.nan)


def _asin_of_half(magnitude: Expr, is_large: Expr) -> Expr:
    """asin of the magnitude up to one half, of sqrt((1 - magnitude) / 2) above."""
    s = select(is_large, fma(magnitude, -0.5, 0.5), magnitude * magnitude)
    z = select(is_large, sqrt(s), magnitude)
    return fma(z * s, horner(s, ASIN), z)


def _atan_of_fraction(z: Expr) -> Expr:
    s = z * z
    return fma(z * s, horner(s, ATAN), z)


def _half_pi_minus(x: Expr) -> Expr:
    return (HALF_PI_LOW - x) + HALF_PI
