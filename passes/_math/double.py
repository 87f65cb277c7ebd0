"""The same functions in float64, to 4e-16 of the result where nothing else is said: plain series, not tuned for speed."""

from __future__ import annotations

import math
from typing import NamedTuple

from llmos.passes._math import power, reduction
from llmos.passes._math.expr import (
    Expr,
    bits,
    clamp_above,
    clamp_below,
    convert,
    copy_sign,
    f64,
    float_of_bits,
    fma,
    horner,
    i64,
    select,
    sqrt,
    truncate,
)

ROUND = 6755399441055744.0  # 1.5 * 2^52: a float64 of this size has no fraction
LN2 = 0.6931471805599453
LN2_HIGH, LN2_LOW = 0.6931471803691238, 1.9082149292705877e-10  # 32 bits, so that n * LN2_HIGH is exact
SMALLEST_NORMAL = 2.0**-1022
LARGEST_SIMPLE = 2.0**30  # argument that multiples of pi / 2 are taken off by multiply-adds
HALF_PI = (1.5707963267948966, 6.123233995736766e-17, -1.4973849048591833e-33)  # its sum is pi / 2 to 160 bits

EXP = tuple(1.0 / math.factorial(k) for k in range(13, -1, -1))
SIN = tuple((-1.0) ** k / math.factorial(2 * k + 1) for k in range(8, 0, -1))  # (sin(r) / r - 1) / r^2 in r^2
COS = tuple((-1.0) ** k / math.factorial(2 * k) for k in range(9, 1, -1))  # (cos(r) - 1 + r^2 / 2) / r^4 in r^2
ATANH = tuple(2.0 / (2 * k + 1) for k in range(12, 0, -1))  # (2 atanh(s) / s - 2) / s^2 in s^2
ATAN = tuple((-1.0) ** k / (2 * k + 1) for k in range(22, 0, -1))  # (atan(z) / z - 1) / z^2 in z^2
ERF = tuple(2.0**k / math.prod(range(1, 2 * k + 2, 2)) for k in range(130, -1, -1))  # erf(x) exp(x^2) sqrt(pi) / (2 x) in x^2


def exp(x: Expr) -> Expr:
    """Return e^x."""
    return _exp(x, x.constant(0.0))


def exp2(x: Expr) -> Expr:
    """Return 2^x; whole powers are exact."""
    limited = clamp_above(clamp_below(x, -1080.0), 1025.0)
    n = (limited + ROUND) - ROUND
    return _scale(horner((limited - n) * LN2, EXP), n)


def expm1(x: Expr) -> Expr:
    """Return e^x - 1, without cancellation near zero."""
    limited = clamp_above(clamp_below(x, -45.0), 710.0)
    n = fma(limited, 1.0 / LN2, ROUND) - ROUND
    r = _minus_ln2_times(limited, n)
    q = fma(r * r, horner(r, EXP[:-2]), r)
    half_scale = _scale(x.constant(1.0), n - 1.0)
    return select(abs(x) < 1e-17, x, fma(half_scale, q, half_scale - 0.5) * 2.0)


def sinh(x: Expr) -> Expr:
    """Return the hyperbolic sine, by expm1 up to 22."""
    magnitude = abs(x)
    growth = expm1(clamp_above(magnitude, 30.0))
    half = exp(magnitude * 0.5)
    return copy_sign(select(magnitude < 22.0, 0.5 * (growth + growth / (growth + 1.0)), (0.5 * half) * half), x)


def cosh(x: Expr) -> Expr:
    """Return the hyperbolic cosine; finite as far as the result is."""
    half = exp(abs(x) * 0.5)
    return (0.5 * half) * half + (0.5 / half) / half


def tanh(x: Expr) -> Expr:
    """Return the hyperbolic tangent, g / (g + 2) with g = expm1(2 |x|)."""
    growth = expm1(2.0 * clamp_above(abs(x), 22.0))
    return copy_sign(growth / (growth + 2.0), x)


def log(x: Expr) -> Expr:
    """Return the natural logarithm; -infinity at zero, NaN below."""
    e, m = _split(x)
    return _log_limits(x, _log_of_mantissa(m, e))


def log2(x: Expr) -> Expr:
    """Return the logarithm to base 2; exact for powers of two."""
    e, m = _split(x)
    return _log_limits(x, fma(_log_of_mantissa(m, x.constant(0.0)), 1.0 / LN2, e))


def log10(x: Expr) -> Expr:
    """Return the logarithm to base 10."""
    e, m = _split(x)
    return _log_limits(x, fma(_log_of_mantissa(m, x.constant(0.0)), 1.0 / math.log(10.0), e * math.log10(2.0)))


