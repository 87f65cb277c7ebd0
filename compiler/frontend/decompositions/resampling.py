"""Resampling of the axes of an image: every output element is a weighted sum of neighboring elements along its axis.

Positions, weights and their types are those of torch's CPU kernels (aten/src/ATen/native/UpSample.h, cpu/UpSampleKernel.cpp), so that
results agree where a position falls on the border between two elements. Sizes may be symbolic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

aten = torch.ops.aten


@dataclass(frozen=True)
class Tap:
    """One term of the sum for output element i of an axis: `weight[i]` times element `place[i]`, if `counted[i]`."""

    place: Tensor
    weight: Tensor
    counted: Tensor | None = None


def blend(x: Tensor, axis: int, taps: Sequence[Tap]) -> Tensor:
    """Sum the taps along an axis. Uncounted taps are masked by a select, because infinity times 0 would be NaN."""
    total: Tensor | None = None
    for tap in taps:
        share = x.index_select(axis, tap.place) * _along(tap.weight, x, axis)
        if tap.counted is not None:
            share = torch.where(_along(tap.counted, x, axis), share, torch.zeros((), dtype=x.dtype))
        total = share if total is None else total + share
    assert total is not None
    return total


def blend_windows(x: Tensor, axis: int, window: Tap) -> Tensor:
    """As `blend` for many taps: the tensors of `window` are [output elements, taps]."""
    assert window.counted is not None
    read = x.index_select(axis, window.place.flatten()).unflatten(axis, window.place.shape)  # type: ignore[no-untyped-call]
    rank = [*window.place.shape, *[1] * (x.ndim - 1 - axis)]
    share = torch.where(window.counted.reshape(rank), read * window.weight.reshape(rank), torch.zeros((), dtype=x.dtype))
    return share.sum(axis + 1)


def _along(line: Tensor, x: Tensor, axis: int) -> Tensor:
    return line.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


def number(size: Any, dtype: torch.dtype) -> Any:
    """Return a size for float arithmetic; a symbolic one becomes a tensor, since compiled programs have no symbolic floats."""
    return float(size) if isinstance(size, int) else torch.scalar_tensor(size, dtype=dtype)


def quotient(a: Any, b: Any, dtype: torch.dtype) -> Any:
    """Divide two sizes with one rounding; torch would multiply a Python number by the reciprocal of a tensor."""
    if isinstance(a, int) and isinstance(b, int):
        return rounded(a / b, dtype)
    return torch.div(torch.scalar_tensor(a, dtype=dtype), number(b, dtype))


def _equal(a: Any, b: Any) -> bool | Tensor:
    """Whether two sizes are equal, without adding a guard: a tensor if it depends on input sizes."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return torch.scalar_tensor(a, dtype=torch.int64) == torch.scalar_tensor(b, dtype=torch.int64)


def rounded(value: Any, dtype: torch.dtype) -> Any:
    """Round a Python number to a float dtype; a tensor has the dtype already."""
    return float(np.float32(value)) if isinstance(value, float) and dtype == torch.float32 else value


def repeated(x: Tensor, times: Mapping[int, int]) -> Tensor:
    """Repeat each element along some axes, with one copy."""
    if not times:
        return x
    shape = [size * times.get(axis, 1) for axis, size in enumerate(x.shape)]
    split = [(size, times[axis]) if axis in times else (size,) for axis, size in enumerate(x.shape)]
    for axis in sorted(times, reverse=True):
        x = x.unsqueeze(axis + 1)
    return x.expand([size for sizes in split for size in sizes]).reshape(shape)


