"""Fourier transforms of real numbers to real numbers, as products with matrices of sines and cosines.

A spectrum is a pair of tensors, its real and its imaginary part: no tensor is complex. Other transforms are left as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

Pair = tuple[Tensor, Tensor]

# A matrix of this many rows takes 2 x 64 MiB.
MAX_LENGTH = 4096


def _fitted(x: Tensor, size: int) -> Tensor:
    """The last dimension cut or filled up with zeros."""
    missing = size - x.shape[-1]
    return torch.nn.functional.pad(x, [0, missing]) if missing > 0 else x[..., :size]


def _waves(rows: int, columns: int, length: int, dtype: torch.dtype) -> Pair:
    """cos and sin of 2 pi j k / length [rows, columns]; the angle is reduced in integers first, so that large ones stay exact."""
    turns = (torch.arange(rows).unsqueeze(1) * torch.arange(columns)) % length
    angles = turns.to(torch.float64) * (2 * math.pi / length)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _scale(norm: str | None, length: int, inverse: bool) -> float:
    """What torch.fft's `norm` asks for: "backward" divides inverse transforms, "forward" the others."""
    if norm == "ortho":
        return 1 / math.sqrt(length)
    return 1 / length if inverse == (norm in (None, "backward")) else 1.0


def _along(spectrum: Pair, dim: int, length: int, inverse: bool, scale: float) -> Pair:
    """The transform of one dimension of a spectrum."""
    real, imaginary = (_fitted(part.movedim(dim, -1), length) for part in spectrum)
    cosine, sine = _waves(length, length, length, real.dtype)
    sine = -sine if inverse else sine
    parts = real @ cosine + imaginary @ sine, imaginary @ cosine - real @ sine
    return (parts[0] * scale).movedim(-1, dim), (parts[1] * scale).movedim(-1, dim)


def _to_real(spectrum: Pair, dim: int, length: int, scale: float) -> Tensor:
    """The inverse transform of half a spectrum, whose other half is its mirror."""
    taken = length // 2 + 1
    real, imaginary = (_fitted(part.movedim(dim, -1), taken) for part in spectrum)
    cosine, sine = _waves(taken, length, length, real.dtype)
    place = torch.arange(taken)
    twice = torch.where((place == 0) | (2 * place == length), 1.0, 2.0).to(real.dtype) * scale
    return ((real * twice) @ cosine - (imaginary * twice) @ sine).movedim(-1, dim)


def _transform(x: Tensor, sizes: Sequence[int | None] | None, dims: Sequence[int] | None, norm: str | None, inverse: bool) -> Any:
    """irfftn (inverse) and hfftn: dimensions before the last as any spectrum, the last to real numbers."""
    if x.dtype.is_complex:
        return NotImplemented
    chosen = list(dims) if dims is not None else list(range(-len(sizes), 0)) if sizes is not None else list(range(x.dim()))
    given = [None if size == -1 else size for size in sizes] if sizes is not None else [None] * len(chosen)
    last = given[-1] if given[-1] is not None else 2 * (x.shape[chosen[-1]] - 1)
    lengths = [size if size is not None else x.shape[dim] for size, dim in zip(given[:-1], chosen[:-1], strict=True)]
    if not all(isinstance(size, int) and 0 < size <= MAX_LENGTH for size in (*lengths, last)):
        return NotImplemented
    real = x if x.dtype.is_floating_point else x.to(torch.float32)
    spectrum = real, torch.zeros_like(real)
    for dim, length in zip(chosen[:-1], lengths, strict=True):
        spectrum = _along(spectrum, dim, length, inverse, _scale(norm, length, inverse))
    mirrored = spectrum if inverse else (spectrum[0], -spectrum[1])
    return _to_real(mirrored, chosen[-1], last, _scale(norm, last, inverse))


def _of_one(inverse: bool) -> Callable[..., Any]:
    return lambda x, n=None, dim=-1, norm=None: _transform(x, [n], [dim], norm, inverse)


def _of_many(inverse: bool, default: Sequence[int] | None) -> Callable[..., Any]:
    return lambda x, s=None, dim=default, norm=None: _transform(x, s, dim, norm, inverse)


TABLE: dict[Any, Callable[..., Any]] = {
    aten.fft_irfft.default: _of_one(True),
    aten.fft_hfft.default: _of_one(False),
    aten.fft_irfft2.default: _of_many(True, (-2, -1)),
    aten.fft_hfft2.default: _of_many(False, (-2, -1)),
    aten.fft_irfftn.default: _of_many(True, None),
    aten.fft_hfftn.default: _of_many(False, None),
}
