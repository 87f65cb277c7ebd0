"""Short-time Fourier transforms: transforms of overlapping frames, and their inverse by overlap-add."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _window(window: Tensor | None, n_fft: int, win_length: int | None, like: Tensor) -> Tensor:
    """Center a window in a frame; the default is all ones."""
    length = n_fft if win_length is None else win_length
    given = torch.ones(length, dtype=like.real.dtype if like.is_complex() else like.dtype) if window is None else window
    before = (n_fft - length) // 2
    return torch.nn.functional.pad(given, [before, n_fft - length - before]) if length < n_fft else given


def _stft(
    x: Tensor, n_fft: int, hop_length: int | None = None, win_length: int | None = None, window: Tensor | None = None,
    normalized: bool = False, onesided: bool | None = None, return_complex: bool | None = None, align_to_window: bool | None = None,
) -> Any:  # fmt: skip
    """Transform a signal [..., n] to [..., frequencies, frames]."""
    if align_to_window:
        return NotImplemented
    hop = n_fft // 4 if hop_length is None else hop_length
    frames = x.unfold(-1, n_fft, hop) * _window(window, n_fft, win_length, x)
    half = onesided if onesided is not None else not frames.is_complex()
    transform: Callable[..., Tensor] = torch.fft.rfft if half else torch.fft.fft
    spectrum = transform(frames, norm="ortho" if normalized else "backward").transpose(-1, -2)
    return spectrum if return_complex else torch.view_as_real(spectrum)


def stft_centered(
    x: Tensor, n_fft: int, hop_length: int | None = None, win_length: int | None = None, window: Tensor | None = None, center: bool = True,
    pad_mode: str = "reflect", normalized: bool = False, onesided: bool | None = None, return_complex: bool | None = None,
    align_to_window: bool | None = None,
) -> Any:  # fmt: skip
    """Decompose aten.stft.center: `center` pads the signal by n_fft // 2 on both sides first, by `pad_mode`."""
    if center:
        rows = x.reshape(1, -1, x.shape[-1])  # the rank that every padding mode accepts
        padded = torch.nn.functional.pad(rows, [n_fft // 2, n_fft // 2], mode=pad_mode)
        x = padded.reshape(*x.shape[:-1], x.shape[-1] + 2 * (n_fft // 2))
    return _stft(x, n_fft, hop_length, win_length, window, normalized, onesided, return_complex, align_to_window)


def istft(
    x: Tensor, n_fft: int, hop_length: int | None = None, win_length: int | None = None, window: Tensor | None = None, center: bool = True,
    normalized: bool = False, onesided: bool | None = None, length: Any = None, return_complex: bool = False,
) -> Tensor:  # fmt: skip
    """Decompose aten.istft: the least-squares signal, overlap-added frames divided by the sum of their squared windows."""
    hop = n_fft // 4 if hop_length is None else hop_length
    half = onesided if onesided is not None else x.shape[-2] != n_fft
    norm = "ortho" if normalized else "backward"
    transposed = x.transpose(-1, -2)
    if return_complex:
        frames = torch.fft.ifft(transposed, norm=norm)
    else:
        frames = torch.fft.irfft(transposed if half else transposed[..., : n_fft // 2 + 1], n=n_fft, norm=norm)
    weight = _window(window, n_fft, win_length, frames)
    weight = weight.to(frames.real.dtype if frames.is_complex() else frames.dtype)
    signal = _overlapped(frames * weight, hop)
    envelope = _overlapped((weight * weight).expand(x.shape[-1], n_fft), hop)
    start = n_fft // 2 if center else 0
    whole = signal.shape[-1]
    end = start + length if length is not None else whole - n_fft // 2 if center else whole
    missing = end - whole if length is not None and end > whole else 0
    kept = signal[..., start : end - missing] / envelope[start : end - missing]
    return torch.nn.functional.pad(kept, [0, missing]) if length is not None and end > whole else kept


def _overlapped(frames: Tensor, hop: int) -> Tensor:
    """Overlap-add frames [..., count, length], which begin `hop` elements apart; return [..., n].

    Frames are split into blocks of `hop` elements. Block j of the result is the sum over k of block k of frame j - k.
    """
    count, length = frames.shape[-2:]
    blocks = -(-length // hop)
    padded = torch.nn.functional.pad(frames, [0, blocks * hop - length]) if blocks * hop > length else frames
    cut = padded.reshape(*frames.shape[:-1], blocks, hop)
    place = torch.arange(blocks)
    frame = torch.arange(count + blocks - 1).unsqueeze(1) - place
    inside = (frame >= 0) & (frame < count)
    chosen = cut[..., frame.clamp(0, count - 1), place.expand(frame.shape), :]
    summed = torch.where(inside.unsqueeze(-1), chosen, 0.0).sum(-2)
    return summed.reshape(*frames.shape[:-2], (count + blocks - 1) * hop)[..., : (count - 1) * hop + length]


def _unfold_backward(grad: Tensor, sizes: Any, dim: int, size: int, step: int) -> Tensor:
    """Add each element of the windows [..., count, ..., size] to its original position."""
    found = _overlapped(grad.movedim(dim, -2), step)
    missing = sizes[dim] - found.shape[-1]
    return torch.nn.functional.pad(found, [0, missing]).movedim(-1, dim)


TABLE: dict[Any, Callable[..., Any]] = {
    aten.stft.default: _stft,
    aten.stft.center: stft_centered,
    aten.istft.default: istft,
    aten.unfold_backward.default: _unfold_backward,
}