@dataclass(frozen=True)
class _Axis:
    """One axis of a resize of `num_axes` spatial axes: sizes before and after, and the caller's scale, if any."""

    num_axes: int
    size: Any
    length: Any
    scale: float | None
    align_corners: bool
    dtype: torch.dtype

    @property
    def step(self) -> Any:
        """Return the distance in input elements between output elements."""
        if self.align_corners:
            return self._step_between_ends()
        if self.scale is not None and self.scale > 0:
            return rounded(1.0 / self.scale, self.dtype)
        return quotient(self.size, self.length, self.dtype)

    def _step_between_ends(self) -> Any:
        if isinstance(self.length, int):
            return quotient(self.size - 1, self.length - 1, self.dtype) if self.length > 1 else 0.0
        step = quotient(self.size - 1, self.length - 1, self.dtype)
        return torch.where(number(self.length, self.dtype) > 1, step, torch.zeros((), dtype=self.dtype))

    @property
    def copying_step(self) -> Any:
        """As `step`, but 1 if the size is unchanged: nearest and linear resizing then copy, independent of the scale."""
        if self.scale is None:
            return self.step
        if isinstance(equal := _equal(self.size, self.length), bool):
            return 1.0 if equal else self.step
        return torch.where(equal, 1.0, self.step)

    def places(self, step: Any) -> Tensor:
        """Return the input position of each output element, [length]."""
        index = torch.arange(self.length, dtype=self.dtype)
        place: Tensor = index * step if self.align_corners else (index + 0.5) * step - 0.5
        return place

    def inside(self, place: Tensor) -> Tensor:
        held: Tensor = place.clamp(min=0).clamp(max=self.size - 1)
        return held


def _nearest(axis: _Axis) -> Tensor:
    """Return the input index that each output element copies, int64 [length]."""
    index = torch.arange(axis.length)
    # torch's kernel of images copies if the size is unchanged and halves the index if it doubles, independent of the scale; those of
    # lines and volumes don't
    is_image = axis.num_axes == 2
    place = (index.to(axis.dtype) * (axis.copying_step if is_image else axis.step)).floor().to(torch.int64)
    if axis.scale is not None and is_image:
        doubles = _equal(axis.length, 2 * axis.size)
        place = torch.where(doubles, index // 2, place) if isinstance(doubles, Tensor) else index // 2 if doubles else place
    chosen: Tensor = place.clamp(max=axis.size - 1)
    return chosen


def _nearest_exact(axis: _Axis) -> Tensor:
    place = (torch.arange(axis.length, dtype=axis.dtype) + 0.5) * axis.step
    chosen: Tensor = place.floor().to(torch.int64).clamp(max=axis.size - 1)
    return chosen


def _linear(axis: _Axis) -> list[Tap]:
    place = axis.places(axis.copying_step).clamp(min=0)
    low = place.to(torch.int64).clamp(max=axis.size - 1)
    weight = (place - low).clamp(0, 1)
    return [Tap(low, 1 - weight), Tap((low + 1).clamp(max=axis.size - 1), weight)]


def cubic_weights(t: Tensor, a: float) -> tuple[Tensor, ...]:
    """Evaluate the kernel of Keys (1981, "Cubic convolution interpolation for digital image processing") at the four nearest elements."""

    def near(d: Tensor) -> Tensor:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: Tensor) -> Tensor:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return far(t + 1), near(t), near(1 - t), far((1 - t) + 1)


def _cubic(axis: _Axis) -> list[Tap]:
    place = axis.places(axis.step)
    low = place.floor()
    weights = cubic_weights(place - low, -0.75)
    return [Tap(axis.inside(low.to(torch.int64) + offset), weight) for offset, weight in zip(range(-1, 3), weights, strict=True)]


# Antialiasing


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance.abs()).clamp(min=0)


