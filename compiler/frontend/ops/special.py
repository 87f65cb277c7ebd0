"""Special functions of one number, computed in float64: power series near zero, asymptotic series far from it (NIST DLMF, by section).

Where the two meet, both have a relative error of 1e-8 or less, which is below float32's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.scalars import Number, Scalar, select

EULER = 0.57721566490153286061
Function = Callable[..., Scalar]


def in_double(body: Function) -> Function:
    """Wrap a function to compute in float64 and round once."""
    return lambda v, *rest: body(v.to(torch.float64), *[r.to(torch.float64) if isinstance(r, Scalar) else r for r in rest]).to(v.dtype)


def polynomial(x: Scalar, coefficients: Sequence[float]) -> Scalar:
    """Evaluate a polynomial by Horner's rule; coefficients start with the constant term."""
    value = x.like(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value


def cases(*pairs: tuple[Scalar, Scalar | Number], otherwise: Scalar) -> Scalar:
    """Select the value of the first true condition, else `otherwise`."""
    for condition, value in reversed(pairs):
        otherwise = select(condition, value if isinstance(value, Scalar) else otherwise.like(value), otherwise)
    return otherwise


def is_integer(v: Scalar) -> Scalar:
    """Return whether a float is a whole number, as bool; true for infinities."""
    return s.floor(v).equals(v)


# Gamma and its derivatives (DLMF 5)

_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510)
_SHIFT = 10


@in_double
def lgamma(v: Scalar) -> Scalar:
    """Return log |Γ(v)|: Stirling's series at v + 10 minus the logarithm of the product v ... (v + 9); by reflection below 1/2."""
    low = v < 0.5
    x = select(low, 1.0 - v, v)
    product = x
    for k in range(1, _SHIFT):
        product = product * (x + float(k))
    big = x > 1e15
    y = x + float(_SHIFT)
    inverse = 1.0 / y
    tail = polynomial(inverse * inverse, [b / (2 * k * (2 * k - 1)) for k, b in enumerate(_BERNOULLI, 1)]) * inverse
    positive = (y - 0.5) * s.log(y) - y + 0.5 * math.log(2 * math.pi) + tail - s.log(product)
    positive = select(big, x * (s.log(x) - 1.0), positive)
    fraction = v - s.round_even(v)
    reflected = math.log(math.pi) - s.log(s.absolute(s.sin(math.pi * fraction))) - positive
    return cases(
        (v.differs(v), v),
        (s.absolute(v).equals(math.inf), math.inf),
        ((v <= 0) & is_integer(v), math.inf),
        (low, reflected),
        otherwise=positive,
    )


@in_double
def digamma(v: Scalar) -> Scalar:
    """Return ψ(v) by the asymptotic series (DLMF 5.11.2) at v + shift and recurrence, by reflection (5.5.4) below 1/2.

    ±inf at 0, NaN at negative whole numbers.
    """
    low = v < 0.5
    x = select(low, 1.0 - v, v)
    shifted = x.like(0.0)
    for k in range(_SHIFT):
        shifted = shifted + 1.0 / (x + float(k))
    y = x + float(_SHIFT)
    square = 1.0 / (y * y)
    positive = s.log(y) - 0.5 / y - polynomial(square, [b / (2 * k) for k, b in enumerate(_BERNOULLI, 1)]) * square - shifted
    fraction = v - s.round_even(v)
    reflected = positive - math.pi / s.tan(math.pi * fraction)
    pole = s.copysign(v.like(math.inf), -v)
    return cases((v.equals(0), pole), ((v < 0) & is_integer(v), math.nan), (low, reflected), otherwise=positive)


def polygamma(n: int) -> Function:
    """Make the n-th derivative of digamma, n >= 1 (DLMF 5.15); below 1/2 by reflection with the n-th derivative of π cot(πx)."""

    @in_double
    def body(v: Scalar) -> Scalar:
        low = v < 0.5
        x = select(low, 1.0 - v, v)
        value = _hurwitz(x, n + 1) * float((-1) ** (n + 1) * math.factorial(n))
        fraction = v - s.round_even(v)
        cot = 1.0 / s.tan(math.pi * fraction)
        derivative = polynomial(cot, _cotangent_derivative(n)) * math.pi ** (n + 1)
        reflected = value * float((-1) ** n) - derivative
        at_pole = math.inf if n % 2 else math.nan
        return cases((v.equals(0), math.inf if n % 2 else -math.inf), ((v < 0) & is_integer(v), at_pole), (low, reflected), otherwise=value)

    return body


