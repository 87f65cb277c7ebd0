"""log, log2, log10, log1p and the inverse hyperbolic functions made of them, in float32.

x = 2^e m with m in [2/3, 4/3): log x = e ln 2 + log m, and log m = f - f^2/2 + f^3 P(f) with f = m - 1, which is exact.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from llmos.passes._math.expr import Expr, bits, convert, copy_sign, float_of_bits, fma, horner, select, sqrt

LN2 = 0.6931471805599453
# Constants as sums of two floats.
LOG2_E_HIGH, LOG2_E_LOW = 1.4426950216293335, 1.9259629911266175e-08
LOG10_E_HIGH, LOG10_E_LOW = 0.4342944920063019, -1.0103050052231683e-08
LOG10_2_HIGH, LOG10_2_LOW = 0.3010300099849701, -1.4320988897559699e-08
SMALLEST_NORMAL = 2.0**-126

# (log(1 + f) - f + f^2 / 2) / f^3 on [-1/3, 1/3] and on [-1/4, 1/2].
LOG = (
    -0.12874069809913635,
    0.1398669332265854,
    -0.12188415974378586,
    0.1400534212589264,
    -0.16680178046226501,
    0.20010444521903992,
    -0.2499980479478836,
    0.3333321511745453,
)
LOG1P = (
    0.03760390356183052,
    -0.09106380492448807,
    0.1169702410697937,
    -0.12728427350521088,
    0.1427680253982544,
    -0.16655315458774567,
    0.19999578595161438,
    -0.2500016391277313,
    0.33333340287208557,
)


class Split(NamedTuple):
    """x = 2^exponent * mantissa; the exponent as a float."""

    exponent: Expr
    mantissa: Expr


def split(x: Expr, lowest_mantissa: int) -> Split:
    """Return mantissa and exponent of a positive float32; the mantissa is in [m, 2m) for the float m whose bits are `lowest_mantissa`."""
    is_subnormal = x < SMALLEST_NORMAL
    pattern = bits(select(is_subnormal, x * 2.0**23, x))
    e = (pattern - lowest_mantissa) >> 23
    exponent = convert(e, x.element)
    return Split(select(is_subnormal, exponent - 23.0, exponent), float_of_bits(pattern - (e << 23)))


def log(x: Expr) -> Expr:
    """Return log(x), with an error of at most 1.5 ulp."""
    e, m = split(x, 0x3F2AAAAB)
    return _with_limits(x, fma(e, LN2, _log_of_mantissa(m)))


def log2(x: Expr) -> Expr:
    """Return log2(x), with an error of at most 2 ulp; exact for powers of two."""
    e, m = split(x, 0x3F2AAAAB)
    natural = _log_of_mantissa(m)
    return _with_limits(x, fma(natural, LOG2_E_HIGH, fma(natural, LOG2_E_LOW, e)))


def log10(x: Expr) -> Expr:
    """Return log10(x), with an error of at most 2 ulp."""
    e, m = split(x, 0x3F2AAAAB)
    natural = _log_of_mantissa(m)
    low = fma(e, LOG10_2_LOW, natural * LOG10_E_LOW)
    return _with_limits(x, fma(e, LOG10_2_HIGH, fma(natural, LOG10_E_HIGH, low)))


def log1p(x: Expr) -> Expr:
    """Return log1p(x), with an error of at most 1.5 ulp; keeps the sign of zero.

    The scaled argument 2^-e x + (2^-e - 1) loses nothing to the rounding of 1 + x.
    """
    e = (bits(x + 1.0) - 0x3F400000) & 0xFF800000
    four_over_scale = float_of_bits(0x40800000 - e)
    f = fma(four_over_scale, 0.25, -1.0) + float_of_bits(bits(x) - e)
    exponent = convert(e, x.element) * 2.0**-23
    s = f * f
    logarithm = fma(s, fma(f, horner(f, LOG1P), -0.5), f)
    result = fma(exponent, LN2, logarithm)
    result = select(x.equals(-1.0), -math.inf, select(x < -1.0, math.nan, result))
    result = select(x.equals(math.inf) | x.differs(x), x, result)
    return select(abs(x) < 1e-8, x, result)


def asinh(x: Expr) -> Expr:
    """Return asinh(x), with an error of at most 3 ulp."""
    magnitude = abs(x)
    square = magnitude * magnitude
    small = log1p(magnitude + square / (sqrt(square + 1.0) + 1.0))
    return copy_sign(select(magnitude > 4096.0, log(magnitude) + LN2, small), x)


def acosh(x: Expr) -> Expr:
    """Return acosh(x), with an error of at most 3 ulp; NaN below 1."""
    t = x - 1.0
    result = select(x > 4096.0, log(x) + LN2, log1p(t + sqrt(fma(t, t, t + t))))
    return select(x < 1.0, math.nan, result)


def atanh(x: Expr) -> Expr:
    """Return atanh(x), with an error of at most 3 ulp; infinite at 1 and -1, NaN beyond."""
    magnitude = abs(x)
    return copy_sign(log1p((magnitude + magnitude) / (1.0 - magnitude)) * 0.5, x)


def _log_of_mantissa(m: Expr) -> Expr:
    f = m - 1.0
    return fma(f * f, fma(f, horner(f, LOG), -0.5), f)


def _with_limits(x: Expr, finite: Expr) -> Expr:
    """The values of a logarithm at 0 (either sign), infinity, NaN and below 0."""
    at_edge = select(x.equals(0.0), -math.inf, select(x < 0.0, math.nan, x))
    return select((x > 0.0) & (x < math.inf), finite, at_edge)
