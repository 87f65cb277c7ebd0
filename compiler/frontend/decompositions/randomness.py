"""Ops that draw random numbers, decomposed to `llmos.random_bits` (64 bits an element). Formulas follow torch's documentation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from llmos.compiler.frontend import philox as philox
from llmos.runtime.errors import UnsupportedError

aten = torch.ops.aten
_LOW = 0xFFFFFFFF
_DIGITS = {torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


def _bits(size: Sequence[Any]) -> Tensor:
    bits: Tensor = torch.ops.llmos.random_bits(list(size))
    return bits


def uniform(size: Sequence[Any], dtype: torch.dtype) -> Tensor:
    """Draw `dtype` numbers from [0, 1): multiples of 2^-digits, where digits is the precision of the dtype."""
    bits = _bits(size)
    if dtype == torch.float64:
        return ((bits >> 11) & (2**53 - 1)).to(dtype) * 2.0**-53
    digits = _DIGITS[dtype]
    return (((bits & _LOW) >> (32 - digits)).to(torch.float32) * 2.0**-digits).to(dtype)


def normal(size: Sequence[Any], dtype: torch.dtype) -> Tensor:
    """Draw `dtype` numbers of mean 0 and variance 1, by the Box-Muller transform of two 32-bit numbers."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    bits = _bits(size)
    radius = torch.sqrt(-2.0 * torch.log(((bits & _LOW).to(wide) + 1.0) * 2.0**-32))
    return (radius * torch.cos(((bits >> 32) & _LOW).to(wide) * (2 * math.pi * 2.0**-32))).to(dtype)


def integers(low: int, high: int, size: Sequence[Any]) -> Tensor:
    """Draw int64 numbers from [low, high): a 32-bit number scaled, or for a range of 2^31 or more a 63-bit one modulo it."""
    span = high - low
    bits = _bits(size)
    found = ((bits & _LOW) * span) >> 32 if span < 2**31 else (bits & (2**63 - 1)) % span
    return found + low


