"""Scales and zero points of activations from what was seen of them."""

from __future__ import annotations

import numpy as np
import pytest

from llmos.compiler.quant.static import fitted_range, parameters


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero"),
    [
        (0.0, 2.55, 0.01, 0),
        (-1.0, 1.55, 0.01, 100),
        (0.5, 2.55, 0.01, 0),
        (-2.55, -1.0, 0.01, 255),
        (0.0, 0.0, 1.0, 0),
        (-1e-42, 0.0, 1.0, 0),
    ],
)
def test_parameters(low: float, high: float, scale: float, zero: int) -> None:
    assert parameters(low, high) == (pytest.approx(scale), zero)


def test_an_outlier_is_clamped() -> None:
    """Of normal numbers with one element of 100, whose step would be 0.4."""
    sample = np.append(np.random.default_rng(0).standard_normal(1 << 16), 100).astype(np.float32)
    low, high = fitted_range(float(sample.min()), 100.0, sample)
    assert sample.min() <= low < -2
    assert 30 < high < 100


def test_the_range_of_even_numbers_stays() -> None:
    sample = np.random.default_rng(0).uniform(-1, 3, 1 << 14).astype(np.float32)
    assert fitted_range(float(sample.min()), float(sample.max()), sample) == (sample.min(), sample.max())
