"""Resize and Upsample: one interpolation matrix (or one gather) per axis, built from ONNX's coordinate rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llmos.compiler.frontend.onnx.dtypes import to_torch
from llmos.compiler.frontend.onnx.registry import Floats, Ints, Known, Value, op
from llmos.compiler.frontend.onnx.values import Host
from llmos.runtime.errors import UnsupportedError

MAX_LENGTH = 2**20


@dataclass(frozen=True)
class Resampling:
    """How output positions map to input positions, and how values in between are made."""

    mode: str
    coordinates: str
    nearest: str = "round_prefer_floor"
    antialias: bool = False
    cubic: float = -0.75
    exclude_outside: bool = False
    extrapolation: float = 0.0


@op("Upsample", since=9)
def upsample(x: torch.Tensor, scales: Floats, *, mode: str = "nearest") -> torch.Tensor:
    return _resize(x, scales, None, None, None, Resampling(mode, "asymmetric", "floor"))


@op("Upsample", since=7)
def upsample_by_attribute(x: torch.Tensor, *, scales: tuple[float, ...], mode: str = "nearest") -> torch.Tensor:
    return upsample(x, scales, mode=mode)


@op("Resize", since=10)
def resize_10(x: torch.Tensor, scales: Floats, *, mode: str = "nearest") -> torch.Tensor:
    return _resize(x, scales, None, None, None, Resampling(mode, "asymmetric", "floor"))


@op("Resize", since=11)
def resize(
    x: torch.Tensor,
    roi: Known = None,
    scales: Known = None,
    sizes: Ints | None = None,
    *,
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    antialias: int = 0,
    axes: tuple[int, ...] | None = None,
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
) -> torch.Tensor:
    how = Resampling(
        mode, coordinate_transformation_mode, nearest_mode, bool(antialias), cubic_coeff_a, bool(exclude_outside), extrapolation_value
    )
    if sizes and keep_aspect_ratio_policy != "stretch":
        sizes = _kept_aspect(x, sizes, axes, keep_aspect_ratio_policy)
    factors = tuple(float(item) for item in scales.array.reshape(-1)) if isinstance(scales, Host) and scales.array.size else None
    if factors is None and not sizes:
        raise UnsupportedError("Resize with scales computed from data isn't supported.")
    return _resize(x, factors, sizes or None, axes, roi, how)


def _kept_aspect(x: torch.Tensor, sizes: Sequence[int], axes: Sequence[int] | None, policy: str) -> tuple[int, ...]:
    """One scale for all axes: the smallest of the asked ones (not_larger), or the largest."""
    chosen = axes if axes is not None else range(x.ndim)
    ratios = [size / x.shape[axis] for size, axis in zip(sizes, chosen, strict=True)]
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    return tuple(int(np.floor(scale * x.shape[axis] + 0.5)) for axis in chosen)


def _resize(
    x: torch.Tensor, scales: Sequence[float] | None, sizes: Sequence[Any] | None, axes: Sequence[int] | None, roi: Value, how: Resampling
) -> torch.Tensor:
    chosen = [axis % x.ndim for axis in (axes if axes is not None else range(x.ndim))]
    dtype = x.dtype
    for place, axis in enumerate(chosen):
        scale = scales[place] if scales is not None else None
        size = sizes[place] if sizes is not None else None
        bounds = _roi(roi, place, len(chosen)) if how.coordinates == "tf_crop_and_resize" else (0.0, 1.0)
        x = _resize_axis(x, axis, scale, size, bounds, how)
    return x.to(dtype)


def _roi(roi: Value, place: int, count: int) -> tuple[float, float]:
    if not isinstance(roi, Host):
        raise UnsupportedError("Resize needs a constant roi for tf_crop_and_resize.")
    values = roi.array.reshape(-1)
    return float(values[place]), float(values[place + count])


def _resize_axis(x: torch.Tensor, axis: int, scale: float | None, size: Any, bounds: tuple[float, float], how: Resampling) -> torch.Tensor:
    n = x.shape[axis]
    if (scale == 1.0 or (isinstance(n, int) and size == n)) and how.coordinates != "tf_crop_and_resize":
        return x
    if not isinstance(n, int) or not (size is None or isinstance(size, int)):
        return _repeat(x, axis, scale, how)
    length = _length(n, scale, size)
    ratio = float(scale) if scale is not None else length / n
    if how.mode == "nearest" and scale is not None and _is_repetition(scale, how):
        return _repeat(x, axis, scale, how)
    matrix = _matrix(n, length, ratio, bounds, how)
    if how.mode == "nearest" and how.coordinates != "tf_crop_and_resize":
        return x.index_select(axis, to_torch(matrix.argmax(1)))
    outside = _outside(n, length, ratio, bounds, how)
    wide = x if x.is_floating_point() else x.to(torch.float32)
    result = torch.matmul(wide.movedim(axis, -1), to_torch(matrix.T.copy()).to(wide.dtype)).movedim(-1, axis)
    if outside.any():
        mask = to_torch(outside).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        result = torch.where(mask, torch.full((), how.extrapolation, dtype=result.dtype), result)
    return result


def _length(n: int, scale: float | None, size: int | None) -> int:
    """The size of an axis of n elements after it; for each of its elements a row of weights is made."""
    wanted = size if size is not None else n * float(scale or 1)
    if not 0 <= wanted <= MAX_LENGTH:  # not a number neither
        raise UnsupportedError(f"Resize of {n} to {wanted:,} elements along an axis isn't supported: is a size in the model wrong?")
    return int(np.floor(wanted))


def _is_repetition(scale: float, how: Resampling) -> bool:
    """Whether nearest at a whole scale repeats each element: the positions then fall on floor(i / scale)."""
    rules = {("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("half_pixel", "round_prefer_ceil")}
    return float(scale).is_integer() and scale >= 1 and (how.coordinates, how.nearest) in rules


def _repeat(x: torch.Tensor, axis: int, scale: float | None, how: Resampling) -> torch.Tensor:
    if how.mode != "nearest" or scale is None or not _is_repetition(scale, how):
        raise UnsupportedError("Resize of a dynamic dimension is supported for nearest at a whole scale; fix the sizes of the inputs.")
    times = int(scale)
    shape = list(x.shape)
    return x.unsqueeze(axis + 1).expand(*shape[: axis + 1], times, *shape[axis + 1 :]).flatten(axis, axis + 1)


def _positions(n: int, length: int, scale: float, bounds: tuple[float, float], how: Resampling) -> np.ndarray:
    """The input coordinate of each output element (ONNX specification, coordinate_transformation_mode)."""
    i = np.arange(length, dtype=np.float64)
    if how.coordinates == "asymmetric":
        return i / scale
    if how.coordinates == "half_pixel":
        return (i + 0.5) / scale - 0.5
    if how.coordinates == "pytorch_half_pixel":
        return (i + 0.5) / scale - 0.5 if length > 1 else np.zeros(length)
    if how.coordinates == "half_pixel_symmetric":
        return (n / 2) * (1 - length / (n * scale)) + (i + 0.5) / scale - 0.5
    if how.coordinates == "align_corners":
        width = n * scale
        return i * (n - 1) / (width - 1) if width > 1 else np.zeros(length)
    if how.coordinates == "tf_crop_and_resize":
        start, end = bounds
        return (
            start * (n - 1) + i * (end - start) * (n - 1) / (length - 1) if length > 1 else np.full(length, 0.5 * (start + end) * (n - 1))
        )
    raise UnsupportedError(f"Resize with coordinate_transformation_mode '{how.coordinates}' isn't supported.")


def _outside(n: int, length: int, scale: float, bounds: tuple[float, float], how: Resampling) -> np.ndarray:
    if how.coordinates != "tf_crop_and_resize":
        return np.zeros(length, bool)
    positions = _positions(n, length, scale, bounds, how)
    return (positions < 0) | (positions > n - 1)


def _matrix(n: int, length: int, scale: float, bounds: tuple[float, float], how: Resampling) -> np.ndarray:
    """[length, n] weights of the input elements in each output element, float32."""
    positions = _positions(n, length, scale, bounds, how)
    matrix = np.zeros((length, n), np.float64)
    if how.mode == "nearest":
        index = np.clip(_round(positions, how.nearest), 0, n - 1)
        matrix[np.arange(length), index.astype(np.int64)] = 1
        return matrix.astype(np.float32)
    stretch = min(scale, 1.0) if how.antialias else 1.0
    reach = (1.0 if how.mode == "linear" else 2.0) / stretch
    for row, position in enumerate(positions):
        taps = np.arange(int(np.floor(position - reach)) + 1, int(np.ceil(position + reach)))
        weights = _kernel((taps - position) * stretch, how)
        if how.exclude_outside:
            weights = np.where((taps >= 0) & (taps < n), weights, 0.0)
        if how.exclude_outside or how.antialias:
            weights = weights / weights.sum()
        np.add.at(matrix[row], np.clip(taps, 0, n - 1), weights)
    return matrix.astype(np.float32)


def _round(positions: np.ndarray, mode: str) -> np.ndarray:
    if mode == "floor":
        return np.asarray(np.floor(positions))
    if mode == "ceil":
        return np.asarray(np.ceil(positions))
    return np.asarray(np.ceil(positions - 0.5) if mode == "round_prefer_floor" else np.floor(positions + 0.5))


def _kernel(distance: np.ndarray, how: Resampling) -> np.ndarray:
    """Triangle, or Keys' cubic (Keys 1981, "Cubic convolution interpolation for digital image processing")."""
    d = np.abs(distance)
    if how.mode == "linear":
        return np.asarray(np.maximum(1 - d, 0))
    if how.mode != "cubic":
        raise UnsupportedError(f"Resize with mode '{how.mode}' isn't supported.")
    a = how.cubic
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
