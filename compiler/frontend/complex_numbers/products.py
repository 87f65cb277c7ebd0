"""Contractions and reductions of complex numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmos.compiler.frontend.complex_numbers.functions import magnitude
from llmos.compiler.frontend.complex_numbers.pair import Pair, Rule, common, parts
from llmos.runtime.errors import UnsupportedError

aten = torch.ops.aten

MAX_FACTORS = 64  # of a product along a dimension, which is unrolled


def _product_of(op: Any) -> Rule:
    """Make the rule of a bilinear op: four real ops, two if a factor is real."""

    def rule(x: Any, y: Any, **kwargs: Any) -> Pair:
        x, y = common(x, y)
        (a, b), (c, d) = parts(x), parts(y)
        re = op(a, c, **kwargs)
        if b is None:
            return Pair(re, op(a, d, **kwargs))
        if d is None:
            return Pair(re, op(b, c, **kwargs))
        return Pair(re - op(b, d, **kwargs), op(a, d, **kwargs) + op(b, c, **kwargs))

    return rule


def _added(op: Any) -> Rule:
    """Make the rule of addmm and similar ops."""
    return lambda x, y, z, *, beta=1, alpha=1: beta * x + alpha * op(y, z)


def _factors(x: Any, dim: int) -> list[Any]:
    size = x.shape[dim]
    if not isinstance(size, int) or size > MAX_FACTORS:
        raise UnsupportedError(f"a product of complex numbers along a dimension of size {size}; sizes up to {MAX_FACTORS} are supported")
    return [x.select(dim, i) for i in range(size)]


def prod(x: Any, dim: int | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Any:
    """Lower aten.prod along `dim`, or over all elements. Raises UnsupportedError for a symbolic size, or one above MAX_FACTORS."""
    if dtype is not None:
        x = x.to(dtype)
    if dim is None:
        x, dim = x.reshape(-1), 0
    if x.dim() == 0:
        return x.clone()
    product = torch.ones_like(x.sum(dim))
    for factor in _factors(x, dim):
        product = product * factor
    return product.unsqueeze(dim) if keepdim else product


def cumprod(x: Any, dim: int, *, dtype: torch.dtype | None = None) -> Any:
    """Lower aten.cumprod along `dim`. Raises UnsupportedError for a symbolic size, or one above MAX_FACTORS."""
    if dtype is not None:
        x = x.to(dtype)
    if x.dim() == 0:
        return x.clone()
    products: list[Any] = []
    for factor in _factors(x, dim):
        products.append(products[-1] * factor if products else factor)
    return torch.stack(products, dim)


def _variance(x: Pair, *args: Any, **kwargs: Any) -> Any:
    return torch.var(x.re, *args, **kwargs) + torch.var(x.im, *args, **kwargs)


def _norm(op: Any) -> Rule:
    def rule(x: Pair, *args: Any, **kwargs: Any) -> Any:
        dtype = kwargs.pop("dtype", None)
        z: Any = x if dtype is None else x.to(dtype)
        return op(magnitude(z), *args, **kwargs)

    return rule


def _convolution(x: Any, weight: Any, bias: Any, *args: Any) -> Pair:
    """Apply convolution as a product, then add the bias."""

    def convolve(a: Tensor, b: Tensor) -> Any:
        return aten.convolution.default(a, b, None, *args)

    found: Pair = _product_of(convolve)(x, weight)
    if bias is None:
        return found
    re, im = parts(bias)
    shape = [1, -1, *[1] * (found.dim() - 2)]
    return Pair(found.re + re.reshape(shape), found.im if im is None else found.im + im.reshape(shape))


RULES: dict[Any, Rule] = {
    **{op: _product_of(op) for op in (aten.mm, aten.bmm, aten.mv, aten.dot)},
    aten.vdot: lambda x, y: aten.dot(x.conj(), y),
    aten.addmm: _added(aten.mm),
    aten.addmv: _added(aten.mv),
    aten.baddbmm: _added(aten.bmm),
    aten.addbmm: lambda x, y, z, *, beta=1, alpha=1: beta * x + alpha * aten.bmm(y, z).sum(0),
    aten.addr: lambda x, y, z, *, beta=1, alpha=1: beta * x + alpha * (y.unsqueeze(1) * z.unsqueeze(0)),
    aten.convolution: _convolution,
    aten.prod: prod,
    aten.cumprod: cumprod,
    aten.var: _variance,
    aten.std: lambda x, *args, **kwargs: _variance(x, *args, **kwargs).sqrt(),
    aten.linalg_vector_norm: _norm(aten.linalg_vector_norm),
    aten.norm: _norm(aten.norm),
}
