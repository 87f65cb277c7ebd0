"""Normalizations that return their statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _batch_statistics(x: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """Return mean and biased variance [channels], and the shape that broadcasts them over x; x must not be a half float."""
    over = [0, *range(2, x.dim())]
    mean = x.mean(over, keepdim=True)
    variance = (x - mean).square().mean(over)
    return mean.reshape(-1), variance, [1, -1, *[1] * (x.dim() - 2)]


def _batch_norm_with_statistics(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, variance: Tensor | None, training: bool, momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """Return (y, saved mean, saved 1 / sqrt(variance + eps), new running mean, new running variance)."""
    kind, x = x.dtype, _wide(x)
    if training:
        average, spread, shape = _batch_statistics(x)
        count = x.numel() // x.shape[1]
        new_mean = None if mean is None else ((1 - momentum) * _wide(mean) + momentum * average).to(mean.dtype)
        unbiased = spread * (count / (count - 1)) if isinstance(count, int) and count > 1 else spread * count / (count - 1)
        new_variance = None if variance is None else ((1 - momentum) * _wide(variance) + momentum * unbiased).to(variance.dtype)
    else:
        assert mean is not None and variance is not None
        average, spread, new_mean, new_variance = _wide(mean), _wide(variance), mean, variance
        shape = [1, -1, *[1] * (x.dim() - 2)]
    scale = torch.rsqrt(spread + eps)
    y = (x - average.reshape(shape)) * scale.reshape(shape)
    y = y * weight.reshape(shape) if weight is not None else y
    y = y + bias.reshape(shape) if bias is not None else y
    saved = (average, scale) if training else (x.new_zeros([0]), x.new_zeros([0]))
    return y.to(kind), saved[0].to(kind), saved[1].to(kind), new_mean, new_variance


def _functional_batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, training: bool, momentum: float, eps: float
) -> tuple[Any, ...]:
    return _batch_norm_with_statistics(x, weight, bias, mean, variance, training, momentum, eps)


def _batch_norm_without_state(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, training: bool, momentum: float, eps: float
) -> tuple[Any, ...]:
    return _batch_norm_with_statistics(x, weight, bias, None, None, training, momentum, eps)[:3]


TABLE: dict[Any, Callable[..., Any]] = {
    aten._native_batch_norm_legit_functional.default: _functional_batch_norm,
    aten._native_batch_norm_legit.no_stats: _batch_norm_without_state,
}
