"""The packed layout of constant right sides of contractions: panels [n/48][k][48], zero-padded, the same for every target."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

PANEL = 48


def packed_shape(shape: Sequence[int], n_axes: Sequence[int], k_axes: Sequence[int]) -> tuple[int, int, int]:
    n, k = (math.prod(shape[axis] for axis in axes) for axes in (n_axes, k_axes))
    return -(-n // PANEL), k, PANEL


def pack_panels(array: np.ndarray, n_axes: Sequence[int], k_axes: Sequence[int]) -> np.ndarray:
    """Rearrange a weight. Returns float32 [ceil(n/48), k, 48]; columns past n are 0."""
    panels, k, width = packed_shape(array.shape, n_axes, k_axes)
    rest = [axis for axis in range(array.ndim) if axis not in (*n_axes, *k_axes)]  # of size 1
    matrix = array.transpose(*n_axes, *k_axes, *rest).reshape(-1, k)
    packed = np.zeros((panels, k, width), array.dtype)
    whole = matrix.shape[0] // width
    packed[:whole] = matrix[: whole * width].reshape(whole, width, k).transpose(0, 2, 1)
    if whole < panels:
        packed[whole, :, : matrix.shape[0] - whole * width] = matrix[whole * width :].T
    return packed
