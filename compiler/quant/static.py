"""Scales and zero points of activations from what calibration has seen of them."""

from __future__ import annotations

import numpy as np

STEPS = 255
SHRINKS = tuple(1 - step / 40 for step in range(28))  # of the range that was seen: 1 to 0.325


def parameters(low: float, high: float) -> tuple[float, int]:
    """Return the scale and the zero point of uint8 numbers over [low, high] extended to 0; a scale of 1 where that is 0 alone.

    scale = (high - low) / 255 in float32, zero point = round(-low / scale).
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32((high - low) / STEPS))
    if scale < np.finfo(np.float32).tiny:
        return 1.0, 0
    return scale, int(np.clip(np.rint(-low / scale), 0, STEPS))


def fitted_range(low: float, high: float, sample: np.ndarray) -> tuple[float, float]:
    """Return the part of [low, high] by which a sample, float32 of any shape, is rounded with the least mean square error.

    Of tails on either side what is beyond is clamped: each bound is shrunk to parts of itself, the upper one first.
    """
    best = low, high
    error = _error(sample, *best)
    for side in (1, 0):
        for shrink in SHRINKS[1:]:
            bounds = (best[0], high * shrink) if side else (low * shrink, best[1])
            found = _error(sample, *bounds)
            if found < error:
                best, error = bounds, found
    return best


def _error(sample: np.ndarray, low: float, high: float) -> float:
    scale, zero = parameters(low, high)
    rounded = (np.clip(np.rint(sample / np.float32(scale)) + zero, 0, STEPS) - zero) * np.float32(scale)
    return float(np.mean(np.square(rounded - sample, dtype=np.float64)))