def log1p(x: Expr) -> Expr:
    """Return log(1 + x), corrected by what the rounding of 1 + x lost."""
    u = 1.0 + x
    correction = select(x > 1.0, 1.0 - (u - x), x - (u - 1.0)) / u  # what the rounding of 1 + x lost
    result = select(u.equals(1.0), x, log(u) + correction)
    return select(u.equals(0.0) | x.equals(math.inf), log(u), result)


def asinh(x: Expr) -> Expr:
    """Return the inverse hyperbolic sine, by log1p up to 2^28."""
    a = abs(x)
    square = a * a
    near = log1p(a + square / (1.0 + sqrt(square + 1.0)))
    return copy_sign(select(a < 2.0**28, near, log(a) + LN2), x)


def acosh(x: Expr) -> Expr:
    """Return the inverse hyperbolic cosine; NaN below 1."""
    above = x - 1.0
    near = log1p(above + sqrt(above * (above + 2.0)))
    return select(x < 1.0, math.nan, select(x < 2.0**28, near, log(x) + LN2))


def atanh(x: Expr) -> Expr:
    """Return the inverse hyperbolic tangent; NaN beyond 1."""
    a = abs(x)
    return copy_sign(0.5 * log1p((a + a) / (1.0 - a)), x)


def sin(x: Expr) -> Expr:
    """Return the sine of x in radians; keeps the sign of zero, NaN for an infinity."""
    reduced = _reduce(x)
    value = select(reduced.is_odd, reduced.cos, reduced.sin)
    return select(abs(x) < 1e-9, x, _finite_only(x, _flip_sign(value, reduced.quarters)))


def cos(x: Expr) -> Expr:
    """Return the cosine of x in radians; NaN for an infinity."""
    reduced = _reduce(x)
    return _finite_only(x, _flip_sign(select(reduced.is_odd, reduced.sin, reduced.cos), reduced.quarters + 1))


def tan(x: Expr) -> Expr:
    """Return the tangent of x in radians; keeps the sign of zero, NaN for an infinity."""
    reduced = _reduce(x)
    ratio = select(reduced.is_odd, -reduced.cos, reduced.sin) / select(reduced.is_odd, reduced.sin, reduced.cos)
    return select(abs(x) < 1e-9, x, _finite_only(x, ratio))


def asin(x: Expr) -> Expr:
    """Return 2 atan(x / (1 + sqrt(1 - x^2))) in radians; NaN beyond 1."""
    return 2.0 * atan(x / (1.0 + sqrt((1.0 - x) * (1.0 + x))))


def acos(x: Expr) -> Expr:
    """Return 2 atan(sqrt((1 - x) / (1 + x))) in radians; NaN beyond 1."""
    return 2.0 * atan(sqrt((1.0 - x) / (1.0 + x)))


def atan(x: Expr) -> Expr:
    """Return the arctangent in radians; atan(x) = pi/2 - atan(1 / x) above one."""
    magnitude = abs(x)
    is_large = magnitude > 1.0
    p = _atan_of_fraction(select(is_large, 1.0 / magnitude, magnitude))
    return copy_sign(select(is_large, (HALF_PI[1] - p) + HALF_PI[0], p), x)


def atan2(y: Expr, x: Expr) -> Expr:
    """Return the angle of the point (x, y) in radians; zeros, signs and infinities as in C."""
    across, up = abs(x), abs(y)
    is_steep = up > across
    low, high = select(is_steep, across, up), select(is_steep, up, across)
    ratio = select(high.equals(0.0), 0.0, select(low.equals(math.inf), 1.0, low / high))
    p = _atan_of_fraction(ratio)
    angle = select(is_steep, (HALF_PI[1] - p) + HALF_PI[0], p)
    angle = select(bits(x) < 0, (2.0 * HALF_PI[1] - angle) + 2.0 * HALF_PI[0], angle)
    return select(x.differs(x) | y.differs(y), x + y, copy_sign(angle, y))


def erf(x: Expr) -> Expr:
    """Return the error function: a series of positive terms up to |x| = 6, where erf is 1 in float64."""
    magnitude = clamp_above(abs(x), 6.0)
    square = magnitude * magnitude
    decay = _exp(-square, -fma(magnitude, magnitude, -square))
    series = magnitude * (2.0 / math.sqrt(math.pi)) * horner(square, ERF) * decay
    return copy_sign(select(magnitude < 6.0, clamp_above(series, 1.0), magnitude * (1.0 / 6.0)), x)


def pow(x: Expr, y: Expr) -> Expr:
    """Return exp(y log x) with the product as a double: the relative error is up to 2e-16 (1 + |y log x|); special values as in C."""
    return power.pow(x, y, _power_magnitude)


