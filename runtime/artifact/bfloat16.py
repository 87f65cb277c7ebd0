"""bfloat16, which numpy lacks, as uint16 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def to_bfloat16(values: NDArray[Any]) -> NDArray[np.uint16]:
    """float32 of any shape to bfloat16 bits, rounded to nearest, ties to even. A NaN stays a NaN, with its sign and high bits."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16).reshape(np.shape(values))


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16 bits of any shape to float32, exactly."""
    return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32)
