"""Resize and Upsample: one axis after the other, with the coordinate transformations of the operator's specification.

Coordinates are computed in float32, as in onnxruntime, because the choice of the nearest element may depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils._python_dispatch import _disable_current_modes

from llmos.compiler.frontend.decompositions.resampling import Tap, blend, blend_windows, cubic_weights, number, quotient, repeated, rounded
from llmos.compiler.frontend.float_sizes import floor_of_float32_product
from llmos.compiler.frontend.onnx.registry import Floats, Ints, Known, Value, op
from llmos.compiler.frontend.onnx.values import ConstantValue
from llmos.runtime.errors import UnsupportedError

MAX_LENGTH = 2**20


@dataclass(frozen=True)
class Resampling:
    """The map of output positions to input positions, and the interpolation."""

    mode: str
    coordinates: str
    nearest: str = "round_prefer_floor"
    antialias: bool = False
    cubic: float = -0.75
    exclude_outside: bool = False
    extrapolation: float = 0.0


@op("Upsample", since=9)
def upsample(x: torch.Tensor, scales: Floats, *, mode: str = "nearest") -> torch.Tensor:
    """Lower Upsample of opset 9, with scales as an input: asymmetric coordinates, the nearest one rounded down."""
    return _resize(x, scales, None, None, None, Resampling(mode, "asymmetric", "floor"))


@op("Upsample", since=7)
def upsample_by_attribute(x: torch.Tensor, *, scales: tuple[float, ...], mode: str = "nearest") -> torch.Tensor:
    """Lower Upsample of opsets 7 and 8, with scales as an attribute."""
    return upsample(x, scales, mode=mode)


@op("Resize", since=10)
def resize_10(x: torch.Tensor, scales: Floats, *, mode: str = "nearest") -> torch.Tensor:
    """Lower Resize of opset 10: asymmetric coordinates, the nearest one rounded down."""
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
    """Lower Resize from opset 11, by constant scales or by sizes.

    Raises UnsupportedError for scales from data, an unknown mode, a roi that isn't constant, or a kept aspect ratio of a dynamic dim.
    """
    how = Resampling(
        mode, coordinate_transformation_mode, nearest_mode, bool(antialias), cubic_coeff_a, bool(exclude_outside), extrapolation_value
    )
    if sizes and keep_aspect_ratio_policy != "stretch":
        sizes = _kept_aspect(x, sizes, axes, keep_aspect_ratio_policy)
    factors = tuple(float(item) for item in scales.array.reshape(-1)) if isinstance(scales, ConstantValue) and scales.array.size else None
    if factors is None and not sizes:
        raise UnsupportedError("Resize with scales computed from data isn't supported.")
    return _resize(x, factors, sizes or None, axes, roi, how)


def _kept_aspect(x: torch.Tensor, sizes: Sequence[int], axes: Sequence[int] | None, policy: str) -> tuple[int, ...]:
    """Return sizes with one scale for all axes: the smallest of the requested ones (not_larger), or the largest."""
    chosen = axes if axes is not None else range(x.ndim)
    if not all(isinstance(size, int) for size in (*sizes, *(x.shape[axis] for axis in chosen))):
        raise UnsupportedError(f"Resize of a dynamic dimension with keep_aspect_ratio_policy '{policy}' isn't supported: fix its size.")
    ratios = [size / x.shape[axis] for size, axis in zip(sizes, chosen, strict=True)]
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    return tuple(int(np.floor(scale * x.shape[axis] + 0.5)) for axis in chosen)


def _resize(
    x: torch.Tensor, scales: Sequence[float] | None, sizes: Sequence[Any] | None, axes: Sequence[int] | None, roi: Value, how: Resampling
) -> torch.Tensor:
    chosen = [axis % x.ndim for axis in (axes if axes is not None else range(x.ndim))]
    moves = how.mode == "nearest" and how.coordinates != "tf_crop_and_resize"
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    wide, copies = x if moves else x.to(torch.float64 if x.dtype in _BEYOND_FLOAT32 else dtype), dict[int, int]()
    for size in sizes or ():
        _require_length(size)
    for place, axis in reversed(list(enumerate(chosen))):
        scale, size = (each[place] if each is not None else None for each in (scales, sizes))
        bounds = _roi(roi, place, len(chosen)) if how.coordinates == "tf_crop_and_resize" else (0.0, 1.0)
        line = _Line(
            wide.shape[axis], size if size is not None else _length(wide.shape[axis], float(scale or 1)), scale, bounds, how, dtype
        )
        if moves and line.given is not None and _is_repetition(line.given, how):
            copies[axis] = int(line.given)
        else:
            wide = _resize_axis(wide, axis, line)
    wide = repeated(wide, copies)
    return wide if moves or x.is_floating_point() else _whole(wide, x.dtype, how)


_BEYOND_FLOAT32 = frozenset((torch.int32, torch.uint32, torch.int64, torch.uint64))


def _whole(x: torch.Tensor, dtype: torch.dtype, how: Resampling) -> torch.Tensor:
    """Convert interpolated values to saturated integers: truncated in onnxruntime's integer mode, else rounded as in ONNX's evaluator."""
    whole = torch.trunc(x) if how.mode == "linear" and not how.antialias else torch.round(x)
    if dtype == torch.bool:
        return whole.to(dtype)
    limits = torch.iinfo(dtype)
    high = math.nextafter(float(limits.max), 0) if float(limits.max) > limits.max else float(limits.max)
    return whole.clamp(float(limits.min), high).to(dtype)


def _roi(roi: Value, place: int, count: int) -> tuple[float, float]:
    if not isinstance(roi, ConstantValue):
        raise UnsupportedError("Resize needs a constant roi for tf_crop_and_resize.")
    values = roi.array.reshape(-1)
    return float(values[place]), float(values[place + count])


def _length(n: Any, scale: float) -> Any:
    """Return the size of a scaled axis of n elements: n * scale in float32, truncated, as in onnxruntime and shape inference."""
    if isinstance(n, int):
        wanted = np.float32(n) * np.float32(scale)
        _require_length(float(wanted))
        return math.floor(wanted)
    return floor_of_float32_product(n, float(np.float32(scale)))


def _require_length(wanted: Any) -> None:
    if isinstance(wanted, int | float) and not 0 <= wanted <= MAX_LENGTH:  # also false for NaN
        raise UnsupportedError(f"Resize to {wanted:,} elements along an axis isn't supported: is a size in the model wrong?")


@dataclass(frozen=True)
class _Line:
    """One axis of a resize: sizes before and after, the given scale, if any, and its part of the region of interest."""

    size: Any
    length: Any
    given: float | None
    bounds: tuple[float, float]
    how: Resampling
    dtype: torch.dtype

    @property
    def is_static(self) -> bool:
        return isinstance(self.size, int) and isinstance(self.length, int)

    @property
    def keeps(self) -> bool:
        """Whether the axis is unchanged."""
        same = self.given == 1.0 if self.given is not None else statically_known_true(self.size == self.length)
        return same and self.how.coordinates != "tf_crop_and_resize"

    @property
    def scale(self) -> Any:
        if self.given is not None:
            return rounded(float(self.given), torch.float32)
        return quotient(self.length, self.size, self.dtype)

    def places(self) -> torch.Tensor:
        """Return the input coordinate of each output element, [length]."""
        i, how = torch.arange(self.length, dtype=self.dtype), self.how.coordinates
        if how == "asymmetric":
            return torch.div(i, self.scale)
        if how in ("half_pixel", "pytorch_half_pixel"):
            place = (i + 0.5) / self.scale - 0.5
            return self._or_at_start(place, number(self.length, self.dtype)) if how == "pytorch_half_pixel" else place
        if how == "half_pixel_symmetric":
            size, length = number(self.size, self.dtype), number(self.length, self.dtype)
            offset = (size / 2) * (1 - length / (size * self.scale))
            return torch.add((i + 0.5) / self.scale, offset - 0.5)
        if how == "align_corners":
            width = number(self.size, self.dtype) * self.scale if self.given is not None else number(self.length, self.dtype)
            return self._or_at_start(i * (number(self.size, self.dtype) - 1) / (width - 1), width)
        if how == "tf_crop_and_resize":
            return self._cropped(i)
        raise UnsupportedError(f"Resize with coordinate_transformation_mode '{how}' isn't supported.")

    def _or_at_start(self, place: torch.Tensor, width: Any) -> torch.Tensor:
        """Return `place`, or 0 if the output has one element."""
        if isinstance(width, torch.Tensor):
            return torch.where(width > 1, place, 0.0)
        return place if width > 1 else torch.zeros_like(place)

    def _cropped(self, i: torch.Tensor) -> torch.Tensor:
        (start, end), last, spans = self.bounds, number(self.size, self.dtype) - 1, number(self.length, self.dtype) - 1
        middle = 0.5 * (start + end) * last
        if isinstance(spans, torch.Tensor):
            return torch.where(spans > 0, start * last + i * (end - start) * last / spans, middle)
        return torch.add(i * (end - start) * last / spans, start * last) if spans > 0 else torch.zeros_like(i) + middle

    def outside(self) -> torch.Tensor | None:
        """Return the mask of output elements outside of the input, which get the extrapolation value, [length]."""
        if self.how.coordinates != "tf_crop_and_resize":
            return None
        places = self.places()
        return torch.logical_or(places < 0, places > self.size - 1)

    def inside(self, place: torch.Tensor) -> torch.Tensor:
        return place.clamp(min=0).clamp(max=self.size - 1)


def _resize_axis(x: torch.Tensor, axis: int, line: _Line) -> torch.Tensor:
    how = line.how
    if line.keeps:
        return x
    if how.mode == "nearest":
        result = x.index_select(axis, _made(line, _nearest))
    elif how.antialias:
        result = blend_windows(x, axis, Tap(*_made(line, _window)))
    else:
        result = blend(x, axis, [Tap(*tap) for tap in _made(line, _taps)])
    outside = _made(line, _Line.outside)
    if outside is not None:
        mask = outside.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        result = torch.where(mask, torch.full((), how.extrapolation, dtype=result.dtype), result)
    return result


def _made(line: _Line, function: Any) -> Any:
    """Apply a function to a line; if all sizes are static, compute it now, outside of tracing."""
    if not line.is_static:
        return function(line)
    with _disable_current_modes():
        return function(line)


def _is_repetition(scale: float, how: Resampling) -> bool:
    """Whether nearest at an integer scale repeats each element, that is, reads floor(i / scale)."""
    rules = {("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("half_pixel", "round_prefer_ceil")}
    return float(scale).is_integer() and scale > 1 and (how.coordinates, how.nearest) in rules


def _nearest(line: _Line) -> torch.Tensor:
    """Return the input index that each output element copies, int64 [length]."""
    places, rule = line.places(), line.how.nearest
    if rule in ("floor", "ceil"):
        chosen = torch.floor(places) if rule == "floor" else torch.ceil(places)
    else:
        chosen = torch.ceil(places - 0.5) if rule == "round_prefer_floor" else torch.floor(places + 0.5)
    return line.inside(chosen.to(torch.int64))


def _taps(line: _Line) -> list[tuple[torch.Tensor, ...]]:
    """Return, for each neighbor of each position, its index, its weight, and whether it counts."""
    places, how = line.places(), line.how
    low = torch.floor(places)
    ratio = places - low
    if how.mode not in ("linear", "cubic"):
        raise UnsupportedError(f"Resize with mode '{how.mode}' isn't supported.")
    weights, first = ((1 - ratio, ratio), 0) if how.mode == "linear" else (cubic_weights(ratio, how.cubic), -1)
    at = [low.to(torch.int64) + offset for offset in range(first, first + len(weights))]
    if how.exclude_outside:
        held = [torch.where((place >= 0) & (place <= line.size - 1), weight, 0.0) for place, weight in zip(at, weights, strict=True)]
        total = sum(held[1:], held[0])
        weights = tuple(weight / total for weight in held)
    return [(line.inside(place), weight, weight != 0) for place, weight in zip(at, weights, strict=True)]


def _window(line: _Line) -> tuple[torch.Tensor, ...]:
    """As `_taps`, [length, window elements], for an antialiasing kernel scaled to the width of an output element."""
    places, how, reach = line.places().unsqueeze(1), line.how, 1 if line.how.mode == "linear" else 2
    stretch = line.scale.clamp(max=1.0) if isinstance(line.scale, torch.Tensor) else min(line.scale, 1.0)
    at = (torch.floor(places - reach / stretch) + 1).to(torch.int64) + torch.arange(_window_size(line, reach))
    counted = at < torch.ceil(places + reach / stretch)
    if how.exclude_outside:
        counted = counted & (at >= 0) & (at <= line.size - 1)
    weight = torch.where(counted, _kernel((at - places) * stretch, how), 0.0)
    weight = weight / weight.sum(1, keepdim=True)
    return line.inside(at), weight, weight != 0


def _window_size(line: _Line, reach: int) -> Any:
    """Return an upper bound of a window's elements."""
    if isinstance(line.scale, float):
        return math.ceil(2 * reach / min(line.scale, 1.0)) + 1
    return 2 * torch.sym_max(-(-reach * line.size // line.length), reach) + 1  # type: ignore[no-untyped-call]


def _kernel(distance: torch.Tensor, how: Resampling) -> torch.Tensor:
    """Evaluate the triangle or Keys' cubic kernel."""
    d = torch.abs(distance)
    if how.mode == "linear":
        return (1 - d).clamp(min=0)
    if how.mode != "cubic":
        raise UnsupportedError(f"Resize with mode '{how.mode}' isn't supported.")
    a = how.cubic
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, 0.0))
