"""keep-quantized-weights: contractions end up beside a dequantization of their own in float32, and compute what they did."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from llmos.compiler.analysis.contraction import float_contraction_of
from llmos.compiler.analysis.quantized_weights import NumberFormat, QuantizedWeight, quantized_weight_of
from llmos.compiler.frontend.quantized import dequantize
from llmos.compiler.frontend.torch import import_torch
from llmos.compiler.ir.bindings import ir
from llmos.passes import run_pipeline
from llmos.passes.fold_weight_computation import FoldWeightComputation
from llmos.passes.quant.keep_quantized_weights import KeepQuantizedWeights
from tests.codegen.programs import compile_torch
from tests.passes.ir_tests import CONTEXT, PRELUDE, QUIET, apply, functions

from .quant_tests import OfIntegers


def module_of(function: Any, *buffers: torch.Tensor, x: torch.Tensor) -> ir.Module:
    module = import_torch(OfIntegers(function, *buffers), (x,)).module
    run_pipeline(module, PRELUDE, options=QUIET, context=CONTEXT)
    return apply(module, KeepQuantizedWeights())


def found_in(module: ir.Module) -> list[QuantizedWeight]:
    block = next(f for f in functions(module) if "sym_visibility" not in f.attributes).regions[0].blocks[0]
    with module.context:
        contractions = [float_contraction_of(op.operation) for op in block.operations]
        return [q for c in contractions if c is not None and (q := quantized_weight_of(c)) is not None]


def buffers(scale: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randint(0, 16, (48, 64), dtype=torch.uint8), torch.rand(48, 2).to(scale), torch.randint(0, 16, (48, 2), dtype=torch.uint8)


def weight(q: torch.Tensor, s: torch.Tensor, z: torch.Tensor, to: torch.dtype = torch.float32) -> torch.Tensor:
    made: torch.Tensor = dequantize(q, s, z, "uint4", 1, 32, to)
    return made


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_left_out(half: torch.dtype) -> None:
    module = module_of(lambda q, s, z, x: x @ weight(q, s, z, half).float().T, *buffers(half), x=torch.randn(3, 64))
    (found,) = found_in(module)
    assert found.format == NumberFormat(4, False, 32, True, None)
    assert "truncf" not in str(module)


def test_two_products_have_a_dequantization_each() -> None:
    def function(q: torch.Tensor, s: torch.Tensor, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        made = weight(q, s, z)
        return (x @ made.T) @ made

    module = module_of(function, *buffers(), x=torch.randn(3, 64))
    assert [(each.n_axis, each.k_axis) for each in found_in(module)] == [(0, 1)]  # the second sums along what has no groups
    module = module_of(lambda q, s, z, x: x @ weight(q, s, z).T + x.abs() @ weight(q, s, z).T, *buffers(), x=torch.randn(3, 64))
    assert len(found_in(module)) == 2
    apply(module, FoldWeightComputation())
    assert len(found_in(module)) == 2 and "tensor<48x64xf32> {" not in str(module)


def test_folding_leaves_a_dequantization_and_folds_its_scale() -> None:
    module = module_of(lambda q, s, z, x: x @ weight(q, s, z).T, buffers()[0], torch.rand(48, 2) * 2, buffers()[2], x=torch.randn(3, 64))
    apply(module, FoldWeightComputation())
    (found,) = found_in(module)
    assert all(isinstance(value.owner, ir.Block) for value in (found.numbers, found.scale, found.zero_point) if value is not None)


def test_numbers_that_are_no_weight_are_dequantized_at_run_time() -> None:
    q, s, z = buffers()
    module = OfIntegers(lambda s, z, x: x.float() @ weight(x, s, z).T, s, z)
    program = compile_torch(module, [q])
    np.testing.assert_allclose(np.asarray(program(q.numpy())), module(q), rtol=1e-4, atol=1e-2)
    assert [kernel.kind for kernel in program.manifest.kernels] == ["elementwise", "contraction"]  # the first for the weight


def test_the_value_is_that_of_the_unrounded_weight() -> None:
    q, s, z = buffers(torch.float16)
    module = OfIntegers(lambda q, s, z, x: x @ weight(q, s, z, torch.float16).float().T, q, s, z)
    x = torch.randn(5, 64)
    exact = x.double() @ ((q.double() - z.double().repeat_interleave(32, 1)) * s.double().repeat_interleave(32, 1)).T
    np.testing.assert_allclose(np.asarray(compile_torch(module, [x])(x.numpy())), exact, rtol=1e-4, atol=1e-4)
