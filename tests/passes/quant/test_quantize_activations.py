"""quantize-activations: rows are rounded as torch rounds them, once for all products, and only beside weights of 4 bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmos.compiler.analysis.contraction import kernel_contraction_of
from llmos.compiler.analysis.quantization import quantizations
from llmos.compiler.ir.bindings import ir
from llmos.passes.quant.keep_quantized_weights import KeepQuantizedWeights
from llmos.passes.quant.quantize_activations import QuantizeActivations
from llmos.passes.quant.quantize_weights import QuantizeWeights
from llmos.runtime.errors import UnsupportedError
from tests.passes.ir_tests import apply, check, functions, generics

from .quant_tests import quantized, run
from .test_quantize_weights import linear, nibbles


def module_of(function: object, x: torch.Tensor, *weights: torch.Tensor, step: QuantizeWeights | None = None) -> ir.Module:
    made = generics(function, x, weights=weights)
    for each in (step or QuantizeWeights(group=32), KeepQuantizedWeights(), QuantizeActivations()):
        apply(made, each)
    return made


def rounded(x: torch.Tensor) -> torch.Tensor:
    numbers, scale = quantized(x)
    return numbers * scale


def num_byte_rows(module: ir.Module) -> int:
    block = next(f for f in functions(module) if "sym_visibility" not in f.attributes).regions[0].blocks[0]
    with module.context:
        found = [kernel_contraction_of(op.operation) for op in block.operations]
        return sum(each is not None and each.has_byte_rows for each in found)


def test_numbers() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(4, 64), torch.randn(40, 64)
    x[1] = 0
    module = module_of(linear, x, w)
    assert num_byte_rows(module) == 1
    np.testing.assert_allclose(run(module, [x], [w])[0], rounded(x) @ nibbles(w, 32).T, rtol=1e-5, atol=1e-4)


def test_a_batch_of_rows_and_a_weight_whose_rows_are_k() -> None:
    x, w = torch.randn(2, 3, 64), torch.randn(64, 40)
    module = module_of(lambda w, x: x @ w, x, w)
    assert num_byte_rows(module) == 1
    np.testing.assert_allclose(run(module, [x], [w])[0], rounded(x) @ nibbles(w.T.contiguous(), 32).T, rtol=1e-5, atol=1e-4)


def test_two_products_share_the_rows() -> None:
    x, v, w = torch.randn(3, 64), torch.randn(40, 64), torch.randn(33, 64)
    module = module_of(lambda v, w, x: (linear(v, x), linear(w, x)), x, v, w)
    assert num_byte_rows(module) == 2
    assert sum(each.kind == "quantize" for each in quantizations(module)) == 1


def test_the_ir() -> None:
    check(
        module_of(linear, torch.randn(3, 64), torch.randn(32, 64)),
        """
        CHECK: llmos.quantize = {dtype = "int8", operands = ["input", "scale"], range = array<i64: -127, 127>}
        CHECK: ins(%{{.*}}, %{{.*}} : tensor<?x64xi8>, tensor<32x64xf32>)
        CHECK: arith.sitofp %{{.*}} : i8 to f32
        CHECK: arith.addf
        CHECK: arith.mulf
        """,
    )


def test_a_row_that_is_not_finite_gives_nan() -> None:
    x, w = torch.randn(3, 64), torch.randn(40, 64)
    x[0, 5], x[1, 6] = float("nan"), float("inf")
    found = run(module_of(linear, x, w), [x], [w])[0]
    assert np.isnan(found[:2]).all() and np.isfinite(found[2]).all()


def test_weights_in_8_bits_and_in_float_keep_their_activations() -> None:
    """Groups of 32 leave a weight of 60 rows in float."""
    x, w, v = torch.randn(3, 64), torch.randn(60, 64), torch.randn(40, 60)
    assert num_byte_rows(module_of(linear, x, w, step=QuantizeWeights(bits=8))) == 0
    module = module_of(lambda w, v, x: linear(v, torch.relu(linear(w, x))), x, w, v)
    assert num_byte_rows(module) == num_byte_rows(module_of(linear, x, w)) > 0


def test_a_model_without_such_a_weight_is_refused_where_one_is_required() -> None:
    with pytest.raises(UnsupportedError, match="the model has no weight in 4 bits; w4a8:g128 makes them of floats"):
        apply(generics(linear, torch.randn(3, 64), weights=(torch.randn(40, 64),)), QuantizeActivations(required=True))
