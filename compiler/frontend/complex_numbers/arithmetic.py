"""Sums, products, quotients, comparisons and conversions of complex numbers."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llmos.compiler.frontend.complex_numbers.pair import Pair, Rule, both, common, parts

aten = torch.ops.aten


def add(x: Any, y: Any, *, alpha: Any = 1) -> Pair:
    """Return x + alpha y; one operand may be real, or a number."""
    return _sum(x, y if alpha == 1 else multiply(y, alpha), operator.add)


def subtract(x: Any, y: Any, *, alpha: Any = 1) -> Pair:
    """Return x - alpha y; one operand may be real, or a number."""
    return _sum(x, y if alpha == 1 else multiply(y, alpha), operator.sub)


def _sum(x: Any, y: Any, combine: Callable[[Any, Any], Any]) -> Pair:
    x, y = common(x, y)
    (a, b), (c, d) = parts(x), parts(y)
    re = combine(a, c)
    im = combine(0 if b is None else b, d) if d is not None else b
    return paired(re, im)


def paired(re: Any, im: Any) -> Pair:
    """Make a Pair whose parts are broadcast to one shape."""
    re = re if isinstance(re, Tensor) else torch.full_like(im, re)
    im = torch.zeros_like(re) if im is None else im if isinstance(im, Tensor) else torch.full_like(re, im)
    if re.shape != im.shape:
        re, im = torch.broadcast_tensors(re, im)  # type: ignore[no-untyped-call]
    return Pair(re, im)


def multiply(x: Any, y: Any) -> Any:
    """Return x y; the product of two real operands is real."""
    x, y = common(x, y)
    (a, b), (c, d) = parts(x), parts(y)
    if b is None and d is None:
        return a * c
    if b is None or d is None:
        return paired(a * c, (a * d if b is None else b * c))
    return Pair(a * c - b * d, a * d + b * c)


def divide(x: Any, y: Any, *, rounding_mode: str | None = None) -> Any:
    """Return x / y, with the divisor scaled to a largest part of 1, so that its square neither overflows nor underflows."""
    if rounding_mode is not None:
        return NotImplemented
    x, y = common(x, y)
    (a, b), (c, d) = parts(x), parts(y)
    if d is None:
        return Pair(a / c, b / c)
    if not isinstance(c, Tensor):
        return multiply(x, 1 / complex(c, d))
    scale = torch.maximum(c.abs(), d.abs())
    c, d = c / scale, d / scale
    square = (c * c + d * d) * scale
    if b is None:
        return paired(a * c / square, -a * d / square)
    return Pair((a * c + b * d) / square, (b * c - a * d) / square)


def power(x: Any, y: Any) -> Any:
    """Return x^y = exp(y log x); some constant exponents are exact. 0^y is 1 for y = 0, else 0."""
    if isinstance(y, int | float | complex) and y in _EXACT_POWERS:
        return _EXACT_POWERS[y](x)
    x, y = common(x, y)
    if not isinstance(x, Tensor):
        like = parts(y)[0]
        x = Pair(torch.full_like(like, complex(x).real), torch.full_like(like, complex(x).imag))
    base = Pair(*both(x))
    found = torch.exp(multiply(torch.log(base), y))
    zero = (base.re == 0) & (base.im == 0)
    exponent, rotation = both(y, base.re)
    at_zero = torch.where((exponent == 0) & (rotation == 0), 1.0, 0.0).to(base.re.dtype)
    re, im = both(found)
    return Pair(torch.where(zero, at_zero, re), torch.where(zero, 0.0, im))


_EXACT_POWERS: dict[complex, Callable[[Any], Any]] = {
    0: torch.ones_like,
    1: lambda x: x,
    2: lambda x: x * x,
    3: lambda x: x * x * x,
    -1: lambda x: divide(1, x),
    0.5: lambda x: x.sqrt(),
}


def equal(x: Any, y: Any) -> Tensor:
    """Return whether both parts are equal, as bool."""
    x, y = common(x, y)
    a, c = parts(x)[0], parts(y)[0]
    like = a if isinstance(a, Tensor) else c
    (re, im), (other_re, other_im) = both(x, like), both(y, like)
    return torch.logical_and(re == other_re, im == other_im)


def convert(x: Any, *args: Any, **kwargs: Any) -> Any:
    """Lower aten._to_copy to a complex dtype, between complex dtypes, or to a real dtype, which drops the imaginary part."""
    dtype = kwargs.get("dtype") or x.dtype
    if not dtype.is_complex:
        return x.re.to(dtype)
    part = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}[dtype]
    re, im = both(x)
    return Pair(re.to(part, copy=True), im.to(part, copy=True))


def _nonzero(x: Any) -> Tensor:
    re, im = parts(x)
    return torch.ne(re, 0) if im is None else torch.logical_or(re != 0, im != 0)


def _of_truth(op: Any) -> Rule:
    return lambda *operands: op(*[_nonzero(each) for each in operands])


def _either(op: Any) -> Rule:
    return lambda x: op(x.re) | op(x.im)


RULES: dict[Any, Rule] = {
    aten.add: add,
    aten.sub: subtract,
    aten.rsub: lambda x, y, alpha=1: subtract(y, x, alpha=alpha),
    aten.mul: multiply,
    aten.div: divide,
    aten.pow: power,
    aten.neg: lambda x: Pair(-x.re, -x.im),
    aten._neg_view: lambda x: Pair(-x.re, -x.im),
    aten.reciprocal: lambda x: divide(1, x),
    aten.square: lambda x: x * x,
    aten.eq: equal,
    aten.ne: lambda x, y: ~equal(x, y),
    aten.addcmul: lambda x, y, z, value=1: x + y * z * value,
    aten.addcdiv: lambda x, y, z, value=1: x + y / z * value,
    aten.lerp: lambda x, y, weight: x + weight * (y - x),
    aten._conj: lambda x: Pair(x.re, -x.im),
    aten._conj_physical: lambda x: Pair(x.re, -x.im),
    aten.conj_physical: lambda x: Pair(x.re, -x.im),
    aten.resolve_conj: lambda x: x,
    aten.resolve_neg: lambda x: x,
    aten.real: lambda x: x.re,
    aten.imag: lambda x: x.im,
    aten._to_copy: convert,
    aten.view_as_real: lambda x: torch.stack([x.re, x.im], -1),
    aten.view_as_real_copy: lambda x: torch.stack([x.re, x.im], -1),
    aten.view_as_complex: lambda x: Pair(x[..., 0], x[..., 1]),
    aten.view_as_complex_copy: lambda x: Pair(x[..., 0], x[..., 1]),
    aten.complex: lambda re, im: paired(*common(re, im)),
    aten.polar: lambda radius, angle: paired(radius * angle.cos(), radius * angle.sin()),
    aten.logical_not: _of_truth(torch.logical_not),
    aten.logical_and: _of_truth(torch.logical_and),
    aten.logical_or: _of_truth(torch.logical_or),
    aten.logical_xor: _of_truth(torch.logical_xor),
    aten.any: lambda x, *args, **kwargs: _nonzero(x).any(*args, **kwargs),
    aten.all: lambda x, *args, **kwargs: _nonzero(x).all(*args, **kwargs),
    aten.count_nonzero: lambda x, *args, **kwargs: _nonzero(x).to(torch.int64).sum(*args, **kwargs),
    aten.isnan: _either(torch.isnan),
    aten.isinf: _either(torch.isinf),
    aten.isfinite: lambda x: torch.isfinite(x.re) & torch.isfinite(x.im),
}
