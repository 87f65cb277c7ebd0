"""GPTQ: a smaller error of the product than rounding to nearest, on rows that it hasn't seen too."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.compiler.quant.gptq import BLOCK, gptq, gptq_int8
from llmos.compiler.quant.int8 import Int8Weight
from llmos.compiler.quant.nibbles import Grid, Nibbles, nearest
from llmos.compiler.quant.scheme import GROUPS


def correlated(seed: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows [512, k] of a quarter as many directions and some noise, and a weight [24, k]."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((512, k // 4)) @ rng.standard_normal((k // 4, k)) + 0.3 * rng.standard_normal((512, k))
    return rows.astype(np.float32), rng.standard_normal((24, k), np.float32)


def hessian(rows: np.ndarray) -> np.ndarray:
    wide = rows.astype(np.float64)
    found: np.ndarray = wide.T @ wide
    return found


def error(rows: np.ndarray, weight: np.ndarray, made: Nibbles | Int8Weight) -> float:
    """Of the product, relative to it."""
    return float(np.linalg.norm(rows @ (made.values - weight).T) / np.linalg.norm(rows @ weight.T))


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1 << 30), st.sampled_from(GROUPS), st.sampled_from([128, 256, 384]))
def test_the_error_is_lower_than_that_of_nearest(seed: int, group: int, k: int) -> None:
    rows, weight = correlated(seed, k)
    seen, fresh = rows[:384], rows[384:]
    made, plain = gptq(weight, hessian(seen), group), nearest(weight, group)
    assert error(seen, weight, made) < 0.5 * error(seen, weight, plain)
    assert error(fresh, weight, made) < 0.6 * error(fresh, weight, plain)
    assert made.numbers.max() <= 15 and made.zero_point.max() <= 15


def test_each_column_is_made_up_for_as_the_paper_says() -> None:
    """Beside the paper's first form: after each column the inverse of the Hessian of those that are left."""
    rows, weight = correlated(5, BLOCK + 32)
    matrix = hessian(rows)
    made, left = gptq(weight, matrix, 32), weight.astype(np.float64)
    damped = matrix + 0.01 * matrix.diagonal().mean() * np.eye(len(matrix))
    values = made.values
    for j in range(weight.shape[1]):
        if j % 32 == 0:
            grid = Grid.of(left[:, j : j + 32].astype(np.float32), 1)
            np.testing.assert_allclose(made.scale[:, j // 32], grid.scale, rtol=1e-3)
        inside = (made.numbers[:, j] > 0) & (made.numbers[:, j] < 15)
        off = np.abs(values[:, j] - left[:, j])
        assert (off[inside] <= 0.501 * made.scale[inside, j // 32]).all()  # the nearest
        inverse = np.linalg.inv(damped[j:, j:])
        left[:, j:] -= np.outer((left[:, j] - values[:, j]) / inverse[0, 0], inverse[0])


def test_rows_alone_and_among_others_are_the_same() -> None:
    rows, weight = correlated(1, 128)
    whole, part = gptq(weight, hessian(rows), 64), gptq(weight[5:6], hessian(rows), 64)
    np.testing.assert_array_equal(whole.numbers[5:6], part.numbers)


def test_channels_that_are_never_used_and_rows_that_are_not_finite_are_rounded_to_nearest() -> None:
    rows, weight = correlated(2, 128)
    rows[:, 32:64] = 0
    weight[3, 70] = np.nan
    made, plain = gptq(weight, hessian(rows), 32), nearest(weight, 32)
    np.testing.assert_array_equal(made.numbers[:, 32:64], plain.numbers[:, 32:64])
    np.testing.assert_array_equal(made.numbers[3], plain.numbers[3])
    assert np.isnan(made.scale[3, 2]) and np.isfinite(np.delete(made.scale, 3, 0)).all()


def test_fewer_rows_than_channels() -> None:
    rows, weight = correlated(3, 256)
    made = gptq(weight, hessian(rows[:5]), 128)
    assert error(rows[:5], weight, made) < 0.5 * error(rows[:5], weight, nearest(weight, 128))
    nothing = gptq(weight, np.zeros((256, 256)), 128)
    np.testing.assert_array_equal(nothing.numbers, nearest(weight, 128).numbers)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1 << 30), st.sampled_from([64, 128, 200, 384]))
def test_eight_bits_with_a_scale_a_row(seed: int, k: int) -> None:
    rows, weight = correlated(seed, k)
    weight[7] = 0
    seen, fresh = rows[:384], rows[384:]
    made, plain = gptq_int8(weight, hessian(seen)), Int8Weight.nearest(weight)
    assert error(seen, weight, made) < 0.5 * error(seen, weight, plain)
    assert error(fresh, weight, made) < 0.6 * error(fresh, weight, plain)
    assert made.numbers.dtype == np.int8 and made.numbers.min() >= -127 and not made.numbers[7].any() and made.scale[7] == 1
    np.testing.assert_array_equal(made.scale, plain.scale)


def test_eight_bits_of_rows_that_are_not_finite() -> None:
    rows, weight = correlated(2, 128)
    weight[3, 70], weight[5, 1] = np.nan, np.inf
    made = gptq_int8(weight, hessian(rows))
    assert np.isnan(made.scale[[3, 5]]).all() and np.isfinite(np.delete(made.scale, [3, 5])).all()
    np.testing.assert_array_equal(np.delete(made.numbers, [3, 5], 0), gptq_int8(np.delete(weight, [3, 5], 0), hessian(rows)).numbers)