def _cotangent_derivative(n: int) -> list[float]:
    """Return d^n/du^n cot u as a polynomial in c = cot u, constant term first: c' = -(1 + c²)."""
    poly = [0.0, 1.0]
    for _ in range(n):
        slope = [k * a for k, a in enumerate(poly)][1:]
        grown = [0.0] * (len(slope) + 2)
        for k, a in enumerate(slope):
            grown[k] -= a
            grown[k + 2] -= a
        poly = grown
    return poly


def _hurwitz(x: Scalar, order: int) -> Scalar:
    """ζ(order, x) for x > 0 by Euler-Maclaurin summation (DLMF 25.11.28)."""
    total = x.like(0.0)
    for k in range(_SHIFT):
        total = total + _inverse_power(x + float(k), order)
    y = x + float(_SHIFT)
    total = total + y * _inverse_power(y, order) / float(order - 1) + 0.5 * _inverse_power(y, order)
    rising = 1.0
    for k, b in enumerate(_BERNOULLI, 1):
        rising *= order if k == 1 else (order + 2 * k - 3) * (order + 2 * k - 2)
        total = total + _inverse_power(y, order + 2 * k - 1) * (b / math.factorial(2 * k) * rising)
    return total


def _inverse_power(x: Scalar, n: int) -> Scalar:
    inverse = 1.0 / x
    value = inverse
    for _ in range(n - 1):
        value = value * inverse
    return value


# Error functions and the normal distribution: Wichura, Algorithm AS 241 (1988), PPND16

_CENTRAL = (
    (3.3871328727963666080, 133.14166789178437745, 1971.5909503065514427, 13731.693765509461125, 45921.953931549871457,
     67265.770927008700853, 33430.575583588128105, 2509.0809287301226727),
    (1.0, 42.313330701600911252, 687.18700749205790830, 5394.1960214247511077, 21213.794301586595867, 39307.895800092710610,
     28729.085735721942674, 5226.4952788528545610),
)  # fmt: skip
_MIDDLE = (
    (1.42343711074968357734, 4.63033784615654529590, 5.76949722146069140550, 3.64784832476320460504, 1.27045825245236838258,
     0.241780725177450611770, 0.0227238449892691845833, 7.74545014278341407640e-4),
    (1.0, 2.05319162663775882187, 1.67638483018380384940, 0.689767334985100004550, 0.148103976427480074590, 0.0151986665636164571966,
     5.47593808499534494600e-4, 1.05075007164441684324e-9),
)  # fmt: skip
_TAIL = (
    (6.65790464350110377720, 5.46378491116411436990, 1.78482653991729133580, 0.296560571828504891230, 0.0265321895265761230930,
     1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7),
    (1.0, 0.599832206555887937690, 0.136929880922735805310, 0.0148753612908506148525, 7.86869131145613259100e-4,
     1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15),
)  # fmt: skip


def _ratio(x: Scalar, parts: tuple[Sequence[float], Sequence[float]]) -> Scalar:
    return polynomial(x, parts[0]) / polynomial(x, parts[1])


def _quantile(q: Scalar, smaller: Scalar) -> Scalar:
    """Return the normal quantile at p = 1/2 + q; `smaller` is min(p, 1 - p), computed without cancellation."""
    central = q * _ratio(0.180625 - q * q, _CENTRAL)
    r = s.sqrt(-s.log(smaller))
    outer = select(r <= 5.0, _ratio(r - 1.6, _MIDDLE), _ratio(r - 5.0, _TAIL))
    outer = s.copysign(select(smaller.equals(0), outer.like(math.inf), outer), q)
    return select(s.absolute(q) <= 0.425, central, outer)


@in_double
def ndtri(p: Scalar) -> Scalar:
    """Return the normal quantile at p (Wichura, AS 241, 1988); ±inf at 0 and 1, NaN outside of [0, 1]."""
    value = _quantile(p - 0.5, p.min(1.0 - p))
    return cases(((p < 0) | (p > 1), math.nan), otherwise=value)


