"""SmoothQuant's vectors and the corrections of products."""

from __future__ import annotations

import numpy as np
import torch

from llmos.compiler.quant.int8 import Int8Weight
from llmos.compiler.quant.smoothing import correction, product_error, rounded_rows, smoothing_vector
from tests.passes.quant.quant_tests import w8a8


def sides(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of 64 channels, three of them 50 times the others, and weights that make up for it."""
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((128, 64), np.float32), rng.standard_normal((32, 64), np.float32)
    x[:, [3, 17, 40]] *= 50
    w[:, [3, 17, 40]] /= 50
    return x, w


def test_the_simulation_is_the_arithmetic_of_the_pass() -> None:
    x, w = sides()
    want = w8a8(torch.from_numpy(x), torch.from_numpy(w)).numpy()
    np.testing.assert_allclose(rounded_rows(x) @ Int8Weight.nearest(w).values.T, want, rtol=1e-4, atol=1e-4)


def test_a_vector_lowers_the_error_of_outlier_channels() -> None:
    x, w = sides()
    vector = smoothing_vector(np.abs(x).max(0), x, w)
    assert vector is not None and vector.dtype == np.float32 and vector[[3, 17, 40]].min() > 3 * np.median(vector)
    fresh, _ = sides(1)
    exact = fresh @ w.T
    assert product_error(fresh / vector, w * vector, exact) < product_error(fresh, w, exact) / 20


def test_no_vector_where_none_helps() -> None:
    x = np.repeat(np.eye(4, dtype=np.float32), 16, 1)  # exact in 8 bits as it is
    w = np.ones((8, 64), np.float32)
    assert smoothing_vector(np.abs(x).max(0), x, w) is None


def test_channels_of_zeros_keep_their_scale() -> None:
    x, w = sides()
    x[:, 5], w[:, 6] = 0, 0
    vector = smoothing_vector(np.abs(x).max(0), x, w)
    assert vector is not None and np.isfinite(vector).all() and (vector > 0).all() and vector[5] == vector[6] == 1


def test_a_correction_leaves_errors_of_mean_zero() -> None:
    x, w = sides()
    x = np.abs(x)
    for vector in (None, np.full(64, 2, np.float32)):
        smooth = np.ones(64, np.float32) if vector is None else vector
        rounded = Int8Weight.nearest(w * smooth).values
        errors = x @ w.T - rounded_rows(x / smooth) @ rounded.T
        added = correction(x, w, vector, rounded)
        assert added.shape == (32,) and added.dtype == np.float32
        assert np.abs((errors - added).mean(0)).max() < 1e-4 < np.abs(errors.mean(0)).max()
