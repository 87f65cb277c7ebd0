"""Interpolated reads of an image: grid sampling, and the parts it shares with ONNX's RoiAlign and DeformConv."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from llmos.compiler.frontend.decompositions.resampling import cubic_weights

aten = torch.ops.aten


def read_at(x: Tensor, places: Sequence[Tensor]) -> Tensor:
    """Read x [batch, channels, spatial...] at integer positions, [batch, points] a spatial dim; return [batch, channels, points].

    Positions outside give 0.
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
    """As `read_at` at fractional positions: multilinear interpolation of the 2^rank neighbors, which are 0 outside the image."""
    lows = [place.floor() for place in places]
    total = torch.zeros((), dtype=x.dtype)
    for corner in itertools.product((0, 1), repeat=len(places)):
        weight = torch.ones((), dtype=x.dtype)
        for far, low, place in zip(corner, lows, places, strict=True):
            weight = weight * (place - low if far else 1 - (place - low))
        total = total + read_at(x, [low + far for far, low in zip(corner, lows, strict=True)]) * weight.unsqueeze(1)
    return total


def _pixel(place: Tensor, size: Any, align_corners: bool) -> Tensor:
    """Convert a coordinate in [-1, 1] to a position along a dim."""
    at: Tensor = (place + 1) / 2 * (size - 1) if align_corners else ((place + 1) * size - 1) / 2
    return at


def _brought_inside(at: Tensor, size: Any, padding_mode: int, align_corners: bool) -> Tensor:
    """Map a position into the image for border (1) and reflection (2) padding; zeros (0) leaves it unchanged."""
    if padding_mode == 2:
        at = _reflected(at, 0.0, size - 1) if align_corners else _reflected(at, -0.5, size)
    return at.clamp(min=0).clamp(max=size - 1) if padding_mode else at


def _reflected(at: Tensor, low: float, span: Any) -> Tensor:
    """Reflect repeatedly at `low` and `low + span`; any position is valid if the span is 0."""
    span = torch.sym_max(span, 1)  # type: ignore[no-untyped-call]
    distance = (at - low).abs()
    rest = torch.fmod(distance, span)
    return torch.where((distance / span).floor() % 2 == 0, rest, span - rest) + low


def _grid_sampler(x: Tensor, grid: Tensor, interpolation_mode: int, padding_mode: int, align_corners: bool) -> Tensor:
    """Sample x [batch, channels, spatial...] at grid [batch, out..., (x, y, ...)]; modes: 0 linear, 1 nearest, 2 cubic."""
    rank = x.ndim - 2
    points = grid.flatten(1, rank)
    pixels = [_pixel(points[..., rank - 1 - i], x.shape[2 + i], align_corners) for i in range(rank)]

    def inside(at: Sequence[Tensor]) -> list[Tensor]:
        return [_brought_inside(place, size, padding_mode, align_corners) for place, size in zip(at, x.shape[2:], strict=True)]

    if interpolation_mode == 2:
        sampled = _cubic_at(x, pixels, inside)
    elif interpolation_mode == 1:
        sampled = read_at(x, [place.round() for place in inside(pixels)])
    else:
        sampled = interpolate_at(x, inside(pixels))
    return sampled.reshape(*x.shape[:2], *grid.shape[1 : 1 + rank])


def _cubic_at(x: Tensor, places: Sequence[Tensor], inside: Callable[[Sequence[Tensor]], list[Tensor]]) -> Tensor:
    """Interpolate the 4^rank neighbors of each position; each neighbor is mapped into the image separately."""
    lows = [place.floor() for place in places]
    weights = [cubic_weights(place - low, -0.75) for place, low in zip(places, lows, strict=True)]
    total = torch.zeros((), dtype=x.dtype)
    for corner in itertools.product(range(4), repeat=len(places)):
        weight = torch.ones((), dtype=x.dtype)
        for at, each in zip(corner, weights, strict=True):
            weight = weight * each[at]
        total = total + read_at(x, inside([low + (at - 1) for at, low in zip(corner, lows, strict=True)])) * weight.unsqueeze(1)
    return total


TABLE: dict[Any, Callable[..., Any]] = {
    aten.grid_sampler_2d.default: _grid_sampler,
    aten.grid_sampler_3d.default: _grid_sampler,
}
