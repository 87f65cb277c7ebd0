"""Weights in 4 bits with a scale and a zero point for each group: what rounding them gives (the formulas of passes/quant/_nibbles.py)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STEPS = 15  # between the smallest and the largest number


@dataclass(frozen=True)
class Grid:
    """The values that elements of some groups are rounded to: (number - zero_point) * scale, of numbers 0 to STEPS.

    scale: float32; zero_point: float32, of integers; both of one shape. Where all elements are 0 the scale is 1, where one is NaN or
    infinite it is NaN.
    """

    scale: np.ndarray
    zero_point: np.ndarray

    @classmethod
    def of(cls, groups: np.ndarray, axis: int) -> Grid:
        """Of float32 elements that share a scale along an axis."""
        low, high = groups.min(axis, initial=0), groups.max(axis, initial=0)
        with np.errstate(invalid="ignore"):
            step = high / np.float32(STEPS) - low / np.float32(STEPS)
            scale = np.where(step < np.inf, np.where(step == 0, np.float32(1), step), np.float32(np.nan))
            return cls(scale, np.fmin(np.fmax(np.round(-low / scale), 0), STEPS))

    def numbers(self, values: np.ndarray) -> np.ndarray:
        """Return the nearest numbers of elements, float32. values: of a shape that those of the grid extend to."""
        with np.errstate(invalid="ignore"):
            found: np.ndarray = np.fmin(np.fmax(np.round(values / self.scale) + self.zero_point, 0), STEPS)
        return found

    def values(self, numbers: np.ndarray) -> np.ndarray:
        """Return what numbers stand for, float32."""
        found: np.ndarray = (numbers - self.zero_point) * self.scale
        return found


@dataclass(frozen=True)
class Nibbles:
    """A rounded weight. numbers: uint8 [n, k], 0 to STEPS; scale: float32, zero_point: uint8, [n, k / group]."""

    numbers: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """The weight that the numbers stand for: float32 [n, k]."""
        size = self.numbers.shape[1] // self.scale.shape[1]
        scale, zero = (each.repeat(size, 1).astype(np.float32) for each in (self.scale, self.zero_point))
        return Grid(scale, zero).values(self.numbers.astype(np.float32))


def nearest(weight: np.ndarray, group: int) -> Nibbles:
    """Round float32 [n, k] to nearest, in groups along k. group: divides k."""
    groups = weight.reshape(len(weight), -1, group)
    grid = Grid.of(groups, 2)
    numbers = Grid(grid.scale[:, :, None], grid.zero_point[:, :, None]).numbers(groups).reshape(weight.shape)
    return Nibbles(numbers.astype(np.uint8), grid.scale, grid.zero_point.astype(np.uint8))
