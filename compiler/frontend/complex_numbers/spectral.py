"""Fourier transforms as products with matrices of sines and cosines.

A long transform of composite length n = p q is one of length p, a multiplication by twiddle factors, and one of length q (Cooley and
Tukey, 1965).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llmos.compiler.frontend.complex_numbers.pair import Pair, Rule, both
from llmos.compiler.frontend.spectra import FFT, IRFFT, RFFT
from llmos.runtime.errors import UnsupportedError

aten = torch.ops.aten

DIRECT = 512  # up to this length a transform is one product, whose matrices take 2 MiB
MAX_LENGTH = 4096  # of a transform in one product: a matrix of this many rows takes 64 MiB


def waves(rows: Any, columns: Any, length: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cos and sin of 2 pi j k / length, [rows, columns]; the angle is reduced in integers, which is exact for large j k."""
    rotations = (torch.arange(rows).unsqueeze(1) * torch.arange(columns)) % length
    angles = rotations.to(torch.float64) * (2 * math.pi / length)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _divisor(length: Any) -> int:
    """Return the largest divisor of a length up to its square root, 1 for a symbolic length."""
    if not isinstance(length, int):
        return 1
    return next(d for d in range(math.isqrt(length), 0, -1) if length % d == 0)


def _check(length: Any) -> None:
    if isinstance(length, int) and length > MAX_LENGTH:
        raise UnsupportedError(
            f"a Fourier transform of length {length}, which has no two factors of at most {MAX_LENGTH}: pad it to one that has"
        )


def _forward(z: Any) -> Any:
    """Transform the last dimension, unscaled."""
    length, divisor = z.shape[-1], _divisor(z.shape[-1])
    if not isinstance(length, int) or length <= DIRECT or divisor == 1:
        _check(length)
        cosine, sine = waves(length, length, length, z.re.dtype)
        return Pair(z.re @ cosine + z.im @ sine, z.im @ cosine - z.re @ sine)
    outer, inner = length // divisor, divisor
    columns = z.reshape(*z.shape[:-1], outer, inner).transpose(-1, -2)  # [..., inner, outer]: element j = inner * j1 + j2
    partial: Any = _forward(columns).transpose(-1, -2)  # [..., k1, j2]
    cosine, sine = waves(outer, inner, length, z.re.dtype)
    rotated = Pair(partial.re * cosine + partial.im * sine, partial.im * cosine - partial.re * sine)
    return _forward(rotated).transpose(-1, -2).reshape(z.shape)


def _along(z: Any, dim: int, forward: bool) -> Any:
    """Transform one dimension. The inverse is the conjugate of the transform of the conjugate."""
    last = z.movedim(dim, -1)
    found = _forward(last) if forward else _forward(last.conj()).conj()
    return found.movedim(-1, dim)


def _scale(normalization: int, lengths: Sequence[Any]) -> Any:
    """Return the scale: 0: none; 1: one over the square root of the number of elements; 2: one over the number."""
    count = math.prod(lengths)
    return 1.0 if normalization == 0 else 1.0 / count if normalization == 2 else count**-0.5


def c2c(x: Any, dims: Sequence[int], normalization: int, forward: bool) -> Any:
    """Lower aten._fft_c2c: transform complex numbers along `dims`, scaled by torch's `normalization` (0 none, 1 by root n, 2 by n).

    Raises UnsupportedError for a length without factors of at most MAX_LENGTH.
    """
    z = Pair(*both(x))
    for dim in dims:
        z = _along(z, dim, forward)
    scale = _scale(normalization, [x.shape[dim] for dim in dims])
    return z * scale if normalization else z


def r2c(x: Tensor, dims: Sequence[int], normalization: int, onesided: bool) -> Any:
    """Lower aten._fft_r2c: transform the last of `dims` first, one-sided if `onesided`, then the others as complex transforms.

    Raises UnsupportedError as `c2c`.
    """
    *others, last = dims
    z = _of_real(x, last, onesided)
    for dim in others:
        z = _along(z, dim, True)
    scale = _scale(normalization, [x.shape[dim] for dim in dims])
    return z * scale if normalization else z


def _of_real(x: Tensor, dim: int, onesided: bool) -> Any:
    length = x.shape[dim]
    taken = length // 2 + 1 if onesided else length
    row = x.movedim(dim, -1)
    if isinstance(length, int) and length > DIRECT and _divisor(length) > 1:
        whole = _forward(Pair(row, torch.zeros_like(row)))
        found = Pair(whole.re[..., :taken], whole.im[..., :taken])
    else:
        _check(length)
        cosine, sine = waves(length, taken, length, x.dtype)
        found = Pair(row @ cosine, -(row @ sine))
    return found.movedim(-1, dim)


def c2r(x: Any, dims: Sequence[int], normalization: int, length: Any) -> Any:
    """Lower aten._fft_c2r, the inverse of r2c: the missing half of the last dimension is the conjugate mirror of the given one.

    Return [..., length] real numbers. Raises UnsupportedError as `c2c`.
    """
    *others, last = dims
    z = Pair(*both(x))
    for dim in others:
        z = _along(z, dim, False)
    half = z.movedim(last, -1).narrow(-1, 0, length // 2 + 1)
    if isinstance(length, int) and length > DIRECT and _divisor(length) > 1:
        found = _forward(_mirrored(half, length)).re
    else:
        _check(length)
        found = _summed(half, length)
    lengths = [*[x.shape[dim] for dim in others], length]
    return (found * _scale(normalization, lengths) if normalization else found).movedim(-1, last)


def _summed(half: Any, length: Any) -> Any:
    taken = length // 2 + 1
    cosine, sine = waves(taken, length, length, half.re.dtype)
    place = torch.arange(taken)
    twice = torch.where((place == 0) | (2 * place == length), 1.0, 2.0).to(half.re.dtype)
    return (half.re * twice) @ cosine - (half.im * twice) @ sine


def _mirrored(half: Any, length: int) -> Pair:
    """Return the conjugate of the full spectrum; elements at 0 and n / 2 are taken as real."""
    tail = slice(1, (length + 1) // 2)
    re = torch.cat([half.re, half.re[..., tail].flip(-1)], -1)
    place = torch.arange(length // 2 + 1)
    im = torch.where((place == 0) | (2 * place == length), 0.0, half.im)
    return Pair(re, torch.cat([-im, im[..., tail].flip(-1)], -1))


RULES: dict[Any, Rule] = {
    aten._fft_c2c: c2c,
    aten._fft_r2c: r2c,
    aten._fft_c2r: c2r,
    RFFT: lambda x: r2c(x, [x.dim() - 1], 0, True),
    IRFFT: lambda x, length: c2r(x, [x.dim() - 1], 0, length),
    FFT: lambda x, forward: c2c(x, [x.dim() - 1], 0, forward),
}
