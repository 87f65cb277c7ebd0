"""pack-weights: which weights are kept in panels, and the panels themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmos.compiler.backends.cpu.packing import pack_panels, packed_shape
from llmos.compiler.ir.attributes import argument_attributes
from llmos.compiler.ir.bindings import ir
from llmos.passes.form_dispatches import FormDispatches
from llmos.passes.pack_weights import PackWeights

from .ir_tests import apply, check, functions, generics

X = torch.randn(3, 24)
W = torch.randn(24, 50)


def packed(function: object, *inputs: torch.Tensor, weights: tuple[torch.Tensor, ...]) -> ir.Module:
    return apply(generics(function, *inputs, weights=weights), FormDispatches(), PackWeights())


def weight_arguments(module: ir.Module) -> list[str]:
    """Of each weight argument: the axes of n and k, or "plain"."""
    attributes = [a for a in argument_attributes(functions(module)[0]) if ir.StringAttr(a["llmos.kind"]).value == "weight"]
    return [str(a["llmos.packed"]).replace("array<i64: ", "").replace(">", "") if "llmos.packed" in a else "plain" for a in attributes]


def test_the_right_side_is_marked_in_the_entry_and_in_the_dispatch() -> None:
    check(
        packed(lambda w, x: x @ w, X, weights=(W,)),
        """
        CHECK: func.func @main(
        CHECK-SAME: llmos.kind = "weight"
        CHECK-SAME: llmos.packed = [array<i64: 1>, array<i64: 0>]
        CHECK: func.func private @d0_contraction(
        CHECK-SAME: tensor<24x50xf32> {llmos.packed = [array<i64: 1>, array<i64: 0>]
        """,
    )


def test_a_transposed_weight_is_packed_from_its_own_axes() -> None:
    assert weight_arguments(packed(lambda w, x: x @ w.t(), X, weights=(W.t().contiguous(),))) == ["[0, 1]"]


def test_a_weight_read_in_another_way_keeps_its_plain_argument() -> None:
    """Tied embeddings: the table is read by rows, and is the right side of the last product."""
    module = packed(lambda w, x: (torch.sin(w).sum() + x, x @ w.t()), X, weights=(torch.randn(50, 24),))
    assert weight_arguments(module) == ["plain", "[0, 1]"]


def test_two_readings_of_one_weight_are_two_packings() -> None:
    square = torch.randn(24, 24)
    assert sorted(weight_arguments(packed(lambda w, x: (x @ w, x @ w.t()), X, weights=(square,)))) == ["[0, 1]", "[1, 0]"]


@pytest.mark.parametrize(
    "function",
    [
        lambda w, x: x @ torch.tanh(w) if False else x[:, :1] * w[0, :24],  # no contraction
        lambda w, x: w.t() @ x.t(),  # a left side is read in place
    ],
)
def test_is_left_plain(function: object) -> None:
    assert weight_arguments(packed(function, X, weights=(W,))) == ["plain"]


@pytest.mark.parametrize(
    ("n", "k", "width"),
    [
        (1, 1, 16),
        (16, 2, 16),
        (24, 2, 32),
        (64, 2, 64),
        (160, 2, 32),
        (64, 4608, 32),
        (47, 3, 48),
        (48, 5, 48),
        (49, 5, 48),
        (96, 3, 48),
        (100, 17, 48),
    ],
)
def test_panels_are_as_wide_as_wastes_least_and_padded_with_zeros(n: int, k: int, width: int) -> None:
    array = np.random.default_rng(0).standard_normal((n, k), np.float32)
    panels = pack_panels(array, [0], [1])
    assert panels.shape == packed_shape(array.shape, [0], [1]) == (-(-n // width), k, width)
    columns = panels.transpose(0, 2, 1).reshape(-1, k)
    np.testing.assert_array_equal(columns[:n], array)
    assert not columns[n:].any()
    np.testing.assert_array_equal(pack_panels(np.ascontiguousarray(array.T), [1], [0]), panels)