def remainder(x: Expr, y: Expr) -> Expr:
    """Return C's fmod, exact: as in float32, in 43 steps that take off multiples of y 2^k by numbers below 2^50."""
    rest, divisor = abs(x), abs(y)
    for k in range(2100, -1, -50):
        multiple = divisor * 2.0 ** min(k, 1000) * 2.0 ** min(max(k - 1000, 0), 1000) * 2.0 ** max(k - 2000, 0)
        step = fma(truncate(rest / multiple), -multiple, rest)
        step = select(step < 0.0, step + multiple, step)  # the quotient was rounded up to a whole number
        rest = select(multiple.equals(math.inf), rest, step)
    result = select(divisor.differs(0.0) & (abs(x) < math.inf), copy_sign(rest, x), math.nan)
    return select(y.differs(y), y, result)


class _Reduced(NamedTuple):
    sin: Expr
    cos: Expr
    quarters: Expr  # int64; its low two bits count
    is_odd: Expr


def _reduce(x: Expr) -> _Reduced:
    """Of arguments above 2^30 the closest to a multiple of pi / 2 are known to 2e-15."""
    shifted = fma(x, 2.0 / math.pi, ROUND)
    n = shifted - ROUND
    main = fma(n, -HALF_PI[0], x)
    r = fma(n, -HALF_PI[1], main)
    low = fma(n, -HALF_PI[1], main - r)  # what the sum above lost
    low = fma(n, -HALF_PI[2], low)
    simple = (r, low, bits(shifted))
    r, low, quarters = reduction.where_large(
        abs(x) > LARGEST_SIMPLE, x, simple, lambda transposed: (transposed.high, transposed.low, convert(transposed.quarters, i64()))
    )
    s = r * r
    sine = fma(r * s, horner(s, SIN), r + low)
    cosine = fma(s * s, horner(s, COS), fma(-r, low, fma(s, -0.5, 1.0)))
    return _Reduced(sine, cosine, quarters, (quarters & 1).differs(0))


def _flip_sign(x: Expr, quarters: Expr) -> Expr:
    return float_of_bits(bits(x) ^ ((quarters & 2) << 62))


def _finite_only(x: Expr, result: Expr) -> Expr:
    return select(abs(x) < math.inf, result, math.nan)


def _atan_of_fraction(z: Expr) -> Expr:
    """atan on [0, 1]; above tan(pi / 8) as pi / 4 + atan((z - 1) / (z + 1))."""
    is_upper = z > 0.41421356237309503
    w = select(is_upper, (z - 1.0) / (z + 1.0), z)
    s = w * w
    p = fma(w * s, horner(s, ATAN), w)
    return select(is_upper, (HALF_PI[1] * 0.5 + p) + HALF_PI[0] * 0.5, p)


def _exp(x: Expr, low: Expr) -> Expr:
    """exp(x + low), subnormal results included."""
    limited = clamp_above(clamp_below(x, -750.0), 710.0)
    n = fma(limited, 1.0 / LN2, ROUND) - ROUND
    value = horner(_minus_ln2_times(limited, n), EXP)
    return _scale(fma(value, low, value), n)


def _minus_ln2_times(x: Expr, n: Expr) -> Expr:
    return fma(n, -LN2_LOW, fma(n, -LN2_HIGH, x))


def _scale(x: Expr, n: Expr) -> Expr:
    """x * 2^n for a whole number n in [-2000, 2000], by two normal factors."""
    exponent = bits(n + ROUND) - bits(n.constant(ROUND))
    half = exponent >> 1
    return x * float_of_bits((half + 1023) << 52) * float_of_bits((exponent - half + 1023) << 52)


def _split(x: Expr) -> tuple[Expr, Expr]:
    """Exponent (as a float) and mantissa in [sqrt(1/2), sqrt(2)) of a positive number."""
    is_subnormal = x < SMALLEST_NORMAL
    pattern = bits(select(is_subnormal, x * 2.0**54, x))
    e = (pattern - 0x3FE6A09E667F3BCD) >> 52
    exponent = convert(e, f64())
    return select(is_subnormal, exponent - 54.0, exponent), float_of_bits(pattern - (e << 52))


def _log_of_mantissa(m: Expr, e: Expr) -> Expr:
    """log m + e ln 2 (as in Sun's fdlibm)."""
    f = m - 1.0
    s = f / (f + 2.0)
    square = s * s
    half = 0.5 * f * f
    tail = s * (half + square * horner(square, ATANH))
    return fma(e, LN2_HIGH, f - (half - fma(e, LN2_LOW, tail)))


def _log_limits(x: Expr, finite: Expr) -> Expr:
    at_edge = select(x.equals(0.0), -math.inf, select(x < 0.0, math.nan, x))
    return select((x > 0.0) & (x < math.inf), finite, at_edge)


def _power_magnitude(a: Expr, y: Expr) -> Expr:
    logarithm = log(a)
    high = logarithm * y
    low = fma(logarithm, y, -high)
    return _exp(high, select(abs(high) < 800.0, low, 0.0))
