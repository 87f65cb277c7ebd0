"""Fourier transforms under torch.export. torch's metadata functions guard on dynamic sizes; the ops here don't."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import corresponding_complex_dtype, corresponding_real_dtype
from torch.overrides import TorchFunctionMode

from llmos.compiler.frontend.decompositions.spectral import istft, stft_centered


@torch.library.custom_op("llmos::rfft", mutates_args=())
def rfft(x: Tensor) -> Tensor:
    """Return the one-sided transform of the last dimension of real numbers, complex [..., n // 2 + 1], unscaled."""
    found: Tensor = torch.fft.rfft(x)
    return found


@rfft.register_fake
def _half(x: Tensor) -> Tensor:
    return x.new_empty([*x.shape[:-1], x.shape[-1] // 2 + 1], dtype=corresponding_complex_dtype(x.dtype))


@torch.library.custom_op("llmos::fft", mutates_args=())
def fft(x: Tensor, forward: bool) -> Tensor:
    """Transform the last dimension of complex numbers, unscaled; backward with the conjugate factors if not `forward`."""
    found: Tensor = torch.fft.fft(x) if forward else torch.fft.ifft(x, norm="forward")
    return found


@fft.register_fake
def _whole(x: Tensor, forward: bool) -> Tensor:
    return x.new_empty(list(x.shape))


@torch.library.custom_op("llmos::irfft", mutates_args=())
def irfft(x: Tensor, length: int) -> Tensor:
    """Invert a one-sided transform along the last dimension to `length` real numbers, unscaled."""
    found: Tensor = torch.fft.irfft(x, length, norm="forward")
    return found


@irfft.register_fake
def _real(x: Tensor, length: int) -> Tensor:
    return x.new_empty([*x.shape[:-1], length], dtype=corresponding_real_dtype(x.dtype))


RFFT, FFT = torch.ops.llmos.rfft.default, torch.ops.llmos.fft.default
IRFFT = torch.ops.llmos.irfft.default


class SpectraOfAnySize(TorchFunctionMode):
    """While active, torch.stft, torch.istft and 1-D transforms of tensors with symbolic sizes use these ops."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        whole = _WHOLE.get(func)
        if whole is not None and _is_symbolic(args, given):
            with self:
                answer = whole(*args, **given)
            return answer if answer is not NotImplemented else func(*args, **given)
        if func in _TRANSFORMS and "out" not in given and _is_symbolic(args, given):
            return _transformed(func, *args, **given)
        return func(*args, **given)


_WHOLE: Mapping[Any, Callable[..., Any]] = MappingProxyType(
    {torch.stft: stft_centered, torch.Tensor.stft: stft_centered, torch.istft: istft, torch.Tensor.istft: istft}
)
_TRANSFORMS = (torch.fft.rfft, torch.fft.irfft, torch.fft.fft, torch.fft.ifft)


def _is_symbolic(args: Any, given: Any) -> bool:
    x = args[0] if args else given.get("input")
    return isinstance(x, Tensor) and any(isinstance(size, torch.SymInt) for size in x.shape)


def _transformed(func: Any, input: Tensor, n: Any = None, dim: int = -1, norm: str | None = None) -> Tensor:
    x = input if input.is_floating_point() or input.is_complex() else input.to(torch.float32)
    row = x.movedim(dim, -1)
    if func is torch.fft.irfft:
        return _to_real(row, 2 * (row.shape[-1] - 1) if n is None else n, norm).movedim(-1, dim)
    length = row.shape[-1] if n is None else n
    if func is not torch.fft.rfft and not x.is_complex():
        row = torch.complex(row, torch.zeros_like(row))
    row = _fitted(row, length) if n is not None else row
    found: Any = rfft(row) if func is torch.fft.rfft else fft(row, func is torch.fft.fft)
    scale = _scale(norm, length, func is torch.fft.ifft)
    return (found if scale is None else found * scale).movedim(-1, dim)  # type: ignore[no-any-return]


def _to_real(row: Tensor, length: Any, norm: str | None) -> Tensor:
    half = row if row.is_complex() else torch.complex(row, torch.zeros_like(row))
    found: Any = irfft(_fitted(half, length // 2 + 1), length)
    scale = _scale(norm, length, True)
    return found if scale is None else found * scale  # type: ignore[no-any-return]


def _fitted(row: Tensor, length: Any) -> Tensor:
    """Crop or zero-pad the last dimension; complex numbers by their parts, which torch pads without guards."""
    size = row.shape[-1]
    if length <= size:
        return row[..., :length]
    if row.is_complex():
        return torch.complex(*[torch.nn.functional.pad(part, [0, length - size]) for part in (row.real, row.imag)])
    return torch.nn.functional.pad(row, [0, length - size])


def _scale(norm: str | None, length: Any, inverse: bool) -> Any:
    """Return the scale of `norm`: "backward" scales inverse transforms, "forward" the others; None for no scale."""
    if norm == "ortho":
        return length**-0.5
    return 1 / length if inverse == (norm in (None, "backward")) else None