def _pillow_cubic(distance: Tensor) -> Tensor:
    """Keys' kernel with a = -0.5."""
    d = distance.abs()
    near, far = (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2
    return torch.where(d < 1, near, torch.where(d < 2, far, 0.0))


def _antialiased(axis: _Axis, kernel: Callable[[Tensor], Tensor], reach: int) -> Tap:
    """Weight the elements under a kernel scaled to the width of an output element, as Pillow does."""
    step = axis.step
    width = torch.clamp(step, min=1.0) if isinstance(step, Tensor) else max(step, 1.0)
    centre = (torch.arange(axis.length, dtype=axis.dtype) + 0.5) * step
    first = (centre - reach * width + 0.5).to(torch.int64).clamp(min=0).unsqueeze(1)
    last = (centre + reach * width + 0.5).to(torch.int64).clamp(max=axis.size).unsqueeze(1)
    place = first + torch.arange(_window_size(axis, reach))
    counted = place < last
    weight = torch.where(counted, kernel((place - centre.unsqueeze(1) + 0.5) / width), 0.0)
    return Tap(place.clamp(max=axis.size - 1), weight / weight.sum(1, keepdim=True), counted)


def _window_size(axis: _Axis, reach: int) -> Any:
    """Return an upper bound of the elements that an output element reads."""
    if isinstance(axis.step, float):
        return 2 * math.ceil(reach * max(axis.step, 1.0)) + 1
    size, length = (axis.size - 1, torch.sym_max(axis.length - 1, 1)) if axis.align_corners else (axis.size, axis.length)  # type: ignore[no-untyped-call]
    return 2 * torch.sym_max(-(-reach * size // length), reach) + 1  # type: ignore[no-untyped-call]


# torch's ops

Resize = Callable[[Tensor, int, _Axis], Tensor]


def _resized(x: Tensor, sizes: Sequence[Any], scales: Sequence[float | None], align_corners: bool, resize: Resize, moves: bool) -> Any:
    """Resize the spatial axes of x [batch, channels, spatial...], the last one first, in torch's order of summation."""
    if not (moves or x.is_floating_point()):
        return NotImplemented
    dtype = torch.float64 if x.dtype == torch.float64 and not moves else torch.float32
    wide, copies = x if moves else x.to(dtype), {}
    for axis in reversed(range(2, x.ndim)):
        how = _Axis(x.ndim - 2, x.shape[axis], sizes[axis - 2], scales[axis - 2], align_corners, dtype)
        if moves and (times := _whole_ratio(how)) is not None:
            copies[axis] = times
        elif how.scale is not None or not statically_known_true(how.size == how.length):
            wide = resize(wide, axis, how)
    return repeated(wide, copies).to(x.dtype)


def _copies(places: Callable[[_Axis], Tensor]) -> Resize:
    return lambda x, axis, how: x.index_select(axis, places(how))


def _whole_ratio(axis: _Axis) -> int | None:
    """Return the repeat count if the resize only repeats elements, else None."""
    if isinstance(axis.step, float):
        times = round(1 / axis.step) if axis.step else 0
    else:
        times = next((each for each in range(2, 9) if statically_known_true(axis.length == each * axis.size)), 0)
    if times < 2 or not statically_known_true(axis.length == times * axis.size):
        return None
    step = rounded(1 / times, torch.float32)
    # A step rounded down doesn't reach the next element at its first copy.
    is_exact = Fraction(step) * times >= 1 and (axis.scale is None or axis.scale == times)
    return times if is_exact else None


def _by_size(resize: Resize, moves: bool) -> Callable[..., Any]:
    """Make the overload that takes sizes and a scale for each axis."""

    def run(x: Tensor, output_size: Sequence[Any], *rest: Any) -> Any:
        align_corners, scales = (False, rest) if moves else (rest[0], rest[1:])
        count = x.ndim - 2
        return _resized(x, output_size, [*scales, *[None] * count][:count], align_corners, resize, moves)

    return run


def _by_size_or_scale(resize: Resize, moves: bool) -> Callable[..., Any]:
    """Make the overload that takes sizes or scales."""

    def run(x: Tensor, output_size: Sequence[Any] | None, *rest: Any) -> Any:
        align_corners, scales = (False, *rest) if moves else rest
        if output_size is None:
            sizes = zip(x.shape[2:], scales, strict=True)
            output_size = [torch.sym_int(size * scale) for size, scale in sizes]  # type: ignore[no-untyped-call]
        return _resized(x, output_size, scales or [None] * (x.ndim - 2), align_corners, resize, moves)

    return run


def _named(names: Sequence[str], resize: Resize, moves: bool = False) -> dict[Any, Callable[..., Any]]:
    made: dict[Any, Callable[..., Any]] = {}
    for name in names:
        op = getattr(aten, name)
        made |= {op.default: _by_size(resize, moves), op.vec: _by_size_or_scale(resize, moves)}
    return made


TABLE: dict[Any, Callable[..., Any]] = {
    **_named([f"upsample_nearest{n}d" for n in (1, 2, 3)], _copies(_nearest), moves=True),
    **_named([f"_upsample_nearest_exact{n}d" for n in (1, 2, 3)], _copies(_nearest_exact), moves=True),
    **_named(["upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"], lambda x, axis, how: blend(x, axis, _linear(how))),
    **_named(["upsample_bicubic2d"], lambda x, axis, how: blend(x, axis, _cubic(how))),
    **_named(["_upsample_bilinear2d_aa"], lambda x, axis, how: blend_windows(x, axis, _antialiased(how, _triangle, 1))),
    **_named(["_upsample_bicubic2d_aa"], lambda x, axis, how: blend_windows(x, axis, _antialiased(how, _pillow_cubic, 2))),
}
