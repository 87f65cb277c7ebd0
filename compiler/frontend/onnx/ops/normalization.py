"""Normalizations."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from llmos.compiler.frontend.onnx.dtypes import torch_dtype, wide
from llmos.compiler.frontend.onnx.registry import NumOutputs, op
from llmos.runtime.errors import UnsupportedError


@op("BatchNormalization", since=7)
def batch_normalization(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    *,
    num_outputs_: NumOutputs,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
    training_mode: int = 0,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Lower BatchNormalization from opset 7; training mode uses batch statistics.

    It also returns running statistics, updated with weight 1 - momentum.
    Raises UnsupportedError for `spatial` 0, and for further outputs in inference.
    """
    if not spatial or (num_outputs_ > 1 and not training_mode):
        raise UnsupportedError("this form of BatchNormalization isn't supported; export the model for inference.")
    if training_mode:
        axes = (0, *range(2, x.ndim))
        x_wide = wide(x)
        batch_mean = x_wide.mean(axes)
        batch_variance = (x_wide - x_wide.mean(axes, keepdim=True)).square().mean(axes)
        y = batch_normalization(x_wide, wide(scale), wide(bias), batch_mean, batch_variance, num_outputs_=1, epsilon=epsilon)
        assert isinstance(y, torch.Tensor)
        pairs = ((mean, batch_mean), (variance, batch_variance))
        return y.to(x.dtype), *((wide(a) * momentum + b * (1 - momentum)).to(a.dtype) for a, b in pairs)
    if scale.dtype == x.dtype and mean.dtype == x.dtype:
        return F.batch_norm(x, mean, variance, scale, bias, training=False, eps=epsilon)
    shape = [1, -1] + [1] * (x.ndim - 2)
    factor = wide(scale).to(wide(mean).dtype) * torch.rsqrt(wide(variance) + epsilon)
    return ((wide(x) - wide(mean).reshape(shape)) * factor.reshape(shape) + wide(bias).reshape(shape)).to(x.dtype)


@op("InstanceNormalization", since=6)
def instance_normalization(x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, *, epsilon: float = 1e-5) -> torch.Tensor:
    """Lower InstanceNormalization of x [batch, C, spatial...] over the spatial dims; half floats in float32."""
    shape = [1, -1] + [1] * (x.ndim - 2)
    normal = _standardized(wide(x), tuple(range(2, x.ndim)), epsilon)
    return (normal * wide(scale).reshape(shape) + wide(bias).reshape(shape)).to(x.dtype)


@op("GroupNormalization", since=18)
def group_normalization_by_group(
    x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, *, num_groups: int, epsilon: float = 1e-5
) -> torch.Tensor:
    """Lower GroupNormalization of opsets 18 to 20, with one scale and bias for each group."""
    repeats = x.shape[1] // num_groups
    return group_normalization(x, scale.repeat_interleave(repeats), bias.repeat_interleave(repeats), num_groups=num_groups, epsilon=epsilon)


@op("GroupNormalization", since=21)
def group_normalization(
    x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> torch.Tensor:
    """Lower GroupNormalization from opset 21, with one scale and bias for each channel; statistics in `stash_type`."""
    grouped = x.to(torch_dtype(stash_type)).unflatten(1, (num_groups, -1))  # type: ignore[no-untyped-call]
    normal = _standardized(grouped, tuple(range(2, grouped.ndim)), epsilon).flatten(1, 2).to(x.dtype)
    shape = [1, -1] + [1] * (x.ndim - 2)
    return normal * scale.reshape(shape) + bias.reshape(shape)


@op("LayerNormalization", since=17)
def layer_normalization(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    num_outputs_: NumOutputs,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> tuple[torch.Tensor, ...] | torch.Tensor:
    """Lower LayerNormalization from `axis` on; return mean and 1/deviation as further outputs if the node has them."""
    shape = tuple(x.shape[axis % x.ndim :])
    if num_outputs_ == 1 and tuple(scale.shape) == shape:
        return F.layer_norm(x, shape, scale, bias, epsilon)
    axes = tuple(range(axis % x.ndim, x.ndim))
    wide = x.to(torch_dtype(stash_type))
    mean = wide.mean(axes, keepdim=True)
    centered = wide - mean
    inverse = torch.rsqrt((centered * centered).mean(axes, keepdim=True) + epsilon)
    normal = (centered * inverse).to(x.dtype) * scale
    return (normal if bias is None else normal + bias), mean, inverse


@op("RMSNormalization", since=23)
def rms_normalization(x: torch.Tensor, scale: torch.Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> torch.Tensor:
    """Lower RMSNormalization from `axis` on (arXiv:1910.07467); the root in `stash_type`."""
    wide = x.to(torch_dtype(stash_type))
    axes = tuple(range(axis % x.ndim, x.ndim))
    return (wide * torch.rsqrt((wide * wide).mean(axes, keepdim=True) + epsilon)).to(x.dtype) * scale


@op("LpNormalization")
def lp_normalization(x: torch.Tensor, *, axis: int = -1, p: int = 2) -> torch.Tensor:
    """Lower LpNormalization: divide by the p-norm along `axis`; a row of zeros stays zero."""
    w = wide(x)
    norm = torch.abs(w).sum(axis, keepdim=True) if p == 1 else torch.sqrt((w * w).sum(axis, keepdim=True))
    return torch.where(norm == 0, torch.zeros_like(w), w / norm).to(x.dtype)


@op("MeanVarianceNormalization")
def mean_variance_normalization(x: torch.Tensor, *, axes: tuple[int, ...] = (0, 2, 3)) -> torch.Tensor:
    """Lower MeanVarianceNormalization with the variance E[(x - E[x])²]: ONNX's formula E[x²] - E[x]² cancels for a large mean.

    The rounding error of the mean is subtracted too, since the epsilon added to the deviation is tiny: a constant input gives 0.
    """
    w = wide(x)
    centered = w - w.mean(axes, keepdim=True)
    centered = centered - centered.mean(axes, keepdim=True)
    deviation = torch.sqrt((centered * centered).mean(axes, keepdim=True))
    return (centered / (deviation + 1e-9)).to(x.dtype)


@op("LRN")
def local_response_normalization(x: torch.Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> torch.Tensor:
    """Lower LRN: normalize by the sum of squares over `size` channels around each one."""
    before = (size - 1) // 2
    w = wide(x)
    padded = F.pad(w * w, [0, 0] * (x.ndim - 2) + [before, size - 1 - before])
    total = padded.narrow(1, 0, x.shape[1])
    for offset in range(1, size):
        total = total + padded.narrow(1, offset, x.shape[1])
    return (w / (bias + alpha / size * total) ** beta).to(x.dtype)


def _standardized(x: torch.Tensor, axes: tuple[int, ...], epsilon: float) -> torch.Tensor:
    """Return (x - mean) / sqrt(variance + epsilon), with a two-pass variance. x must not be a half float."""
    centered = x - x.mean(axes, keepdim=True)
    return centered * torch.rsqrt((centered * centered).mean(axes, keepdim=True) + epsilon)
