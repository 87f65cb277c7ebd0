"""Weights in 8 bits with a scale for each row: what rounding them gives (the formulas of passes/quant/_rounding.py)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LARGEST = 127  # of a number's magnitude


@dataclass(frozen=True)
class Int8Columns:
    """The values that elements of a column are rounded to: number * scale, of numbers -LARGEST to LARGEST. scale: float32 [n]."""

    scale: np.ndarray

    def numbers(self, values: np.ndarray) -> np.ndarray:
        """Return the nearest numbers of elements [..., n], float32."""
        found: np.ndarray = np.clip(np.round(values / self.scale), -LARGEST, LARGEST)
        return found

    def values(self, numbers: np.ndarray) -> np.ndarray:
        """Return what numbers stand for, float32."""
        found: np.ndarray = numbers * self.scale
        return found


@dataclass(frozen=True)
class Int8Weight:
    """A rounded weight. numbers: int8 [n, k]; scale: float32 [n], max |w| / 127, 1 for zeros, NaN where that is NaN or infinite."""

    numbers: np.ndarray
    scale: np.ndarray

    @classmethod
    def nearest(cls, weight: np.ndarray) -> Int8Weight:
        """Round float32 [n, k] to nearest."""
        step = np.abs(weight).max(1, initial=0) / np.float32(LARGEST)
        scale = np.where(step < np.inf, np.where(step == 0, np.float32(1), step), np.float32(np.nan))
        with np.errstate(invalid="ignore"):
            numbers = np.nan_to_num(Int8Columns(scale).numbers(weight.T).T, nan=-LARGEST)
        return cls(numbers.astype(np.int8), scale)

    @property
    def values(self) -> np.ndarray:
        """The weight that the numbers stand for: float32 [n, k]."""
        return Int8Columns(self.scale).values(self.numbers.T.astype(np.float32)).T
