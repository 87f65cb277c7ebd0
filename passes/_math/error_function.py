"""erf and erfc in float32."""

from __future__ import annotations

from llmos.passes._math.exponential import ROUND, scaled_exp
from llmos.passes._math.expr import Expr, bits, clamp_above, clamp_below, copy_sign, float_of_bits, fma, horner, select

SMALL_LIMIT = 0.92
# erf(x) / x - 1 in x^2 for |x| <= 0.92, relative error 1.6e-8.
ERF_SMALL = (
    -0.0006003795424476266,
    0.004995853174477816,
    -0.026768580079078674,
    0.11281877011060715,
    -0.3761250078678131,
    0.12837915122509003,
)
# log2(erfc(x)) for x in [0.92, 4], absolute error of erfc 2.2e-9; from 4 on erf is 1 in float32.
LOG2_ERFC = (
    0.00028125717653892934,
    -0.0043767462484538555,
    0.03201320767402649,
    -0.14983321726322174,
    -0.9193800687789917,
    -1.6268224716186523,
    -0.0002986501494888216,
)
# 2^r for |r| <= 1/2, relative error 9.4e-8: of a number below 0.2 that is subtracted from 1.
EXP2_SHORT = (0.0013269553892314434, 0.009671293199062347, 0.0555071085691452, 0.24022246897220612, 0.6931470036506653, 1.0)

# erfc(x) exp(x^2) (1 + 2x) in q = (x - 2) / (x + 2), relative error 1.6e-8 for x in [0, 10.1].
ERFC = (
    -0.0004047493275720626,
    -0.001238316181115806,
    0.001314049819484353,
    0.008640462532639503,
    -0.008057902567088604,
    -0.05420750752091408,
    0.16405458748340607,
    -0.16603095829486847,
    -0.09276391565799713,
    1.2769783735275269,
)


# erf(x) / x in x^2 - CENTER for |x| <= SATURATED, where it makes erf 1 and a little more; around the center, so that no terms cancel.
SATURATED, CENTER = 3.9179999828338623, 7.6753621101379395
ERF_WHOLE = (
    7.66645285395131e-16,
    -1.3914111121691563e-14,
    6.162725765899296e-14,
    -5.707801852689043e-13,
    1.8700206314004042e-11,
    -2.520624542423633e-10,
    2.5089563759905786e-09,
    -2.6789093610091186e-08,
    2.844363109488768e-07,
    -2.7881606001756154e-06,
    2.611580930533819e-05,
    -0.00024148437660187483,
    0.0022770436480641365,
    -0.02347760833799839,
    0.3609206974506378,
)


def erf(x: Expr) -> Expr:
    """Return erf(x), with an error of at most 1.5 ulp and 1e-7, never above 1. 28 operations without a branch or a division."""
    magnitude = clamp_above(abs(x), 4.0)
    exponent = horner(magnitude, LOG2_ERFC)
    shifted = exponent + (ROUND + 127)
    r = exponent - (shifted - (ROUND + 127))
    large = fma(horner(r, EXP2_SHORT), -float_of_bits(bits(shifted) << 23), 1.0)
    return select(magnitude < SMALL_LIMIT, _small_erf(x), copy_sign(large, x))


def one_plus_erf(x: Expr) -> Expr:
    """Return 1 + erf(x), with an error of at most 3e-7; 0 below x = -3.92. 19 operations, where erf and an addition are 29."""
    limited = clamp_above(clamp_below(x, -SATURATED), SATURATED)
    polynomial = horner(fma(limited, limited, -CENTER), ERF_WHOLE)
    return clamp_below(fma(limited, polynomial, 1.0), 0.0)


def erfc(x: Expr) -> Expr:
    """Return erfc(x), with an error of at most 4 ulp, to the smallest subnormal (x = 10.05)."""
    magnitude = clamp_above(abs(x), 10.5)
    q = (magnitude - 2.0) / (magnitude + 2.0)
    scaled = horner(q, ERFC) / fma(magnitude, 2.0, 1.0)
    square = magnitude * magnitude
    tail = scaled * scaled_exp(-square, -fma(magnitude, magnitude, -square))
    return select(magnitude < 0.46, 1.0 - _small_erf(x), select(x < 0.0, 2.0 - tail, tail))


def _small_erf(x: Expr) -> Expr:
    return fma(x, horner(x * x, ERF_SMALL), x)
