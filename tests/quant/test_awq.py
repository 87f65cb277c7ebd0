"""AWQ's search: channels with large activations are scaled up, where that lowers the product's error."""

from __future__ import annotations

import numpy as np
import pytest

from llmos.compiler.quant.awq import scale_search
from llmos.compiler.quant.nibbles import nearest


def sides(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of 128 channels, four of them 20 times the others."""
    rng = np.random.default_rng(seed)
    rows, weight = rng.standard_normal((300, 128), np.float32), rng.standard_normal((48, 128), np.float32)
    rows[:, [3, 40, 77, 120]] *= 20
    return rows, weight


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_error_is_lower_than_that_of_nearest(seed: int, group: int) -> None:
    (rows, weight), (fresh, _) = sides(seed), sides(seed + 100)
    vector = scale_search(rows, weight, group)
    assert vector is not None and vector.dtype == np.float32 and vector[[3, 40, 77, 120]].min() > 1.5 * np.median(vector)

    def error(values: np.ndarray) -> float:
        return float(np.linalg.norm(fresh @ (values - weight).T))

    assert error(nearest(weight * vector, group).values / vector) < 0.8 * error(nearest(weight, group).values)


def test_channels_that_are_never_used_keep_their_scale() -> None:
    rows, weight = sides(0)
    rows[:, 9] = 0
    vector = scale_search(rows, weight, 32)
    assert vector is not None and vector[9] == 1
    assert scale_search(np.zeros_like(rows), weight, 32) is None
