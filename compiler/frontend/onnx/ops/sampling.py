"""Reads at computed positions of an image: GridSample, RoiAlign, DeformConv; and Col2Im, which writes them."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F

from llmos.compiler.frontend.decompositions.sampling import interpolate_at, read_at
from llmos.compiler.frontend.onnx.ops.windows import pad_spatial, window
from llmos.compiler.frontend.onnx.registry import Ints, op
from llmos.runtime.errors import UnsupportedError

_MODES = {"bilinear": "bilinear", "linear": "bilinear", "nearest": "nearest", "bicubic": "bicubic", "cubic": "bicubic"}


@op("GridSample", since=16)
def grid_sample(
    x: torch.Tensor, grid: torch.Tensor, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> torch.Tensor:
    """Lower GridSample from opset 16: sample x [batch, C, spatial...] at the normalized positions of grid [batch, out..., rank].

    Raises UnsupportedError for more than 3 spatial dims, and for "cubic" over 3.
    """
    if mode not in _MODES or x.ndim not in (4, 5):
        raise UnsupportedError(f"GridSample with mode '{mode}' over {x.ndim - 2} spatial dims isn't supported.")
    if x.ndim == 5 and _MODES[mode] == "bicubic":
        raise UnsupportedError("GridSample with mode 'cubic' over 3 spatial dims isn't supported.")
    if not x.is_floating_point():
        return _sampled_integers(x, grid, _MODES[mode], padding_mode, bool(align_corners))
    return F.grid_sample(x, grid.to(x.dtype), _MODES[mode], padding_mode, bool(align_corners))


def _sampled_integers(x: torch.Tensor, grid: torch.Tensor, mode: str, padding_mode: str, align_corners: bool) -> torch.Tensor:
    """As `grid_sample` for integers or bools: nearest copies the element; interpolated values are truncated."""
    if mode != "nearest":
        return F.grid_sample(x.to(torch.float64), grid.to(torch.float64), mode, padding_mode, align_corners).to(x.dtype)
    flat = x.flatten(2)
    places = torch.arange(1, flat.shape[2] + 1, dtype=torch.float64).reshape(1, 1, *x.shape[2:]).expand(x.shape[0], 1, *x.shape[2:])
    chosen = F.grid_sample(places, grid.to(torch.float64), mode, padding_mode, align_corners).to(torch.int64)
    with_zero = torch.cat([torch.zeros_like(flat[:, :, :1]), flat], 2)
    index = chosen.flatten(2).expand(-1, x.shape[1], -1)
    return torch.gather(with_zero, 2, index).unflatten(2, tuple(chosen.shape[2:]))  # type: ignore[no-any-return, no-untyped-call]


@op("Col2Im", since=18)
def col2im(
    x: torch.Tensor,
    image_shape: Ints,
    block_shape: Ints,
    *,
    dilations: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> torch.Tensor:
    """Lower Col2Im: sum columns [batch, C · block, positions] into an image [batch, C, spatial...] at their original positions."""
    rank = len(image_shape)
    strides, dilations, pads = strides or (1,) * rank, dilations or (1,) * rank, pads or (0,) * (2 * rank)
    padded = tuple(size + pads[i] + pads[i + rank] for i, size in enumerate(image_shape))
    place = torch.zeros([1] * (2 * rank), dtype=torch.int64)
    for i, (size, block, stride, dilation) in enumerate(zip(padded, block_shape, strides, dilations, strict=True)):
        count = (size - dilation * (block - 1) - 1) // stride + 1
        taps = (torch.arange(block) * dilation).reshape([-1] + [1] * (2 * rank - 1 - i))
        starts = (torch.arange(count) * stride).reshape([-1] + [1] * (rank - 1 - i))
        place = place * size + taps + starts
    columns = x.reshape(x.shape[0], -1, place.numel())
    image = torch.zeros((*columns.shape[:2], math.prod(padded)), dtype=x.dtype)
    whole = image.scatter_add(2, place.reshape(-1).expand(columns.shape), columns).unflatten(2, padded)  # type: ignore[no-untyped-call]
    return pad_spatial(whole, tuple((-pads[i], -pads[i + rank]) for i in range(rank)))


@op("RoiAlign", since=16)
def roi_align(
    x: torch.Tensor,
    rois: torch.Tensor,
    batch_indices: torch.Tensor,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> torch.Tensor:
    """Lower RoiAlign from opset 16: pool boxes (x1, y1, x2, y2) of x [batch, C, height, width] over a grid of bins.

    Return [boxes, C, output_height, output_width]. "max" takes the largest of the four weighted neighbors of each sample, as in the
    operator's definition. Raises UnsupportedError for sampling_ratio 0.
    """
    if sampling_ratio <= 0:
        raise UnsupportedError("RoiAlign with sampling_ratio 0 takes as many samples as data says; give it a sampling_ratio of 1 or more.")
    half = 0.5 if coordinate_transformation_mode == "half_pixel" else 0.0
    box = rois * spatial_scale - half
    extents = box[:, 2:] - box[:, :2] if half else (box[:, 2:] - box[:, :2]).clamp(min=1.0)
    samples = []
    for axis, count in ((1, output_height), (0, output_width)):
        steps = (torch.arange(count * sampling_ratio) + 0.5) / sampling_ratio
        samples.append(box[:, axis, None] + extents[:, axis, None] / count * steps)
    rows, columns = samples
    shape = (rois.shape[0], rows.shape[1], columns.shape[1])
    places = [rows.unsqueeze(2).expand(shape).flatten(1), columns.unsqueeze(1).expand(shape).flatten(1)]
    picked = x.index_select(0, batch_indices.to(torch.int64))
    corners = _weighted_corners(picked, places)
    each = corners.sum(0) if mode == "avg" else corners.amax(0)
    bins = each.reshape(*each.shape[:2], output_height, sampling_ratio, output_width, sampling_ratio)
    return bins.mean((3, 5)) if mode == "avg" else bins.amax((3, 5))


@op("RoiAlign", since=10)
def roi_align_unshifted(
    x: torch.Tensor,
    rois: torch.Tensor,
    batch_indices: torch.Tensor,
    *,
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> torch.Tensor:
    """Lower RoiAlign before opset 16, which doesn't shift boxes by half a pixel; otherwise as `roi_align`."""
    return roi_align(
        x, rois, batch_indices, coordinate_transformation_mode="output_half_pixel", mode=mode, output_height=output_height,
        output_width=output_width, sampling_ratio=sampling_ratio, spatial_scale=spatial_scale,
    )  # fmt: skip


