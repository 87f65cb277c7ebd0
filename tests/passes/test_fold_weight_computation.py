"""fold-weight-computation: what is computed once at compile time, and what stays."""

from __future__ import annotations

import numpy as np
import torch

from llmos.compiler.backends.cpu.backend import CpuBackend
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.backends.planning import run_passes
from llmos.compiler.frontend.torch import import_torch
from llmos.compiler.ir.attributes import FOLD
from llmos.compiler.ir.bindings import ir
from llmos.passes.channels_last import ChannelsLast
from llmos.passes.fold_weight_computation import FoldWeightComputation

from .ir_tests import Call, apply, check, functions, generics

X = torch.randn(3, 24)
G, V = torch.randn(24), torch.rand(24)


def has_fold(module: ir.Module) -> bool:
    return any(FOLD in func.attributes for func in functions(module))


def test_a_scale_of_weights_becomes_a_weight() -> None:
    module = apply(generics(lambda g, v, x: x * (g * torch.rsqrt(v + 0.1)), X, weights=(G, V)), FoldWeightComputation())
    check(
        module,
        """
        CHECK: func.func @main(%{{.*}}: tensor<?x24xf32>
        CHECK-SAME: llmos.kind = "weight", llmos.name = "fold.0"
        CHECK-NOT: math.rsqrt
        CHECK: arith.mulf
        CHECK: return
        CHECK: func.func private @fold(
        CHECK-SAME: -> (tensor<24xf32> {llmos.dtype = "float32", llmos.name = "fold.0"}) attributes {llmos.fold}
        CHECK: math.rsqrt
        """,
    )


def test_what_two_uses_share_is_folded_once() -> None:
    def function(g: torch.Tensor, v: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scale = torch.exp(g)
        return x * scale, torch.sin(x) - scale * v

    module = apply(generics(function, X, weights=(G, V)), FoldWeightComputation())
    fold = next(func for func in functions(module) if FOLD in func.attributes)
    assert str(fold).count("math.exp") == 1


def test_what_depends_on_an_input_stays() -> None:
    assert not has_fold(apply(generics(lambda g, v, x: torch.exp(x * g) + v, X, weights=(G, V)), FoldWeightComputation()))


def test_a_plain_rearrangement_stays() -> None:
    """Kernels read through a transposition, or pack it."""
    weights = (torch.randn(24, 24),)
    assert not has_fold(
        apply(generics(lambda w, x: x + w.t(), X[:1].expand(24, 24).contiguous(), weights=weights, dynamic=False), FoldWeightComputation())
    )


def test_a_result_far_larger_than_its_weights_stays() -> None:
    """600 x 600 out of 1,200 numbers: 1.4 MB of artifact to save one multiplication an element."""
    weights = (torch.randn(600, 1), torch.randn(1, 600))
    module = generics(lambda a, b, x: x + torch.exp(a * b), torch.randn(600, 600), weights=weights, dynamic=False)
    assert not has_fold(apply(module, FoldWeightComputation()))


def test_folded_weights_have_the_values_that_the_program_would_compute() -> None:
    imported = import_torch(Call(lambda g, v, x: x * (g * torch.rsqrt(v + 0.1)), G, V).eval(), (X,), None, name="m")
    options = CompileOptions(target="native", cache=False, repro=None)
    weights = run_passes(imported, options, CpuBackend()).record.weights
    assert list(weights) == ["fold.0"]
    np.testing.assert_allclose(weights["fold.0"].array, (G * torch.rsqrt(V + 0.1)).numpy(), rtol=1e-6)


def test_a_moved_weight_is_folded_unless_a_contraction_packs_it() -> None:
    """The weight of a depthwise convolution is moved to [taps, channels] at compile time; that of a dense one is packed."""
    conv, x = torch.nn.functional.conv2d, torch.randn(2, 24, 9, 9)
    depthwise = generics(lambda w, x: conv(x, w, groups=24), x, weights=(torch.randn(24, 1, 3, 3),))
    assert has_fold(apply(depthwise, ChannelsLast(), FoldWeightComputation()))
    dense = generics(lambda w, x: conv(x, w), x, weights=(torch.randn(8, 24, 3, 3),))
    assert not has_fold(apply(dense, ChannelsLast(), FoldWeightComputation()))