@in_double
def erfinv(v: Scalar) -> Scalar:
    """Return the inverse error function, by the normal quantile; ±inf at ±1, NaN beyond."""
    value = _quantile(v * 0.5, (1.0 - s.absolute(v)) * 0.5) * math.sqrt(0.5)
    return cases((s.absolute(v) > 1, math.nan), otherwise=value)


def ndtr(v: Scalar) -> Scalar:
    """Return the normal distribution function Φ(v) = erfc(-v / sqrt(2)) / 2."""
    return 0.5 * erfc(v * -math.sqrt(0.5))


def _erfcx(x: Scalar) -> Scalar:
    """exp(x²) erfc(x) for x >= 0: the series of DLMF 7.6.2 up to 2, the continued fraction of 7.9.1 from there."""
    odd = 1.0
    terms = []
    for k in range(40):
        odd *= 2 * k + 1
        terms.append(2.0**k / odd)
    small = x.min(2.0)
    near = s.exp(small * small) - 2 / math.sqrt(math.pi) * small * polynomial(small * small, terms)
    large = x.max(2.0)
    fraction = large
    for k in range(60, 0, -1):
        fraction = large + (k / 2) / fraction
    return select(x > 2.0, (1.0 / math.sqrt(math.pi)) / fraction, near)


@in_double
def erfcx(v: Scalar) -> Scalar:
    """Return exp(v²) erfc(v), finite for large v."""
    x = s.absolute(v)
    positive = _erfcx(x)
    return cases((v.differs(v), v), (v < 0, 2.0 * s.exp(x * x) - positive), otherwise=positive)


def erfc(v: Scalar) -> Scalar:
    """Return erfc(v): in float64 exp(-x²) erfcx(x), with x² split into two parts, relative error 3e-14; else the math dialect's."""
    if v.dtype != torch.float64:
        return s.erfc(v)
    x = s.absolute(v).min(30.0)
    head = x.to(torch.float32).to(torch.float64)  # its square is exact
    tail = _erfcx(x) * s.exp(-head * head) * s.exp((head - x) * (head + x))
    return cases((v.differs(v), v), (v < 0, 2.0 - tail), otherwise=tail)


@in_double
def log_ndtr(v: Scalar) -> Scalar:
    """Return log Φ(v), by erfcx so that a very negative v doesn't underflow."""
    x = s.absolute(v) * math.sqrt(0.5)
    tail = _erfcx(x) * 0.5
    complement = tail * s.exp(-x * x)
    return cases((v.differs(v), v), (v < 0, s.log(tail) - x * x), otherwise=s.log1p(-complement))


def entr(v: Scalar) -> Scalar:
    """Return -v log(v), 0 at 0, -inf below."""
    return cases((v.differs(v), v), (v > 0, -v * s.log(v)), (v.equals(0), 0), otherwise=v.like(-math.inf))


# Bessel functions (DLMF 10)

_NEAR_I, _NEAR_J, _NEAR_K = 20.0, 16.0, 8.5


def _factorial_series(order: int, terms: int, sign: int, weight: Callable[[int], float] = lambda k: 1.0) -> list[float]:
    """Return the coefficients of sum_k weight(k) sign^k z^k / (k! (k + order)!)."""
    return [weight(k) * sign**k / (math.factorial(k) * math.factorial(k + order)) for k in range(terms)]


def _harmonic(k: int) -> float:
    return sum(1.0 / i for i in range(1, k + 1))


def _asymptotic(order: int, terms: int) -> list[float]:
    """Return a_k(order) of DLMF 10.17.1 for k < terms."""
    found = [1.0]
    for k in range(1, terms):
        found.append(found[-1] * (4 * order * order - (2 * k - 1) ** 2) / (k * 8))
    return found


def bessel_i(order: int, scaled: bool) -> Function:
    """Make I_0 or I_1, multiplied by exp(-|v|) if `scaled` (10.25.2 and 10.40.1)."""

    @in_double
    def body(v: Scalar) -> Scalar:
        x = s.absolute(v)
        near = x.min(_NEAR_I)
        small = polynomial(near * near * 0.25, _factorial_series(order, 45, 1)) * (near * 0.5 if order else near.like(1.0)) * s.exp(-near)
        large = x.max(_NEAR_I)
        far = [a * (-1) ** k for k, a in enumerate(_asymptotic(order, 18))]
        value = select(x <= _NEAR_I, small, polynomial(1.0 / large, far) / (s.sqrt(large) * math.sqrt(2 * math.pi)))
        value = value if scaled else value * s.exp(x)
        return s.copysign(value, v) if order else value

    return body