def _weighted_corners(x: torch.Tensor, places: list[torch.Tensor]) -> torch.Tensor:
    """Return the four weighted neighbors of each position, [4, batch, C, points]; 0 for a position more than a pixel outside.

    A neighbor of weight 0 is masked instead of multiplied, because 0 times infinity is NaN.
    """
    counted = torch.ones_like(places[0], dtype=torch.bool)
    ends = []
    for size, place in zip(x.shape[2:], places, strict=True):
        counted = counted & (place >= -1) & (place <= size)
        inside = place.clamp(0, size - 1)
        low = inside.floor()
        ends.append(((low, 1 - (inside - low)), ((low + 1).clamp(max=size - 1), inside - low)))
    weighted = []
    for (row, a), (column, b) in itertools.product(*ends):
        weight = (a * b * counted).unsqueeze(1)
        weighted.append(torch.where(weight != 0, read_at(x, [row, column]) * weight, torch.zeros((), dtype=x.dtype)))
    return torch.stack(weighted)


@op("DeformConv", since=19)
def deform_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    offset: torch.Tensor,
    bias: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    *,
    dilations: tuple[int, ...] | None = None,
    group: int = 1,
    kernel_shape: tuple[int, ...] | None = None,
    offset_group: int = 1,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> torch.Tensor:
    """Lower DeformConv: convolve x [batch, C, height, width] (arXiv:1811.11168).

    `offset` [batch, groups · taps · (y, x), out...] shifts every tap. Raises UnsupportedError for other than 2 spatial dims.
    """
    if x.ndim != 4:
        raise UnsupportedError(f"DeformConv over {x.ndim - 2} spatial dims isn't supported; 2 are.")
    shape = window(tuple(x.shape[2:]), tuple(weight.shape[2:]), strides, dilations, pads, "NOTSET")
    batch, channels, taps, out = x.shape[0], x.shape[1], math.prod(shape.kernel), tuple(offset.shape[2:])
    moved = offset.reshape(batch * offset_group, *shape.kernel, 2, *out)
    places = []
    for axis in range(2):
        lines = [torch.arange(shape.kernel[axis]) * shape.dilations[axis], torch.arange(out[axis]) * shape.strides[axis]]
        tap, start = (line.reshape([-1] + [1] * (4 - at - 1)) for line, at in zip(lines, (axis, 2 + axis), strict=True))
        places.append((moved[:, :, :, axis] + (tap + start - shape.pads[axis][0])).flatten(1))
    parts = x.reshape(batch * offset_group, channels // offset_group, *x.shape[2:])
    columns = interpolate_at(parts, places).unflatten(2, (taps, -1))  # type: ignore[no-untyped-call]
    if mask is not None:
        columns = columns * mask.reshape(batch * offset_group, 1, taps, -1)
    by_group = columns.reshape(batch, group, (channels // group) * taps, -1)
    filters = weight.reshape(group, weight.shape[0] // group, -1)
    result = torch.matmul(filters, by_group).reshape(batch, weight.shape[0], *out)
    return result if bias is None else result + bias.reshape(1, -1, 1, 1)
