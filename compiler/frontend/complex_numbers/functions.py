"""Elementary functions of complex numbers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from llmos.compiler.frontend.complex_numbers.arithmetic import divide
from llmos.compiler.frontend.complex_numbers.pair import Pair, Rule

aten = torch.ops.aten


def magnitude(z: Pair) -> Tensor:
    """Return |z|, by hypot."""
    return torch.hypot(z.re, z.im)


def angle(z: Pair) -> Tensor:
    """Return the argument of z in radians, in [-π, π]."""
    return torch.atan2(z.im, z.re)


def exp(z: Pair) -> Pair:
    """Return e^z = e^re (cos im + i sin im)."""
    radius = z.re.exp()
    return Pair(_product(radius, z.im.cos()), _product(radius, z.im.sin()))


def _product(x: Tensor, y: Tensor) -> Tensor:
    """Return x y, but 0 where y is 0 even if x is infinite, as in the exponential of a real number."""
    return torch.where(y == 0, y, x * y)


def expm1(z: Pair) -> Pair:
    """Return e^z - 1 without cancellation: cos y - 1 = -2 sin²(y / 2)."""
    half = (z.im / 2).sin()
    return Pair(z.re.expm1() * z.im.cos() - 2 * half * half, z.re.exp() * z.im.sin())


def log(z: Pair) -> Pair:
    """Return log |z| + i arg z, the principal value."""
    return Pair(magnitude(z).log(), angle(z))


def log1p(z: Pair) -> Pair:
    """Return log(1 + z); the real part is log1p(|1 + z|² - 1) / 2 near 1."""
    small = z.re * (z.re + 2) + z.im * z.im
    near = 0.5 * small.log1p()
    one = z.re + 1
    return Pair(torch.where(small.abs() < 0.5, near, torch.hypot(one, z.im).log()), torch.atan2(z.im, one))


def sqrt(z: Pair) -> Pair:
    """Return the principal square root: the larger part by a square root and the other by division, which avoids cancellation."""
    larger = ((magnitude(z) + z.re.abs()) / 2).sqrt()
    other = torch.where(larger == 0, z.im, z.im / (2 * larger))
    right = z.re >= 0
    return Pair(torch.where(right, larger, other.abs()), torch.where(right, other, torch.copysign(larger, z.im)))


def sgn(z: Pair) -> Pair:
    """Return z / |z|; 0 for 0."""
    radius = magnitude(z)
    zero = radius == 0
    return Pair(torch.where(zero, z.re, z.re / radius), torch.where(zero, z.im, z.im / radius))


def sin(z: Pair) -> Pair:
    """Return sin z = sin x cosh y + i cos x sinh y."""
    return Pair(z.re.sin() * z.im.cosh(), z.re.cos() * z.im.sinh())


def cos(z: Pair) -> Pair:
    """Return cos z = cos x cosh y - i sin x sinh y."""
    return Pair(z.re.cos() * z.im.cosh(), -(z.re.sin() * z.im.sinh()))


def sinh(z: Pair) -> Pair:
    """Return sinh z = sinh x cos y + i cosh x sin y."""
    return Pair(z.re.sinh() * z.im.cos(), z.re.cosh() * z.im.sin())


def cosh(z: Pair) -> Pair:
    """Return cosh z = cosh x cos y + i sinh x sin y."""
    return Pair(z.re.cosh() * z.im.cos(), z.re.sinh() * z.im.sin())


def tanh(z: Pair) -> Pair:
    """Return tanh z = (sinh 2x + i sin 2y) / (cosh 2x + cos 2y)."""
    twice = 2 * z.re.clamp(-40, 40)  # beyond this, the real part is 1 and the hyperbolic functions overflow
    below = twice.cosh() + (2 * z.im).cos()
    return Pair(twice.sinh() / below, (2 * z.im).sin() / below)


def _times_i(z: Pair) -> Pair:
    return Pair(-z.im, z.re)


def _over_i(z: Pair) -> Pair:
    return Pair(z.im, -z.re)


def asin(z: Pair) -> Pair:
    """Return the principal arcsine (Kahan)."""
    below, above = sqrt(Pair(1 - z.re, -z.im)), sqrt(Pair(1 + z.re, z.im))
    return Pair(torch.atan2(z.re, (below * above).re), (below.conj() * above).imag.asinh())  # type: ignore[attr-defined]


def acos(z: Pair) -> Pair:
    """Return the principal arccosine (Kahan)."""
    below, above = sqrt(Pair(1 - z.re, -z.im)), sqrt(Pair(1 + z.re, z.im))
    return Pair(2 * torch.atan2(below.re, above.re), (above.conj() * below).imag.asinh())


def acosh(z: Pair) -> Pair:
    """Return the principal inverse hyperbolic cosine (Kahan)."""
    below, above = sqrt(Pair(z.re - 1, z.im)), sqrt(Pair(z.re + 1, z.im))
    return Pair((below.conj() * above).real.asinh(), 2 * torch.atan2(below.im, above.re))


def atanh(z: Pair) -> Pair:
    """Return the principal inverse hyperbolic tangent: log1p(4x / ((1 - x)² + y²)) / 4 + i atan2(2y, 1 - x² - y²) / 2."""
    x, y = z.re, z.im
    gap = (1 - x) * (1 - x) + y * y
    return Pair((4 * x / gap).log1p() / 4, torch.atan2(2 * y, (1 - x) * (1 + x) - y * y) / 2)


def sigmoid(z: Pair) -> Any:
    """Return 1 / (1 + e^-z)."""
    return divide(1, 1 + (-z).exp())


RULES: dict[Any, Rule] = {
    aten.abs: magnitude,
    aten.angle: angle,
    aten.exp: exp,
    aten.exp2: lambda z: exp(z * math.log(2)),
    aten.expm1: expm1,
    aten.log: log,
    aten.log2: lambda z: log(z) / math.log(2),
    aten.log10: lambda z: log(z) / math.log(10),
    aten.log1p: log1p,
    aten.sqrt: sqrt,
    aten.rsqrt: lambda z: divide(1, sqrt(z)),
    aten.sgn: sgn,
    aten.sin: sin,
    aten.cos: cos,
    aten.tan: lambda z: _over_i(tanh(_times_i(z))),
    aten.sinh: sinh,
    aten.cosh: cosh,
    aten.tanh: tanh,
    aten.asin: asin,
    aten.acos: acos,
    aten.atan: lambda z: _over_i(atanh(_times_i(z))),
    aten.asinh: lambda z: _over_i(asin(_times_i(z))),
    aten.acosh: acosh,
    aten.atanh: atanh,
    aten.sigmoid: sigmoid,
    aten.silu: lambda z: z * sigmoid(z),
}
