"""GPTQ: weights rounded one column after the other, each error made up for by the columns that aren't rounded yet.

Frantar et al., arXiv 2210.17323. For y = x wᵀ, the squared error of the product over the rows of x is, for each row of the weight,
(w - ŵ) H (w - ŵ)ᵀ with H = Σ xᵀ x. Rounding column j to ŵ[j] costs least where the later columns become

    w[i] -= (w[j] - ŵ[j]) / U[j, j] · U[j, i]        i > j, with the upper Cholesky factor U of the inverse: H⁻¹ = Uᵀ U

H is damped by a part of the mean of its diagonal. Later columns get their updates in blocks. A group's scale and zero point follow from
its columns as they are once all columns before it are rounded; with 8 bits a row has one scale, that of its weights as they were.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from llmos.compiler.quant.int8 import Int8Columns, Int8Weight
from llmos.compiler.quant.nibbles import Grid, Nibbles, nearest

DAMPING = 0.01  # of the mean of the Hessian's diagonal
BLOCK = 128  # columns whose errors reach the later ones together; every size of a group divides it
_LARGEST_DAMPING = 1e3  # a matrix of numbers has a Cholesky factor long before


def gptq(weight: np.ndarray, hessian: np.ndarray, group: int) -> Nibbles:
    """Round float32 [n, k] to 4 bits, in groups along k, such that products by rows like those of the Hessian change least.

    hessian: float64 [k, k], Σ xᵀ x over the rows x of the left side. group: divides k, and BLOCK.
    A channel that is 0 in all rows, and a row of the weight with a NaN or an infinity, is rounded to nearest.
    """
    is_finite = np.isfinite(weight).all(1)
    made = nearest(weight, group)
    columns = np.array(weight[is_finite].T, np.float32)  # [k, n], so that a column of the weight is contiguous
    numbers, scale, zero = _rounded(columns, _factor(hessian), group)
    made.numbers[is_finite], made.scale[is_finite], made.zero_point[is_finite] = numbers.T, scale.T, zero.T
    return made


def gptq_int8(weight: np.ndarray, hessian: np.ndarray) -> Int8Weight:
    """Round float32 [n, k] to 8 bits with a scale for each n, such that products by rows like those of the Hessian change least.

    hessian, and what isn't finite, as for `gptq`.
    """
    made = Int8Weight.nearest(weight)
    is_finite = np.isfinite(weight).all(1)
    grid = Int8Columns(made.scale[is_finite])
    columns = np.array(weight[is_finite].T, np.float32)
    made.numbers[is_finite] = _compensated(columns, _factor(hessian), lambda _column, _rest: grid).T
    return made


class _Values(Protocol):
    """What elements of one column are rounded to."""

    def numbers(self, values: np.ndarray) -> np.ndarray: ...

    def values(self, numbers: np.ndarray) -> np.ndarray: ...


def _rounded(columns: np.ndarray, factor: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers [k, n], scales and zero points [k / group, n]. columns: float32 [k, n], changed; factor: U."""
    grids: list[Grid] = []

    def grid_of(column: int, rest: np.ndarray) -> Grid:
        if column % group == 0:
            grids.append(Grid.of(rest[:group], 0))
        return grids[-1]

    numbers = _compensated(columns, factor, grid_of)
    return numbers, np.stack([each.scale for each in grids]), np.stack([each.zero_point for each in grids])


def _compensated(columns: np.ndarray, factor: np.ndarray, grid_of: Callable[[int, np.ndarray], _Values]) -> np.ndarray:
    """Numbers, float32 [k, n]. grid_of: of a column, told its index and what the columns from there to the end of its block are by then."""
    k, n = columns.shape
    numbers = np.empty((k, n), np.float32)
    for start in range(0, k, BLOCK):
        end = min(k, start + BLOCK)
        block, upper = columns[start:end], factor[start:end, start:end]
        errors = np.empty_like(block)
        for j in range(end - start):
            grid = grid_of(start + j, block[j:])
            numbers[start + j] = grid.numbers(block[j])
            errors[j] = (block[j] - grid.values(numbers[start + j])) / upper[j, j]
            block[j + 1 :] -= upper[j, j + 1 :, None] * errors[j]
        columns[end:] -= factor[start:end, end:].T @ errors
    return numbers


def _factor(hessian: np.ndarray) -> np.ndarray:
    """The upper Cholesky factor of the damped Hessian's inverse, float32 [k, k]; more damping where rounding leaves no inverse."""
    k = len(hessian)
    diagonal = hessian.diagonal()
    mean = float(diagonal.mean()) or 1.0
    damping = DAMPING
    while True:
        damped = hessian.copy()
        damped[np.arange(k), np.arange(k)] += np.where(diagonal == 0, mean, 0) + damping * mean
        try:
            # with all orders reversed the lower factor L of H = L Lᵀ is an upper one R: H⁻¹ = R⁻ᵀ R⁻¹, and R⁻¹ is upper too
            reversed_factor = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
            return np.linalg.inv(reversed_factor).astype(np.float32)
        except np.linalg.LinAlgError:
            if damping > _LARGEST_DAMPING:
                raise
            damping *= 10
