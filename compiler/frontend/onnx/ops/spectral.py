"""Fourier transforms as products with matrices of sines and cosines, for any length; efficient up to a few thousand."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from llmos.compiler.frontend.onnx.dtypes import to_torch, torch_dtype
from llmos.compiler.frontend.onnx.registry import Floats, Ints, op
from llmos.runtime.errors import UnsupportedError

# A matrix of this many rows takes 2 x 64 MiB.
MAX_LENGTH = 4096


@op("DFT", since=17)
def dft_by_attribute(x: torch.Tensor, length: Ints | None = None, *, axis: int = 1, inverse: int = 0, onesided: int = 0) -> torch.Tensor:
    """Lower DFT of opsets 17 to 19, with `axis` as an attribute; raises as `dft`."""
    return _transform(x, axis, length[0] if length else None, bool(inverse), bool(onesided))


@op("DFT", since=20)
def dft(x: torch.Tensor, length: Ints | None = None, axis: Ints | None = None, *, inverse: int = 0, onesided: int = 0) -> torch.Tensor:
    """Lower DFT from opset 20, with the axis as an input: x [..., 1 or 2] to [..., 1 or 2], zero-padded or truncated to `length`.

    Raises UnsupportedError for a dynamic length, or one above MAX_LENGTH.
    """
    return _transform(x, axis[0] if axis else -2, length[0] if length else None, bool(inverse), bool(onesided))


@op("STFT", since=17)
def stft(
    signal: torch.Tensor, step: Ints, window: torch.Tensor | None = None, length: Ints | None = None, *, onesided: int = 1
) -> torch.Tensor:
    """Lower STFT: transform frames every `step` samples, of the window's length or `length`; return [batch, frames, frequencies, 2].

    Raises UnsupportedError for dynamic lengths of signal, frame or step.
    """
    width = length[0] if length else window.shape[0] if window is not None else None
    if not isinstance(width, int) or not isinstance(step[0], int) or not isinstance(signal.shape[1], int):
        raise UnsupportedError("STFT needs static lengths of signal, frame and step; fix the dimension (--dynamic name=size).")
    count = 1 + (signal.shape[1] - width) // step[0]
    places = np.arange(count)[:, None] * step[0] + np.arange(width)
    frames = signal.index_select(1, to_torch(places.reshape(-1))).reshape(signal.shape[0], count, width, *signal.shape[2:])
    if frames.ndim == 3:
        frames = frames.unsqueeze(-1)
    if window is not None:
        frames = frames * window.reshape(-1, 1)
    return _transform(frames, 2, None, False, bool(onesided))


@op("MelWeightMatrix", since=17)
def mel_weight_matrix(
    num_bins: Ints, length: Ints, rate: Ints, lowest_hz: Floats, highest_hz: Floats, *, output_datatype: int = 1
) -> torch.Tensor:
    """Lower MelWeightMatrix: return [length // 2 + 1, num_bins].

    Its filters are triangular and evenly spaced on the mel scale 2595 log10(1 + f / 700).
    """
    edges = 2595 * np.log10(1 + np.array([lowest_hz[0], highest_hz[0]]) / 700)
    mels = edges[0] + np.arange(num_bins[0] + 2) * (edges[1] - edges[0]) / (num_bins[0] + 2)
    places = ((length[0] + 1) * 700 * (10 ** (mels / 2595) - 1) // rate[0]).astype(np.int64)
    frequency = np.arange(length[0] // 2 + 1)[:, None]
    low, centre, high = places[:-2], places[1:-1], places[2:]
    rising, falling = (np.maximum(width, 1) for width in (centre - low, high - centre))
    up = np.where((frequency >= low) & (frequency < centre), (frequency - low) / rising, 0.0)
    down = np.where((frequency > centre) & (frequency < high), (high - frequency) / falling, 0.0)
    return to_torch(up + down + (frequency == centre)).to(torch_dtype(output_datatype))


def _transform(x: torch.Tensor, axis: int, length: int | None, inverse: bool, onesided: bool) -> torch.Tensor:
    """Transform `axis` of x [..., 1 or 2] (real, or real and imaginary part), zero-padded or truncated to `length`."""
    axis = axis % x.ndim
    size = x.shape[axis]
    if not isinstance(size, int) or (length is not None and not isinstance(length, int)):
        raise UnsupportedError("DFT needs a static length of its axis; fix the dimension (--dynamic name=size).")
    total = length if length is not None else 2 * (size - 1) if inverse and onesided else size
    if total > MAX_LENGTH:
        raise UnsupportedError(f"DFT of {total} points isn't supported, it is computed as a matrix product; up to {MAX_LENGTH} are.")
    taken = total // 2 + 1 if inverse and onesided else total
    parts = [_fitted(part.movedim(axis, -1), taken) for part in x.unbind(-1)]
    cosine, sine = _matrices(taken, total, inverse, onesided, x.dtype)
    real = parts[0] @ cosine
    imaginary = -(parts[0] @ sine)
    if len(parts) == 2:
        real, imaginary = real + parts[1] @ sine, imaginary + parts[1] @ cosine
    outputs = [real] if inverse and onesided else [real, imaginary]
    return torch.stack([part.movedim(-1, axis) for part in outputs], -1)


def _fitted(x: torch.Tensor, size: int) -> torch.Tensor:
    missing = size - x.shape[-1]
    return x if missing == 0 else x.narrow(-1, 0, size) if missing < 0 else F.pad(x, [0, missing])


def _matrices(taken: int, total: int, inverse: bool, onesided: bool, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and sin of 2 pi j k / total, [inputs j, outputs k]; the angle is reduced in integers, which is exact."""
    columns = total // 2 + 1 if onesided and not inverse else total
    angles = 2 * np.pi * ((np.arange(taken)[:, None] * np.arange(columns)) % total) / total
    factor = np.full((taken, 1), 1 / total if inverse else 1.0)
    if inverse and onesided:
        # The other half of the spectrum is the conjugate mirror of this one.
        factor[1 : (total + 1) // 2] *= 2
    sign = -1 if inverse else 1
    kind = np.float64 if dtype == torch.float64 else np.float32
    cosine, sine = (to_torch((factor * table).astype(kind)) for table in (np.cos(angles), sign * np.sin(angles)))
    return cosine.to(dtype), sine.to(dtype)
