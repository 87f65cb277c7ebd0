"""Reads between the elements of an image: volumes sampled on a grid, and what RoiAlign and DeformConv of ONNX share with them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def read_at(x: Tensor, places: Sequence[Tensor]) -> Tensor:
    """Elements of x [batch, channels, spatial...] at whole places [batch, points] a spatial dim: [batch, channels, points].

    0 where a place lies outside.
    """
    flat = torch.zeros_like(places[0], dtype=torch.int64)
    inside = torch.ones_like(places[0], dtype=torch.bool)
    for size, place in zip(x.shape[2:], places, strict=True):
        within = (place >= 0) & (place <= size - 1)
        flat = flat * size + torch.where(within, place, torch.zeros_like(place)).to(torch.int64)
        inside = inside & within
    spread = flat.unsqueeze(1).expand(x.shape[0], x.shape[1], flat.shape[1])
    return torch.where(inside.unsqueeze(1), x.flatten(2).gather(2, spread), torch.zeros((), dtype=x.dtype))


def interpolate_at(x: Tensor, places: Sequence[Tensor]) -> Tensor:
    """As `read_at`, between elements: the 2^rank around each place, weighted by how near they are; outside the image all are 0."""
    lows = [place.floor() for place in places]
    total = torch.zeros((), dtype=x.dtype)
    for corner in itertools.product((0, 1), repeat=len(places)):
        weight = torch.ones((), dtype=x.dtype)
        for far, low, place in zip(corner, lows, places, strict=True):
            weight = weight * (place - low if far else 1 - (place - low))
        total = total + read_at(x, [low + far for far, low in zip(corner, lows, strict=True)]) * weight.unsqueeze(1)
    return total


def _pixel(place: Tensor, size: Any, padding_mode: int, align_corners: bool) -> Tensor:
    """A coordinate in [-1, 1] as a place along a dim; border (1) and reflection (2) bring it inside."""
    at: Tensor = (place + 1) / 2 * (size - 1) if align_corners else ((place + 1) * size - 1) / 2
    if padding_mode == 2:
        at = _reflected(at, 0.0, size - 1) if align_corners else _reflected(at, -0.5, size)
    return at.clamp(0, size - 1) if padding_mode else at


def _reflected(at: Tensor, low: float, span: Any) -> Tensor:
    """Turned back at `low` and `low + span` as often as it takes."""
    if span == 0:
        return torch.zeros_like(at)
    distance = (at - low).abs()
    rest = torch.fmod(distance, span)
    return torch.where((distance / span).floor() % 2 == 0, rest, span - rest) + low


def _grid_sampler_3d(x: Tensor, grid: Tensor, interpolation_mode: int, padding_mode: int, align_corners: bool) -> Tensor:
    """x [batch, channels, depth, height, width] at grid [batch, out..., (x, y, z)]; modes: 0 linear, 1 nearest."""
    points = grid.flatten(1, 3)
    places = [_pixel(points[..., 2 - i], x.shape[2 + i], padding_mode, align_corners) for i in range(3)]
    sampled = read_at(x, [place.round() for place in places]) if interpolation_mode == 1 else interpolate_at(x, places)
    return sampled.reshape(*x.shape[:2], *grid.shape[1:4])


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance.abs()).clamp(min=0)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' kernel with a = -0.5, as Pillow's."""
    d = distance.abs()
    near, far = (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2
    return torch.where(d < 1, near, torch.where(d < 2, far, 0.0))


def _resampling(size: int, wanted: int, scale: float, kernel: Callable[[Tensor], Tensor], reach: int) -> Tensor:
    """[wanted, size] float64: each output as a weighted mean of the inputs under a kernel as wide as what it stands for."""
    width = max(scale, 1.0)
    centre = (scale * (torch.arange(wanted, dtype=torch.float64) + 0.5)).unsqueeze(1)
    place = torch.arange(size, dtype=torch.float64)
    low = (centre - reach * width + 0.5).trunc().clamp(min=0)
    high = (centre + reach * width + 0.5).trunc().clamp(max=size)
    weight = torch.where((place >= low) & (place < high), kernel((place - centre + 0.5) / width), 0.0)
    return weight / weight.sum(1, keepdim=True)


def _antialiased(kernel: Callable[[Tensor], Tensor], reach: int) -> Callable[..., Any]:
    """Resizing of x [batch, channels, height, width] as Pillow does it, one matrix an axis."""

    def resize(
        x: Tensor, output_size: Sequence[int], align_corners: bool, scale_y: float | None = None, scale_x: float | None = None
    ) -> Any:
        if not all(isinstance(size, int) for size in (*x.shape[2:], *output_size)):
            return NotImplemented
        matrices = []
        for size, wanted, given in zip(x.shape[2:], output_size, (scale_y, scale_x), strict=True):
            ratio = (size - 1) / (wanted - 1) if wanted > 1 else 0.0
            ratio = ratio if align_corners else 1 / given if given else size / wanted
            matrices.append(_resampling(size, wanted, ratio, kernel, reach).to(x.dtype))
        rows, columns = matrices
        return rows @ (x @ columns.mT)

    return resize


TABLE: dict[Any, Callable[..., Any]] = {
    aten.grid_sampler_3d.default: _grid_sampler_3d,
    aten._upsample_bilinear2d_aa.default: _antialiased(_triangle, 1),
    aten._upsample_bicubic2d_aa.default: _antialiased(_cubic, 2),
}