def exponential(size: Sequence[Any], dtype: torch.dtype, rate: float = 1.0) -> Tensor:
    """Draw exponential `dtype` numbers of mean 1 / rate, as -log(1 - u) / rate of a uniform u."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return (-torch.log1p(-uniform(size, wide)) / rate).to(dtype)


def _kind(dtype: torch.dtype | None, x: Tensor | None = None) -> torch.dtype:
    return dtype or (x.dtype if x is not None else torch.get_default_dtype())


def _holds(size: Sequence[Any], chance: Any, dtype: torch.dtype) -> Tensor:
    """Draw 1 with a probability of `chance`, else 0."""
    wide = torch.float64 if isinstance(chance, Tensor) and chance.dtype == torch.float64 else torch.float32
    return (uniform(size, wide) < (chance.to(wide) if isinstance(chance, Tensor) else chance)).to(dtype)


def _randint_like(x: Tensor, low: int, high: int, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return integers(low, high, x.shape).to(_kind(dtype, x))


def _normal_of(mean: Any, std: Any) -> Tensor:
    first = mean if isinstance(mean, Tensor) else std
    shape = torch.broadcast_shapes(*[each.shape for each in (mean, std) if isinstance(each, Tensor)])  # type: ignore[no-untyped-call]
    drawn: Tensor = normal(shape, first.dtype) * std + mean
    return drawn


def _multinomial(weights: Tensor, count: int, replacement: bool = False) -> Tensor:
    """Draw `count` categories for each row of [..., categories], [..., count]; without replacement by the order of weight / exponential."""
    if not replacement:
        keys = weights / exponential(weights.shape, weights.dtype).clamp(min=torch.finfo(weights.dtype).tiny)
        return keys.topk(count, -1).indices
    edges = weights.cumsum(-1)
    draws = uniform([*weights.shape[:-1], count], weights.dtype) * edges[..., -1:]
    return (edges.unsqueeze(-2) <= draws.unsqueeze(-1)).sum(-1).clamp(max=weights.shape[-1] - 1)


def _native_dropout(x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    if train is False or p == 0:
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    if p == 1:
        return torch.zeros_like(x), torch.zeros_like(x, dtype=torch.bool)
    kept = _holds(x.shape, 1.0 - p, torch.bool)
    return torch.where(kept, x * (1.0 / (1.0 - p)), 0.0).to(x.dtype), kept


def _dropout(x: Tensor, p: float, train: bool) -> Tensor:
    return _native_dropout(x, p, train)[0]


def _feature_dropout(x: Tensor, p: float, train: bool) -> Tensor:
    """Drop whole channels of x [batch, channels, ...]."""
    if not train or p == 0:
        return x.clone()
    kept = _holds([*x.shape[:2], *[1] * (x.dim() - 2)], 1.0 - p, torch.bool)
    return torch.where(kept, x / (1.0 - p) if p < 1 else torch.zeros_like(x), 0.0).to(x.dtype)


def _alpha_dropout(x: Tensor, p: float, train: bool) -> Tensor:
    """Dropout that keeps mean and variance of SELU outputs (Klambauer et al., "Self-Normalizing Neural Networks", 2017)."""
    if not train or p == 0:
        return x.clone()
    if p == 1:
        return torch.zeros_like(x)
    saturated = -1.7580993408473766
    a = ((saturated**2 * p + 1) * (1 - p)) ** -0.5
    mixed: Tensor = torch.where(_holds(x.shape, 1.0 - p, torch.bool), x, saturated) * a - a * p * saturated
    return mixed.to(x.dtype)


def _rrelu(x: Tensor, noise: Tensor, lower: float = 0.125, upper: float = 1 / 3, train: bool = False, *_: Any) -> tuple[Tensor, Tensor]:
    if not train:
        return torch.where(x >= 0, x, x * ((lower + upper) / 2)), noise.clone()
    slopes = torch.where(x > 0, torch.ones_like(x), uniform(x.shape, x.dtype) * (upper - lower) + lower)
    return x * slopes, slopes


def _refused(*_: Any, **__: Any) -> Any:
    raise UnsupportedError("Poisson and binomial numbers take a number of draws that data decides, which isn't supported")


# Random ops by overload; export's functionalization maps in-place ones to these.
TABLE: Mapping[Any, Callable[..., Any]] = {
    aten.rand.default: lambda size, *, dtype=None, **_: uniform(size, _kind(dtype)),
    aten.rand_like.default: lambda x, *, dtype=None, **_: uniform(x.shape, _kind(dtype, x)),
    aten.randn.default: lambda size, *, dtype=None, **_: normal(size, _kind(dtype)),
    aten.randn_like.default: lambda x, *, dtype=None, **_: normal(x.shape, _kind(dtype, x)),
    aten.randint.default: lambda high, size, *, dtype=torch.int64, **_: integers(0, high, size).to(dtype or torch.int64),
    aten.randint.low: lambda low, high, size, *, dtype=torch.int64, **_: integers(low, high, size).to(dtype or torch.int64),
    aten.randint_like.default: lambda x, high, **options: _randint_like(x, 0, high, **options),
    aten.randint_like.low_dtype: _randint_like,
    aten.randperm.default: lambda n, *, dtype=torch.int64, **_: torch.argsort(uniform([n], torch.float64), stable=True).to(dtype),
    aten.bernoulli.default: lambda x, **_: _holds(x.shape, x, x.dtype),
    aten.bernoulli.p: lambda x, p=0.5, **_: _holds(x.shape, p, x.dtype),
    aten.bernoulli.Tensor: lambda x, p, **_: _holds(x.shape, p, x.dtype),
    aten.multinomial.default: lambda x, count, replacement=False, **_: _multinomial(x, count, replacement),
    aten.normal.Tensor_Tensor: lambda mean, std, **_: _normal_of(mean, std),
    aten.normal.Tensor_float: lambda mean, std=1.0, **_: _normal_of(mean, std),
    aten.normal.float_Tensor: lambda mean, std, **_: _normal_of(mean, std),
    aten.normal.float_float: lambda mean, std, size, *, dtype=None, **_: normal(size, _kind(dtype)) * std + mean,
    aten.normal_functional.default: lambda x, mean=0.0, std=1.0, **_: normal(x.shape, x.dtype) * std + mean,
    aten.uniform.default: lambda x, low=0.0, high=1.0, **_: uniform(x.shape, x.dtype) * (high - low) + low,
    aten.exponential.default: lambda x, rate=1.0, **_: exponential(x.shape, x.dtype, rate),
    aten.cauchy.default: lambda x, median=0.0, sigma=1.0, **_: torch.tan((uniform(x.shape, x.dtype) - 0.5) * math.pi) * sigma + median,
    aten.geometric.default: lambda x, p, **_: torch.ceil(exponential(x.shape, x.dtype, -math.log1p(-p))).clamp(min=1),
    aten.log_normal.default: lambda x, mean=1.0, std=2.0, **_: torch.exp(normal(x.shape, x.dtype) * std + mean),
    aten.native_dropout.default: _native_dropout,
    aten.dropout.default: _dropout,
    aten.feature_dropout.default: _feature_dropout,
    aten.alpha_dropout.default: _alpha_dropout,
    aten.rrelu.default: lambda x, lower=0.125, upper=1 / 3, train=False, *_: _rrelu(x, x, lower, upper, train)[0],
    aten.rrelu_with_noise_functional.default: _rrelu,
    aten.poisson.default: _refused,
    aten.binomial.default: _refused,
}
