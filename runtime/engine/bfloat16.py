"""Conversion of bfloat16, which numpy lacks, as uint16 bits."""

from __future__ import annotations

import numpy as np

from llmos.runtime.engine.model import Array


def bfloat16_bits(values: Array) -> Array:
    """Convert float32 to bfloat16 bits (uint16), rounded to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def bfloat16_values(bits: Array) -> Array:
    """Convert bfloat16 bits (uint16) to float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
