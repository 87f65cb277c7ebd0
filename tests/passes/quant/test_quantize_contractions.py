"""quantize-contractions: the numbers are those of torch's arithmetic, and what isn't a product with a weight stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.compiler.analysis.contraction import contraction_of
from llmos.compiler.analysis.quantization import quantizations
from llmos.compiler.ir.bindings import ir
from llmos.passes.fold_weight_computation import FoldWeightComputation
from llmos.passes.quant.quantize_contractions import QuantizeContractions
from tests.passes.ir_tests import apply, check, functions, generics

from .quant_tests import examples, run, w8a8

SMALL = QuantizeContractions(min_k=1, min_n=1)


def linear(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(x, w)


def num_integer_products(module: ir.Module) -> int:
    found = [contraction_of(op.operation) for op in functions(module)[0].regions[0].blocks[0].operations]
    return sum(each is not None and not each.is_float for each in found)


def quantized_module(function: Any, *inputs: torch.Tensor, weights: tuple[torch.Tensor, ...], dynamic: bool = True) -> ir.Module:
    return apply(generics(function, *inputs, weights=weights, dynamic=dynamic), SMALL)


def expect(x: torch.Tensor, w: torch.Tensor, *, dynamic: bool = True) -> None:
    module = quantized_module(linear, x, weights=(w,), dynamic=dynamic)
    assert num_integer_products(module) == 1
    np.testing.assert_array_equal(run(module, [x], [w])[0], w8a8(x, w).numpy())


def test_the_ir() -> None:
    module = apply(generics(linear, torch.randn(3, 64), weights=(torch.randn(32, 64),)), QuantizeContractions(), FoldWeightComputation())
    check(
        module,
        """
        CHECK: func.func @main(%{{.*}}: tensor<?x64xf32>
        CHECK: arith.minimumf
        CHECK: arith.maximumf
        CHECK: llmos.quantize = {dtype = "uint8", operands = ["input", "scale", "zero_point"], range = array<i64: 0, 255>}
        CHECK: ins(%{{.*}}, %{{.*}} : tensor<?x64xi8>, tensor<32x64xi8>) outs(%{{.*}} : tensor<?x32xi32>)
        CHECK: arith.extui
        CHECK: arith.extsi
        CHECK: arith.muli
        CHECK: arith.addi
        CHECK: arith.sitofp
        CHECK: arith.mulf
        CHECK: arith.mulf
        CHECK: return
        CHECK: func.func private @fold(
        CHECK: llmos.quantize = {dtype = "int8", operands = ["input", "scale"], range = array<i64: -127, 127>}
        """,
    )
    kinds = {str(argument.type) for argument in functions(module)[0].regions[0].blocks[0].arguments}
    assert {"tensor<32x64xi8>", "tensor<32xi32>", "tensor<32xf32>"} <= kinds


@settings(max_examples=examples(8, 15), deadline=None)
@given(
    batch=st.lists(st.integers(1, 4), max_size=2),
    rows=st.integers(1, 6),
    k=st.sampled_from([1, 2, 7, 64, 65]),
    n=st.sampled_from([1, 3, 32, 33]),
    dynamic=st.booleans(),
    symmetric=st.booleans(),
    seed=st.integers(0, 99),
)
def test_numbers(batch: list[int], rows: int, k: int, n: int, dynamic: bool, symmetric: bool, seed: int) -> None:
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(*batch, rows, k, generator=made) * 10 ** torch.randint(-3, 4, (rows, 1), generator=made).float()
    w = torch.randn(n, k, generator=made)
    x[..., 0, :] = 0.0
    module = generics(linear, x, weights=(w,), dynamic=dynamic and x.shape[0] > 1)
    apply(module, replace(SMALL, symmetric=symmetric))
    assert num_integer_products(module) == (n > 1)  # a product with a vector is none with a matrix
    want = w8a8(x, w, symmetric=symmetric) if n > 1 else x @ w.T
    np.testing.assert_allclose(run(module, [x], [w])[0], want.numpy(), rtol=0 if n > 1 else 1e-4, atol=0 if n > 1 else 1e-3)


def test_the_ir_of_symmetric_activations() -> None:
    module = apply(generics(linear, torch.randn(3, 64), weights=(torch.randn(32, 64),)), QuantizeContractions(symmetric=True))
    check(
        module,
        """
        CHECK: math.absf
        CHECK: llmos.quantize = {dtype = "uint8", operands = ["input", "scale"], range = array<i64: 1, 255>, zero_point = 128 : i64}
        """,
    )


def test_a_row_of_one_sign_has_all_numbers() -> None:
    """An activation behind a ReLU: 255 steps between 0 and the largest, not 127."""
    x, w = torch.rand(64, 256), torch.randn(32, 256)
    expect(x, w)
    exact = x @ w.T
    assert (w8a8(x, w) - exact).abs().mean() < (w8a8(x, w, symmetric=True) - exact).abs().mean()


def test_a_row_and_a_column_of_zeros() -> None:
    x, w = torch.randn(3, 64), torch.randn(32, 64)
    x[1], w[5] = 0.0, 0.0
    expect(x, w)


def test_numbers_whose_range_is_no_float() -> None:
    x, w = torch.full((2, 64), 3e38), torch.full((32, 64), 1e-30)
    x[:, ::2] *= -1.0
    x[0, 0] = 0.0
    expect(x, w)


def test_tiny_numbers_whose_scale_is_no_float() -> None:
    x, w = torch.full((2, 64), 1e-45), torch.randn(32, 64)
    module = quantized_module(linear, x, weights=(w,))
    assert np.isfinite(run(module, [x], [w])[0]).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_gives_nan_in_its_row_or_column_alone(bad: float) -> None:
    x, w = torch.randn(3, 64), torch.randn(32, 64)
    module = quantized_module(linear, x, weights=(w,))
    x[1, 7] = bad
    got = run(module, [x], [w])[0]
    assert np.isnan(got[1]).all() and np.isfinite(got[[0, 2]]).all()
    x[1, 7], w[4, 9] = 1.0, bad
    got = run(module, [x], [w])[0]
    assert np.isnan(got[:, 4]).all() and np.isfinite(np.delete(got, 4, 1)).all()


def test_a_weight_on_the_other_side_of_a_transposition() -> None:
    x, w = torch.randn(3, 64), torch.randn(64, 32)
    module = quantized_module(lambda w, x: x @ w, x, weights=(w,))
    assert num_integer_products(module) == 1
    np.testing.assert_array_equal(run(module, [x], [w])[0], w8a8(x, w.T.contiguous()).numpy())


def test_a_weight_that_is_computed_from_weights() -> None:
    x, w, g = torch.randn(3, 64), torch.randn(32, 64), torch.randn(64)
    module = quantized_module(lambda w, g, x: torch.nn.functional.linear(x, w * g), x, weights=(w, g))
    np.testing.assert_array_equal(run(module, [x], [w, g])[0], w8a8(x, w * g).numpy())


def test_what_a_sum_starts_from_is_added() -> None:
    x, w, b = torch.randn(3, 64), torch.randn(64, 32), torch.randn(3, 32)
    module = quantized_module(lambda w, x, b: torch.addmm(b, x, w), x, b, weights=(w,), dynamic=False)
    np.testing.assert_allclose(run(module, [x, b], [w])[0], (w8a8(x, w.T.contiguous()) + b).numpy(), rtol=1e-6, atol=1e-6)


def test_what_several_products_read_is_quantized_once() -> None:
    x, w = torch.randn(2, 5, 64), tuple(torch.randn(32, 64) for _ in range(3))
    module = quantized_module(lambda q, k, v, x: (linear(q, x), linear(k, x), linear(v, x)), x, weights=w)
    assert num_integer_products(module) == 3
    assert [each.dtype for each in quantizations(module)].count("uint8") == 1
    for got, each in zip(run(module, [x], w), w, strict=True):
        np.testing.assert_array_equal(got, w8a8(x, each).numpy())


def test_a_weight_that_two_products_read_is_quantized_once() -> None:
    x, w = torch.randn(2, 64), torch.randn(64, 64)
    module = quantized_module(lambda w, x: linear(w, linear(w, x)), x, weights=(w,))
    assert [each.dtype for each in quantizations(module)].count("int8") == 1
    np.testing.assert_array_equal(run(module, [x], [w])[0], w8a8(w8a8(x, w), w).numpy())


@pytest.mark.parametrize(
    ("function", "shapes", "weights"),
    [
        (lambda x, y: x @ y, [(4, 64), (64, 32)], []),  # of two activations
        (lambda w, x: torch.nn.functional.conv2d(x, w), [(2, 64, 9, 9)], [(32, 64, 3, 3)]),
        (linear, [(4, 63)], [(32, 63)]),
        (linear, [(4, 64)], [(31, 64)]),
        (lambda w, x: torch.bmm(x, w), [(4, 3, 64)], [(4, 64, 32)]),  # a matrix for each of a batch
        (lambda w, v, x: x + linear(w, v), [(64, 32)], [(32, 64), (64, 64)]),  # of two weights
    ],
)
def test_what_stays(function: Any, shapes: list[tuple[int, ...]], weights: list[tuple[int, ...]]) -> None:
    module = generics(function, *map(torch.randn, shapes), weights=tuple(map(torch.randn, weights)), dynamic=False)
    before = str(module)
    assert str(apply(module, QuantizeContractions())) == before


def test_other_types_stay() -> None:
    x, w = torch.randn(4, 64, dtype=torch.float64), torch.randn(32, 64, dtype=torch.float64)
    module = generics(linear, x, weights=(w,))
    before = str(module)
    assert str(apply(module, QuantizeContractions())) == before
