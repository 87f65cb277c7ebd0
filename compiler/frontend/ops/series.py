"""Functions with a data-dependent number of terms, one loop for each element: orthogonal polynomials, incomplete gamma, Hurwitz zeta.

Recurrences and series of NIST DLMF, by section.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import Builder, Meta, Tensor
from llmos.compiler.frontend.ops import special
from llmos.compiler.frontend.ops.loops import Loops, each_element
from llmos.compiler.frontend.scalars import Scalar, select

# (n, x, P_n, P_{n-1}) to P_{n+1}, and P_1; P_0 is 1 (18.9.1, 18.9.2)
Recurrence = tuple[Callable[[Scalar, Scalar, Scalar, Scalar], Scalar], Callable[[Scalar], Scalar]]

_FAMILIES: dict[str, Recurrence] = {
    "hermite_polynomial_h": (lambda n, x, p, q: 2.0 * x * p - 2.0 * n * q, lambda x: 2.0 * x),
    "hermite_polynomial_he": (lambda n, x, p, q: x * p - n * q, lambda x: x),
    "laguerre_polynomial_l": (lambda n, x, p, q: ((2.0 * n + 1.0 - x) * p - n * q) / (n + 1.0), lambda x: 1.0 - x),
    "legendre_polynomial_p": (lambda n, x, p, q: ((2.0 * n + 1.0) * x * p - n * q) / (n + 1.0), lambda x: x),
}


def polynomial(family: str) -> Callable[..., Tensor]:
    """Make the lowering of an orthogonal polynomial of degree trunc(n) at x; 0 for a negative degree."""
    step, first = _FAMILIES[family]

    def body(loops: Loops, x: Scalar, degree: Scalar) -> None:
        n = s.trunc(degree)
        loops.set("w", [0], select(n < 0, x.like(0.0), select(n.equals(0), x.like(1.0), first(x))))
        loops.set("w", [1], 1.0)

        def grow(k: Scalar) -> None:
            new = step(k.to(torch.float64), x, loops.get("w", 0), loops.get("w", 1))
            loops.set("w", [1], loops.get("w", 0))
            loops.set("w", [0], new)

        loops.loop(1, n.max(1.0).min(_MOST_TERMS).to(torch.int64), grow)

    return _of_two(body)


_MOST_TERMS = 1e6


def _of_two(body: Callable[..., None]) -> Callable[..., Tensor]:
    def lower(b: Builder, result: Meta, x: Any, y: Any) -> Tensor:
        tensors = [v if isinstance(v, Tensor) else b.full((), torch.float64, float(v)) for v in (x, y)]
        return each_element(b, result.shape, result.dtype, tensors, body)

    return lower


def incomplete_gamma(upper: bool) -> Callable[..., Tensor]:
    """Make aten.igamma P(a, x) or, if `upper`, igammac Q(a, x) = 1 - P.

    Both are the series 8.11.4 if x < a + 1, else the continued fraction 8.9.2.
    """

    def body(loops: Loops, a: Scalar, x: Scalar) -> None:
        series = x < a + 1.0
        size = s.absolute(x).min(1e9) + s.absolute(a).min(1e9)
        terms = (100.0 + 10.0 * s.sqrt(size)).to(torch.int64)
        loops.set("w", [1], 1.0)  # the term
        loops.set("w", [2], 1.0)  # the sum

        def add(k: Scalar) -> None:
            loops.set("w", [1], loops.get("w", 1) * x / (a + k.to(torch.float64)))
            loops.add("w", [2], loops.get("w", 1))

        loops.loop(1, select(series, terms, terms.like(1)), add)
        loops.set("w", [3], 0.0)

        def fraction(k: Scalar) -> None:
            n = (terms - k).to(torch.float64)
            loops.set("w", [3], n * (a - n) / (x - a + 2.0 * n + 1.0 + loops.get("w", 3)))

        loops.loop(0, select(series, terms.like(0), terms), fraction)
        scale = s.exp(a * s.log(x) - x - special.lgamma(a))
        lower = scale * loops.get("w", 2) / a
        higher = scale / (x - a + 1.0 + loops.get("w", 3))
        value = select(series, 1.0 - lower, higher) if upper else select(series, lower, 1.0 - higher)
        loops.set("w", [0], _gamma_edges(a, x, value, upper))

    return _of_two(body)


def _gamma_edges(a: Scalar, x: Scalar, value: Scalar, upper: bool) -> Scalar:
    """Return torch's results at zero, infinity and outside of the domain."""
    at_zero, at_infinity = (1.0, 0.0) if upper else (0.0, 1.0)
    nothing = (a < 0) | (x < 0) | (a.equals(0) & x.equals(0)) | (a.equals(math.inf) & x.equals(math.inf)) | a.differs(a) | x.differs(x)
    return special.cases(
        (nothing, math.nan), (a.equals(0), at_infinity), (x.equals(0) | a.equals(math.inf), at_zero), (x.equals(math.inf), at_infinity),
        otherwise=value,
    )  # fmt: skip


def zeta(loops: Loops, x: Scalar, q: Scalar) -> None:
    """Compute the Hurwitz zeta ζ(x, q) by Euler-Maclaurin summation (25.11.5) from the first q + n above 9; q < 0 needs an integer x."""
    count = (10.0 - q).max(0.0).min(_MOST_TERMS)
    steps = s.ceil(count).max(10.0)
    loops.set("w", [1], 0.0)

    def add(k: Scalar) -> None:
        base = q + k.to(torch.float64)
        loops.add("w", [1], _power(base, -x))

    loops.loop(0, steps.to(torch.int64), add)
    y = q + steps
    tail = _power(y, 1.0 - x) / (x - 1.0) + 0.5 * _power(y, -x)
    factor = x * _power(y, -x - 1.0)
    for k, bernoulli in enumerate((1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6), 1):
        tail = tail + factor * (bernoulli / math.factorial(2 * k))
        factor = factor * (x + float(2 * k - 1)) * (x + float(2 * k)) / (y * y)
    undefined = (x < 1.0) | (x.differs(x)) | q.differs(q) | ((q < 0) & ~special.is_integer(x))
    value = special.cases(
        (undefined, math.nan), (x.equals(1.0), math.inf), ((q <= 0) & special.is_integer(q), math.inf), otherwise=loops.get("w", 1) + tail
    )
    loops.set("w", [0], value)


def _power(base: Scalar, exponent: Scalar) -> Scalar:
    """Return |base| ** exponent with the sign of base ** exponent for an integer exponent."""
    odd = (exponent - 2.0 * s.floor(exponent * 0.5)).differs(0)
    size = s.exp(exponent * s.log(s.absolute(base)))
    return select((base < 0) & odd, -size, size)


def table() -> dict[str, Callable[..., Tensor]]:
    """Return the lowerings by overload names, separated by spaces."""
    named = {f"special_{name}.default special_{name}.x_scalar special_{name}.n_scalar": polynomial(name) for name in _FAMILIES}
    zetas = "special_zeta.default special_zeta.self_scalar special_zeta.other_scalar"
    gammas = {"igamma.default": incomplete_gamma(False), "igammac.default": incomplete_gamma(True)}
    return {**named, **gammas, zetas: _of_two(zeta)}
