"""quantize-static: what calibration has seen becomes QDQ around products, and bytes between dispatches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from llmos.compiler.backends.common import before_integers, integers
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.ir.attributes import ACTIVATION_RANGES
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import EntryFunc
from llmos.passes.quant._static import activations_of, static_products
from llmos.passes.quant.quantize_static import QuantizeStatic
from tests.passes.ir_tests import apply, check, generics

from .quant_tests import kernel_forms, run

X = torch.rand(1, 8, 8, 8, generator=torch.Generator().manual_seed(0)) * 4 - 1
W1, W2 = (torch.randn(8, 8, 3, 3, generator=torch.Generator().manual_seed(seed)) * 0.1 for seed in (1, 2))
W3 = torch.randn(8, 1, 3, 3, generator=torch.Generator().manual_seed(3)) * 0.1


def prepared(function: Any, weights: tuple[torch.Tensor, ...], *inputs: torch.Tensor) -> ir.Module:
    return apply(generics(function, *inputs, weights=weights, dynamic=False), *before_integers(CompileOptions()))


def quantized(module: ir.Module, ranges: list[float]) -> ir.Module:
    with module.context, ir.Location.unknown():
        EntryFunc.of(module).op.attributes[ACTIVATION_RANGES] = ir.DenseF64ArrayAttr.get(ranges)
    return apply(module, QuantizeStatic(), *integers())


def block(w1: torch.Tensor, w2: torch.Tensor, w3: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    conv = torch.nn.functional.conv2d
    x = torch.nn.functional.max_pool2d(conv(x, w1, padding=1).relu(), 2)
    y = conv(x, w3, padding=1, groups=8).relu()
    return (x + conv(y, w2, padding=1)).relu()


def test_a_block_is_near_its_floats() -> None:
    weights = (W1, W2, W3)
    module = prepared(block, weights, X)
    want = run(module, (X,), weights)[0]
    quantized(module, [-1.0, 3.0, 0.0, 4.0, 0.0, 1.5])
    got = run(module, (X,), weights)[0]
    assert kernel_forms(module) == 2
    assert 0 < np.abs(got - want).max() < 0.02 * np.abs(want).max()


def test_a_convolution_of_one_tap_runs_in_integers() -> None:
    def function(w1: torch.Tensor, w2: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        conv = torch.nn.functional.conv2d
        return conv(conv(x, w1, padding=1).relu(), w2)

    module = prepared(function, (W1, torch.randn(16, 8, 1, 1)), X)
    assert kernel_forms(quantized(module, [-1.0, 3.0, 0.0, 4.0])) == 2


def test_everything_reads_the_quantized_activation() -> None:
    """The pool and the addition read bytes: what makes the activation has the one result."""
    module = quantized(prepared(block, (W1, W2, W3), X), [-1.0, 3.0, 0.0, 4.0, 0.0, 1.5])
    check(module, 'CHECK: llmos.quantize = {dtype = "uint8", operands = ["input"]\nCHECK: arith.maxui\nCHECK: llmos.dequantize')


def test_moves_and_pools_share_an_activation() -> None:
    def function(w1: torch.Tensor, w2: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        x = x.exp()
        return torch.nn.functional.conv2d(x, w1, padding=1) + torch.nn.functional.conv2d(
            torch.nn.functional.max_pool2d(x, 3, 1, 1), w2, padding=1
        )

    module = prepared(function, (W1, W2), X)
    products = static_products(EntryFunc.of(module))
    assert len(products) == 2
    assert len(activations_of(products)) == 1


def test_products_of_two_activations_stay() -> None:
    def function(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        y = x @ w
        return y @ y.transpose(1, 2)

    module = prepared(function, (torch.randn(64, 32),), torch.randn(1, 4, 64))
    assert len(static_products(EntryFunc.of(module))) == 1


def test_without_ranges_nothing_changes() -> None:
    module = prepared(block, (W1, W2, W3), X)
    before = str(module)
    assert str(apply(module, QuantizeStatic())) == before
