"""Winograd's minimal filtering: a 3x3 convolution of stride 1 by fewer multiplications (Lavin and Gray, 2015).

A tile of m by m outputs is Y = Aᵀ [(G g Gᵀ) ∘ (Bᵀ d B)] A with the 3x3 kernel g and the (m + 2) by (m + 2) inputs d that it reads: 16
multiplications for 4 outputs (m = 2), 36 for 16 (m = 4), where the direct sum takes 36 and 144. The matrices come from the Cook-Toom
algorithm at chosen points. Those of m = 4 are 0, ±1, 2 and -1/2: of the sets in Barabasz et al. ("Error Analysis and Improving the Accuracy
of Winograd Convolution", 2018) with cheap transforms, it had the smallest error, less than half of that of 0, ±1, ±2.

Transforms are generic over the number type: kernels run them on vectors, tests on fractions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Generic, Protocol, TypeVar

import numpy as np

TAPS = 3  # kernel size along one axis
POINTS: dict[int, tuple[Fraction, ...]] = {
    2: tuple(map(Fraction, (0, 1, -1))),
    4: (*map(Fraction, (0, 1, -1, 2)), Fraction(-1, 2)),
}

Number = TypeVar("Number")


class Arithmetic(Protocol[Number]):
    """The arithmetic that transforms need."""

    def add(self, a: Number, b: Number) -> Number:
        """Return a + b."""
        ...

    def sub(self, a: Number, b: Number) -> Number:
        """Return a - b."""
        ...

    def fma(self, factor: float, a: Number, b: Number) -> Number:
        """Return factor * a + b."""
        ...


@dataclass(frozen=True)
class Minimal(Generic[Number]):
    """The transforms Bᵀ and Aᵀ of m by m output tiles, with the fewest known operations."""

    m: int
    by: Arithmetic[Number]

    def inputs(self, d: Sequence[Number]) -> list[Number]:
        """Return Bᵀ d for m + 2 numbers."""
        by = self.by
        if self.m == 2:
            return [by.sub(d[2], d[0]), by.add(d[1], d[2]), by.sub(d[2], d[1]), by.sub(d[3], d[1])]
        even, odd = by.sub(d[4], d[2]), by.sub(d[3], d[1])
        first, last = by.sub(even, by.sub(d[2], d[0])), by.sub(by.sub(d[5], d[3]), odd)
        a, b = by.fma(-1.5, d[3], even), by.fma(-1.5, d[2], odd)
        return [
            by.fma(-1.5, odd, first),
            by.add(a, b),
            by.sub(a, b),
            by.fma(0.5, odd, even),
            by.fma(-2.0, odd, even),
            by.fma(-1.5, even, last),
        ]

    def outputs(self, y: Sequence[Number]) -> list[Number]:
        """Return Aᵀ y, m numbers, for m + 2 numbers."""
        by = self.by
        total, difference = by.add(y[1], y[2]), by.sub(y[1], y[2])
        if self.m == 2:
            return [by.add(y[0], total), by.add(difference, y[3])]
        return [
            by.add(by.add(y[0], total), by.add(y[3], y[4])),
            by.fma(2.0, y[3], by.fma(-0.5, y[4], difference)),
            by.fma(4.0, y[3], by.fma(0.25, y[4], total)),
            by.fma(8.0, y[3], by.fma(-0.125, y[4], by.add(difference, y[5]))),
        ]


@dataclass(frozen=True)
class Matrices:
    """Exact Aᵀ [m, n], G [n, 3] and Bᵀ [n, n], n = m + 2."""

    outputs: list[list[Fraction]]
    kernel: list[list[Fraction]]
    inputs: list[list[Fraction]]


def matrices(m: int) -> Matrices:
    """Build the Cook-Toom matrices for m outputs, with infinity as last point. Bᵀ holds the products of (x - point) over the other points,
    G the powers of each point over that product at the point."""
    points = POINTS[m]
    others = [[p for p in points if p != point] for point in points]
    inputs = [_polynomial(roots, m + 2) for roots in [*others, list(points)]]
    kernel = [[point**power / _at(point, roots) for power in range(TAPS)] for point, roots in zip(points, others, strict=True)]
    outputs = [[*(point**power for point in points), Fraction(power == m - 1)] for power in range(m)]
    return Matrices(outputs, [*kernel, [Fraction(0)] * (TAPS - 1) + [Fraction(1)]], inputs)


def _at(point: Fraction, roots: Sequence[Fraction]) -> Fraction:
    value = Fraction(1)
    for root in roots:
        value *= point - root
    return value


def _polynomial(roots: Sequence[Fraction], size: int) -> list[Fraction]:
    """Return the first `size` coefficients of the product of (x - root), constant term first."""
    made = [Fraction(1)]
    for root in roots:
        made = [low - root * high for low, high in zip([Fraction(0), *made], [*made, Fraction(0)], strict=True)]
    return made + [Fraction(0)] * (size - len(made))


def transform_operations(m: int) -> tuple[int, int]:
    """Count the operations of the transforms of inputs and of outputs, for one tile and channel; a read or a write counts as one."""
    side = m + TAPS - 1
    inputs, outputs = (14, 12) if m == 4 else (4, 4)
    return 2 * side * inputs + 2 * side**2, (side + m) * outputs + side**2 + m**2


def transform_kernel(taps: np.ndarray, m: int) -> np.ndarray:
    """Return G g Gᵀ, float32 [(m + 2)², ...], for taps float32 [3, 3, ...]; computed in float64 and rounded once."""
    g = np.array([[float(each) for each in row] for row in matrices(m).kernel])
    made = np.einsum("pu,qv,uv...->pq...", g, g, taps.astype(np.float64), optimize=True)
    return np.ascontiguousarray(made.reshape(-1, *taps.shape[2:]), np.float32)
