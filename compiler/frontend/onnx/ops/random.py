"""Ops that draw random numbers. Their `seed` attributes are ignored: the program's seed determines the numbers (seeding.py)."""

from __future__ import annotations

import onnx
import torch

from llmos.compiler.frontend.onnx.dtypes import torch_dtype
from llmos.compiler.frontend.onnx.registry import op


def _of(dtype: int | None, x: torch.Tensor | None = None) -> torch.dtype:
    return torch_dtype(dtype) if dtype else x.dtype if x is not None else torch.float32


@op("RandomUniform")
def random_uniform(
    *, shape: tuple[int, ...], dtype: int = onnx.TensorProto.FLOAT, high: float = 1.0, low: float = 0.0, seed: float | None = None
) -> torch.Tensor:
    """Lower RandomUniform from [low, high), of `dtype` (float32)."""
    return torch.rand(shape, dtype=_of(dtype)) * (high - low) + low


@op("RandomUniformLike")
def random_uniform_like(
    x: torch.Tensor, *, dtype: int | None = None, high: float = 1.0, low: float = 0.0, seed: float | None = None
) -> torch.Tensor:
    """Lower RandomUniformLike from [low, high), of `dtype` or that of x."""
    return torch.rand(x.shape, dtype=_of(dtype, x)) * (high - low) + low


@op("RandomNormal")
def random_normal(
    *, shape: tuple[int, ...], dtype: int = onnx.TensorProto.FLOAT, mean: float = 0.0, scale: float = 1.0, seed: float | None = None
) -> torch.Tensor:
    """Lower RandomNormal of `mean` and deviation `scale`, of `dtype` (float32)."""
    return torch.randn(shape, dtype=_of(dtype)) * scale + mean


@op("RandomNormalLike")
def random_normal_like(
    x: torch.Tensor, *, dtype: int | None = None, mean: float = 0.0, scale: float = 1.0, seed: float | None = None
) -> torch.Tensor:
    """Lower RandomNormalLike of `mean` and deviation `scale`, of `dtype` or that of x."""
    return torch.randn(x.shape, dtype=_of(dtype, x)) * scale + mean


@op("Bernoulli")
def bernoulli(x: torch.Tensor, *, dtype: int | None = None, seed: float | None = None) -> torch.Tensor:
    """Lower Bernoulli: 1 with probability x, clamped to [0, 1], of `dtype` or that of x."""
    return torch.bernoulli(x.clamp(0.0, 1.0)).to(_of(dtype, x))


@op("Multinomial")
def multinomial(x: torch.Tensor, *, dtype: int = onnx.TensorProto.INT32, sample_size: int = 1, seed: float | None = None) -> torch.Tensor:
    """Lower Multinomial: draw samples with replacement, [batch, sample_size]; x [batch, classes] holds log weights."""
    return torch.multinomial(x.softmax(-1), sample_size, replacement=True).to(_of(dtype))
