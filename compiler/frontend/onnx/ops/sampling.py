"""Reads at computed places of an image: GridSample, and Col2Im, which writes them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from llmos.compiler.frontend.onnx.registry import Ints, op
from llmos.runtime.errors import UnsupportedError

_MODES = {"bilinear": "bilinear", "linear": "bilinear", "nearest": "nearest", "bicubic": "bicubic", "cubic": "bicubic"}


@op("GridSample", since=16)
def grid_sample(
    x: torch.Tensor, grid: torch.Tensor, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> torch.Tensor:
    """x [batch, C, spatial...] at the normalized places of grid [batch, out..., rank]."""
    if mode not in _MODES or x.ndim not in (4, 5):
        raise UnsupportedError(f"GridSample with mode '{mode}' over {x.ndim - 2} spatial dims isn't supported.")
    if x.ndim == 5 and _MODES[mode] == "bicubic":
        raise UnsupportedError("GridSample with mode 'cubic' over 3 spatial dims isn't supported.")
    return F.grid_sample(x, grid.to(x.dtype), _MODES[mode], padding_mode, bool(align_corners))


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
    """Columns [batch, C · block, positions] summed into an image [batch, C, height, width]."""
    if len(image_shape) != 2:
        raise UnsupportedError(f"Col2Im over {len(image_shape)} spatial dims isn't supported; 2 are.")
    top, left, bottom, right = pads or (0, 0, 0, 0)
    height, width = image_shape
    whole = F.fold(x, (height + top + bottom, width + left + right), block_shape, dilations or (1, 1), 0, strides or (1, 1))
    return whole.narrow(2, top, height).narrow(3, left, width)
