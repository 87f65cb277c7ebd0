"""exp, exp2, expm1 and the hyperbolic functions made of them, in float32.

Range reduction (Cody and Waite): x = n ln 2 + r with |r| <= ln 2 / 2, exp(x) = 2^n exp(r). Adding 1.5 * 2^23 rounds x / ln 2 to the
integer n and leaves n in the low bits of the sum; with 126 added as well these bits are the exponent field of 2^(n-1). The polynomial
gives 2 exp(r), so that n = 128, which has no exponent field of its own, still gives the largest finite results.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmos.passes._math.expr import Expr, bits, clamp_above, clamp_below, copy_sign, float_of_bits, fma, horner, select

ROUND = 12582912.0  # 1.5 * 2^23: a float32 of this size has no fraction
LOG2_E = 1.4426950408889634
LN2 = 0.6931471805599453
LN2_HIGH = 0.693145751953125  # 17 bits: n * LN2_HIGH is exact for every n in use
LN2_LOW = 1.4286068203094173e-06

# Minimax polynomials on |r| <= ln 2 / 2 (exp, relative error 3.2e-9) and |r| <= 1/2 (2^r, 3e-9).
EXP = (0.0013821041211485863, 0.008368673734366894, 0.04166826233267784, 0.1666652113199234, 0.4999999403953552, 1.0, 1.0)
EXP2 = (
    0.0001532927853986621,
    0.0013390970416367054,
    0.00961849931627512,
    0.05550359562039375,
    0.24022647738456726,
    0.6931471824645996,
    1.0,
)
# (tanh(x) / x - 1) / x^2 in x^2 for |x| <= 0.625, relative error 4.2e-9.
TANH_SMALL = (-0.0057154991663992405, 0.020649103447794914, -0.05374300479888916, 0.133314847946167, -0.3333328366279602)
# (exp(r) - 1 - r) / r^2
EXPM1 = (0.001394064398482442, 0.008366401307284832, 0.04166640341281891, 0.1666654497385025, 0.5)


def exp(x: Expr) -> Expr:
    """Return exp(x), with an error of at most 1.5 ulp; exp(0) is 1.

    Results below 2^-125.5 are 0 (subnormals cost hundreds of cycles); too large ones are infinite.
    """
    x = clamp_above(clamp_below(x, -87.5), 89.0)
    shifted = fma(x, LOG2_E, ROUND + 126)
    n = shifted - (ROUND + 126)
    return horner(_minus_ln2_times(x, n), _doubled(EXP)) * _power_of_two(shifted)


def exp2(x: Expr) -> Expr:
    """Return exp2(x), with an error of at most 1.5 ulp; whole powers are exact. Results below 2^-125.5 are 0."""
    x = clamp_above(clamp_below(x, -126.0), 128.0)
    shifted = x + (ROUND + 126)
    r = x - (shifted - (ROUND + 126))
    return horner(r, _doubled(EXP2)) * _power_of_two(shifted)


def expm1(x: Expr) -> Expr:
    """Return expm1(x), with an error of at most 2 ulp; keeps the sign of zero."""
    limited = clamp_above(clamp_below(x, -40.0), 89.0)
    shifted = fma(limited, LOG2_E, ROUND + 126)
    r = _minus_ln2_times(limited, shifted - (ROUND + 126))
    q = fma(r * r, horner(r, EXPM1), r)
    half_scale = _power_of_two(shifted)  # 2^(n-1)
    result = fma(half_scale, q, half_scale - 0.5) * 2.0
    return select(abs(x) < 1e-8, x, result)


def half_exp(x: Expr) -> Expr:
    """exp(x) / 2 for x >= 0, finite up to x = 89.4."""
    limited = clamp_above(x, 89.5)
    shifted = fma(limited, LOG2_E, ROUND + 125)
    n = shifted - (ROUND + 125)
    return horner(_minus_ln2_times(limited, n), _doubled(EXP)) * _power_of_two(shifted)


def sinh(x: Expr) -> Expr:
    """Return sinh(x), with an error of at most 2 ulp."""
    magnitude = abs(x)
    square = x * x
    small = fma(x * square, horner(square, (2.7839255380968098e-06, 0.00019842635083477944, 0.008333311416208744, 0.1666666716337204)), x)
    half = half_exp(magnitude)
    return select(magnitude < 1.0, small, copy_sign(half - 0.25 / half, x))


def cosh(x: Expr) -> Expr:
    """Return cosh(x), with an error of at most 2 ulp."""
    half = half_exp(abs(x))
    return half + 0.25 / half


def tanh(x: Expr) -> Expr:
    """Return tanh(x), with an error of at most 2 ulp, never above 1.

    It is 1 - 2 / (exp(2 |x|) + 1), and a polynomial below 0.625, where that would cancel.
    """
    magnitude = clamp_above(abs(x), 10.0)
    square = x * x
    small = fma(x * square, horner(square, TANH_SMALL), x)
    shifted = fma(magnitude, 2.0 * LOG2_E, ROUND + 127)
    n = shifted - (ROUND + 127)
    growth = horner(fma(n, -LN2, magnitude + magnitude), EXP) * float_of_bits(bits(shifted) << 23)
    large = 1.0 - 2.0 / (growth + 1.0)
    return copy_sign(select(magnitude < 0.625, small, large), x)


def scaled_exp(x: Expr, low: Expr, underflow: float = -104.0) -> Expr:
    """exp(x + low) for a double float (|low| far below 1), with subnormal results rounded once; x may be anything."""
    limited = clamp_above(clamp_below(x, underflow), 89.0)
    n = fma(limited, LOG2_E, ROUND) - ROUND
    r = _minus_ln2_times(limited, n)
    value = horner(r, EXP)
    return scale_by_power(fma(value, low, value), bits(n + ROUND) - bits(n.constant(ROUND)))


def scale_by_power(x: Expr, n: Expr) -> Expr:
    """x * 2^n for an integer n in [-250, 250], by two factors so that each is a normal number."""
    half = n >> 1
    return x * _normal_power(half) * _normal_power(n - half)


def _normal_power(n: Expr) -> Expr:
    return float_of_bits((n + 127) << 23)


def _minus_ln2_times(x: Expr, n: Expr) -> Expr:
    return fma(n, -LN2_LOW, fma(n, -LN2_HIGH, x))


def _power_of_two(shifted: Expr) -> Expr:
    """2^(n-1) from the sum that rounded: its low bits are the exponent field."""
    return float_of_bits(bits(shifted) << 23)


def _doubled(coefficients: Sequence[float]) -> tuple[float, ...]:
    return tuple(2.0 * c for c in coefficients)