def bessel_k(order: int, scaled: bool) -> Function:
    """Make K_0 or K_1, multiplied by exp(v) if `scaled` (10.31.1, 10.31.2 and 10.40.2); infinite at 0, NaN below."""

    @in_double
    def body(v: Scalar) -> Scalar:
        near = v.min(_NEAR_K)
        z = near * near * 0.25
        logarithm = s.log(near * 0.5)
        if order == 0:
            small = polynomial(z, _factorial_series(0, 32, 1, _harmonic)) - (logarithm + EULER) * polynomial(z, _factorial_series(0, 32, 1))
        else:
            digammas = _factorial_series(1, 32, 1, lambda k: _harmonic(k) + _harmonic(k + 1) - 2 * EULER)
            first = near * 0.5 * polynomial(z, _factorial_series(1, 32, 1))
            small = 1.0 / near + logarithm * first - near * 0.25 * polynomial(z, digammas)
        large = v.max(_NEAR_K)
        far = polynomial(1.0 / large, _asymptotic(order, 16)) * s.sqrt((math.pi / 2) / large)
        value = select(v <= _NEAR_K, small * s.exp(near) if scaled else small, far if scaled else far * s.exp(-large))
        return cases((v.equals(0), math.inf), (v < 0, math.nan), otherwise=value)

    return body


def _hankel(order: int, x: Scalar) -> tuple[Scalar, Scalar, Scalar]:
    """Return (P, Q, phase) of 10.17.3: J = sqrt(2 / πx) (P cos ω - Q sin ω), Y = sqrt(2 / πx) (P sin ω + Q cos ω)."""
    a = _asymptotic(order, 26)
    inverse = 1.0 / x
    square = inverse * inverse
    p = polynomial(square, [a[2 * k] * (-1) ** k for k in range(13)])
    q = polynomial(square, [a[2 * k + 1] * (-1) ** k for k in range(13)]) * inverse
    return p, q, x - (order / 2 + 0.25) * math.pi


def bessel_j(order: int) -> Function:
    """Make J_0 or J_1 in float64: power series (10.2.2), then Hankel's expansion (10.17.3); 0 at infinity."""

    @in_double
    def body(v: Scalar) -> Scalar:
        x = s.absolute(v)
        value = _first_kind(order, x)
        value = select(x.equals(math.inf), x.like(0.0), value)
        return select(v < 0, -value, value) if order else value

    return body


def _first_kind(order: int, x: Scalar) -> Scalar:
    near = x.min(_NEAR_J)
    small = polynomial(near * near * 0.25, _factorial_series(order, 48, -1)) * (near * 0.5 if order else near.like(1.0))
    p, q, phase = _hankel(order, x.max(_NEAR_J))
    far = (p * s.cos(phase) - q * s.sin(phase)) * s.sqrt((2 / math.pi) / x.max(_NEAR_J))
    return select(x <= _NEAR_J, small, far)


def bessel_y(order: int) -> Function:
    """Make Y_0 or Y_1 (10.8.1, 10.8.2); -inf at 0, NaN below."""

    @in_double
    def body(v: Scalar) -> Scalar:
        near = v.min(_NEAR_J)
        z = near * near * 0.25
        logarithm = s.log(near * 0.5)
        if order == 0:
            harmonics = polynomial(z, _factorial_series(0, 48, -1, _harmonic))
            small = (2 / math.pi) * ((logarithm + EULER) * polynomial(z, _factorial_series(0, 48, -1)) - harmonics)
        else:
            digammas = _factorial_series(1, 48, -1, lambda k: _harmonic(k) + _harmonic(k + 1) - 2 * EULER)
            first = near * 0.5 * polynomial(z, _factorial_series(1, 48, -1))
            small = (2 / math.pi) * (logarithm * first - 1.0 / near) - near * (0.5 / math.pi) * polynomial(z, digammas)
        p, q, phase = _hankel(order, v.max(_NEAR_J))
        far = (p * s.sin(phase) + q * s.cos(phase)) * s.sqrt((2 / math.pi) / v.max(_NEAR_J))
        return cases((v.equals(0), -math.inf), (v < 0, math.nan), otherwise=select(v <= _NEAR_J, small, far))

    return body


