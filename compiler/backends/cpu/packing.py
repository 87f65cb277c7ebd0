"""The packed layout of constant right sides of contractions, zero-padded, the same for every target.

Panels [n/w][k][w] of float32, [n/w][k/2][w][2] of bfloat16 and [n/w][k/4][w][4] of int8, whose words of two or four k are what dot
products and matrix tiles read. Weights that stay integers beside float32 rows are [n/w][k/4][w][4] of int8 too, or [n/w][k/8][w] words
of eight nibbles, the first k lowest; their scales and zero points are [n/w][groups][w].

The width w depends on n and k alone: 48 columns, 64 or 32 where that leaves none unused, 16 where there are no more; or it was chosen by a
measured search (compiler/ir/tiling.py), and then is part of what the weight's argument says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from llmos.compiler.analysis.winograd import TAPS, transform_kernel

PANEL = 48
WIDTHS = (PANEL, 64, 32)  # in this order, what divides n is taken
NARROWEST = 16
MAX_WIDE_BYTES = 3 << 18  # of a panel wider than usual


def panel_width(n: int, k: int) -> int:
    """Columns of a panel of n columns in all: what divides n, or what is just enough, or 48. Two wide ones fit a level-2 cache."""
    if n <= 32:
        return NARROWEST if n <= NARROWEST else 32
    return next((width for width in WIDTHS if n % width == 0 and (width <= PANEL or 4 * width * k <= MAX_WIDE_BYTES)), PANEL)


def number_width(n: int) -> int:
    """Columns of a panel of a weight that stays integers, and of its scales: by n alone, as even a long panel of them is small."""
    return panel_width(n, 1)


def packed_shape(shape: Sequence[int], n_axes: Sequence[int], k_axes: Sequence[int], width: int | None = None) -> tuple[int, int, int]:
    """Return the shape of `pack_panels`: panels, k, width."""
    n, k = (math.prod(shape[axis] for axis in axes) for axes in (n_axes, k_axes))
    width = width or panel_width(n, k)
    return -(-n // width), k, width


def pack_panels(array: np.ndarray, n_axes: Sequence[int], k_axes: Sequence[int], width: int | None = None) -> np.ndarray:
    """Rearrange a weight. Returns float32 [ceil(n/w), k, w]; columns past n are 0."""
    panels, k, width = packed_shape(array.shape, n_axes, k_axes, width)
    rest = [axis for axis in range(array.ndim) if axis not in (*n_axes, *k_axes)]  # of size 1
    matrix = array.transpose(*n_axes, *k_axes, *rest).reshape(math.prod(array.shape[axis] for axis in n_axes), k)
    packed = np.zeros((panels, k, width), array.dtype)
    whole = matrix.shape[0] // width
    packed[:whole] = matrix[: whole * width].reshape(whole, width, k).transpose(0, 2, 1)
    if whole < panels:
        packed[whole, :, : matrix.shape[0] - whole * width] = matrix[whole * width :].T
    return packed


def packed_words_shape(
    shape: Sequence[int], n_axes: Sequence[int], k_axes: Sequence[int], k_per_word: int, width: int | None = None
) -> tuple[int, int, int, int]:
    """Return the shape of `pack_words`: panels, words of k, width, k of a word."""
    panels, k, width = packed_shape(shape, n_axes, k_axes, width)
    return panels, -(-k // k_per_word), width, k_per_word


def pack_words(array: np.ndarray, n_axes: Sequence[int], k_axes: Sequence[int], k_per_word: int, width: int | None = None) -> np.ndarray:
    """Rearrange a weight whose elements are a half or a quarter of a 32-bit word: bfloat16, held as uint16, or int8.

    Returns the same dtype, [ceil(n/w), ceil(k/k_per_word), w, k_per_word], zero past n and k.
    """
    panels = pack_panels(array, n_axes, k_axes, width)
    if panels.shape[1] % k_per_word:
        panels = np.pad(panels, ((0, 0), (0, -panels.shape[1] % k_per_word), (0, 0)))
    count, k, width = panels.shape
    return np.ascontiguousarray(panels.reshape(count, k // k_per_word, k_per_word, width).swapaxes(2, 3))


def pack_nibbles(array: np.ndarray, n_axes: Sequence[int], k_axes: Sequence[int], width: int) -> np.ndarray:
    """Rearrange a weight of numbers of 4 bits, one in each int8 or uint8. Returns uint8 [ceil(n/w), ceil(k/8), w, 4]: in each byte two
    neighboring k, the first in its low half; zero past n and k.
    """
    panels = pack_panels(array.view(np.uint8) & 0xF, n_axes, k_axes, width)
    panels = np.pad(panels, ((0, 0), (0, -panels.shape[1] % 8), (0, 0)))
    count, k, width = panels.shape
    pairs = panels.reshape(count, k // 8, 4, 2, width)
    return np.ascontiguousarray((pairs[:, :, :, 0] | pairs[:, :, :, 1] << 4).swapaxes(2, 3))


def packed_winograd_shape(
    shape: Sequence[int], n_axes: Sequence[int], k_axes: Sequence[int], m: int, width: int | None = None
) -> tuple[int, int, int, int]:
    """Return the shape of `pack_winograd`: panels, positions, channels, width."""
    panels, k, width = packed_shape((shape[n_axes[0]], shape[k_axes[2]]), [0], [1], width)
    return panels, (m + TAPS - 1) ** 2, k, width


def pack_winograd(array: np.ndarray, n_axes: Sequence[int], k_axes: Sequence[int], m: int, width: int | None = None) -> np.ndarray:
    """Transform the kernels of a convolution for tiles of m by m outputs and rearrange them; `k_axes`: those of the kernel's rows, its
    columns and the channels. Returns float32 [n/w, (m + 2)², channels, w]."""
    positions = transform_kernel(array.transpose(*k_axes, *n_axes), m)
    return np.stack([pack_panels(position, [1], [0], width) for position in positions], axis=1)
