"""Rounding to 4 bits in numpy: what the pass computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmos.compiler.quant.nibbles import nearest
from llmos.passes.quant.quantize_weights import QuantizeWeights
from tests.passes.ir_tests import apply, generics
from tests.passes.quant.quant_tests import run


@pytest.mark.parametrize("group", [32, 64, 128])
def test_it_is_the_arithmetic_of_the_pass(group: int) -> None:
    torch.manual_seed(group)
    x, w = torch.eye(2 * group), torch.randn(40, 2 * group)
    w[3, :group], w[4, :group], w[5, :group] = 0, w[4, :group].abs(), -w[5, :group].abs()
    module = apply(generics(lambda w, x: torch.nn.functional.linear(x, w), x[:8], weights=(w,)), QuantizeWeights(group=group))
    np.testing.assert_array_equal(run(module, [x], [w])[0].T, nearest(w.numpy(), group).values)


def test_what_is_not_finite_has_no_scale() -> None:
    w = np.ones((3, 64), np.float32)
    w[0, 1], w[1, 40] = np.nan, np.inf
    assert np.isnan(nearest(w, 32).scale).tolist() == [[True, False], [False, True], [False, False]]