@in_double
def spherical_bessel_j0(v: Scalar) -> Scalar:
    """Return sin(v) / v (10.49.3), 1 at 0 and 0 at infinity."""
    x = s.absolute(v)
    return cases((x.equals(math.inf), 0), (x.equals(0), 1), otherwise=s.sin(v) / v)


@in_double
def airy_ai(v: Scalar) -> Scalar:
    """Return the Airy function Ai: 9.4.1 for |v| < 6, 9.7.5 and 9.7.9 beyond."""
    near = v.max(-6.0).min(6.0)
    cube = near * near * near
    f, g = [1.0], [1.0]
    for k in range(1, 40):
        f.append(f[-1] / ((3 * k - 1) * (3 * k)))
        g.append(g[-1] / ((3 * k) * (3 * k + 1)))
    small = 0.35502805388781723926 * polynomial(cube, f) - 0.25881940379280679840 * near * polynomial(cube, g)
    x = s.absolute(v).max(6.0)
    zeta = x * s.sqrt(x) * (2 / 3)
    u = [1.0]
    for k in range(1, 18):
        u.append(u[-1] * (6 * k - 5) * (6 * k - 3) * (6 * k - 1) / (216 * k * (2 * k - 1)))
    root = 1.0 / (math.sqrt(math.pi) * s.sqrt(s.sqrt(x)))
    decaying = 0.5 * root * s.exp(-zeta) * polynomial(-1.0 / zeta, u)
    square = -1.0 / (zeta * zeta)
    even, odd = polynomial(square, u[0::2]), polynomial(square, u[1::2]) / zeta
    phase = zeta + math.pi / 4
    swinging = root * (s.sin(phase) * even - s.cos(phase) * odd)
    return cases((v.differs(v), v), (v > 6.0, decaying), (v < -6.0, swinging), otherwise=small)


# Orthogonal polynomials of data-dependent degree n: closed forms (DLMF 18.5)


def chebyshev(kind: str, shifted: bool = False) -> Function:
    """Make T, U, V or W of degree trunc(n): trigonometric inside [-1, 1], hyperbolic outside."""

    @in_double
    def body(v: Scalar, degree: Scalar) -> Scalar:
        x = v * 2.0 - 1.0 if shifted else v
        n = s.trunc(degree)
        odd = (n - 2.0 * s.floor(n * 0.5)).differs(0)
        size = s.absolute(x)
        past = size.max(1.0) - 1.0
        inside, outside = s.acos(size.min(1.0)), s.log1p(past + s.sqrt(past * (past + 2.0)))
        # T and U have the parity of n; V_n(-x) = (-1)^n W_n(x).
        trigonometric = {k: _chebyshev(k, n, inside, s.cos, s.sin) for k in (kind, _MIRROR[kind])}
        hyperbolic = {k: _chebyshev(k, n, outside, s.cosh, s.sinh) for k in (kind, _MIRROR[kind])}
        value = {k: select(size <= 1.0, trigonometric[k], hyperbolic[k]) for k in trigonometric}
        mirrored = value[_MIRROR[kind]]
        signed = select(x < 0, select(odd, -mirrored, mirrored), value[kind])
        return cases((x.differs(x), x), (n < 0, 0), otherwise=signed)

    return body


_MIRROR = {"T": "T", "U": "U", "V": "W", "W": "V"}


def _chebyshev(kind: str, n: Scalar, t: Scalar, c: Function, sn: Function) -> Scalar:
    """18.5.1 to 18.5.4, with the limits at x = 1 where t is 0."""
    if kind == "T":
        return c(n * t)
    half = n + 0.5
    above, below, limit = {
        "U": lambda: (sn((n + 1.0) * t), sn(t), n + 1.0),
        "V": lambda: (c(half * t), c(t * 0.5), n.like(1.0)),
        "W": lambda: (sn(half * t), sn(t * 0.5), 2.0 * n + 1.0),
    }[kind]()
    return select(t.equals(0), limit, above / below)
