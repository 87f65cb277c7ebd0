"""truncate-activations: which values are kept in bfloat16, where they are rounded and extended, and what stays in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llmos.compiler.ir.attributes import argument_attributes
from llmos.compiler.ir.bindings import ir
from llmos.passes.form_dispatches import FormDispatches
from llmos.passes.pack_weights import PackWeights
from llmos.passes.recognize_attention import RecognizeAttention
from llmos.passes.truncate_activations import TruncateActivations

from .ir_tests import apply, check, functions, generics, kinds

X = torch.randn(3, 24)
W = torch.randn(24, 50)


def narrowed(function: Any, *inputs: torch.Tensor, weights: tuple[torch.Tensor, ...] = ()) -> ir.Module:
    return apply(generics(function, *inputs, weights=weights), RecognizeAttention(), FormDispatches(), TruncateActivations())


def main_types(module: ir.Module) -> list[str]:
    """Element types of the results of the entry's calls, in order."""
    calls = [op for op in functions(module)[0].regions[0].blocks[0].operations if op.operation.name == "func.call"]
    return [str(result.type.element_type) for call in calls for result in call.results]


def weight_dtypes(module: ir.Module) -> list[str]:
    attributes = [a for a in argument_attributes(functions(module)[0]) if ir.StringAttr(a["llmos.kind"]).value == "weight"]
    return [ir.StringAttr(a["llmos.dtype"]).value for a in attributes]


def test_a_product_reads_bfloat16_on_both_sides_and_the_program_float32() -> None:
    check(
        narrowed(lambda w, x: x @ w, X, weights=(W,)),
        """
        CHECK: func.func @main(%arg0: tensor<?x24xf32>
        CHECK-SAME: tensor<24x50xbf16>
        CHECK-SAME: -> (tensor<?x50xf32>
        CHECK: func.func private @d0_contraction(%arg0: tensor<?x24xf32>
        CHECK-SAME: tensor<24x50xbf16>
        CHECK: arith.extf
        CHECK: arith.truncf
        CHECK: arith.extf
        CHECK: arith.mulf %{{.*}} : f32
        CHECK-NOT: arith.truncf
        CHECK: return
        """,
    )


def test_what_goes_between_dispatches_is_rounded_once_and_extended_where_it_is_read() -> None:
    module = narrowed(lambda w, v, x: torch.relu(x @ w) @ v, X, weights=(W, torch.randn(50, 7)))
    assert main_types(module) == ["bf16", "f32"]
    assert str(functions(module)[1]).count("arith.truncf") == 2  # of the program's input, and of the result
    assert str(functions(module)[2]).count("arith.truncf") == 0


def test_views_between_dispatches_follow() -> None:
    module = narrowed(lambda w, v, x: (x @ w).sin().view(-1, 5, 10) @ v, X, weights=(W, torch.randn(10, 7)))
    check(module, "CHECK: tensor.expand_shape %{{.*}} : tensor<?x50xbf16> into tensor<?x5x10xbf16>")


def test_vectors_stay_float32_and_tables_do_not() -> None:
    tokens = torch.randint(0, 50, (3, 4))
    module = narrowed(lambda table, w, bias, t: table[t] @ w + bias, tokens, weights=(torch.randn(50, 24), W, torch.randn(50)))
    assert weight_dtypes(module) == ["bfloat16", "bfloat16", "float32"]


def test_what_is_only_added_or_normalised_stays_float32() -> None:
    def block(w: torch.Tensor, v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(x @ w, (50,)) @ v

    assert main_types(narrowed(block, X, weights=(W, torch.randn(50, 7)))) == ["f32", "bf16", "f32"]


def test_what_integers_alone_decide_stays_float32() -> None:
    """Angles of positions: bfloat16 has 8 bits, a position has more."""

    def rotated(w: torch.Tensor, frequencies: torch.Tensor, positions: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (x @ w) * (positions[:, None] * frequencies).cos()

    module = narrowed(rotated, torch.arange(3), X, weights=(W, torch.randn(50)))
    assert kinds(module) == ["elementwise", "contraction"]
    assert main_types(module) == ["f32", "f32"]
    assert weight_dtypes(module) == ["bfloat16", "float32"]


def test_a_mask_that_attention_adds_stays_float32() -> None:
    def attend(w: torch.Tensor, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        q = (x @ w).view(x.shape[0], 6, 4, 8).transpose(1, 2)
        mask = (1.0 - keep.sin()) * torch.finfo(torch.float32).min
        return torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=mask[:, None, None, :].expand(-1, 4, 6, -1))

    module = narrowed(attend, torch.randn(3, 6, 24), torch.rand(3, 6), weights=(torch.randn(24, 32),))
    attention = next(f for f in functions(module) if "attention" in str(f.attributes["sym_name"]))
    kinds = [str(a.type) for a in attention.regions[0].blocks[0].arguments if isinstance(a.type, ir.RankedTensorType)]
    assert any("bf16" in kind for kind in kinds)
    assert all("bf16" not in kind for kind in kinds if "6x4x8" not in kind)


def test_packing_reads_through_the_widening() -> None:
    module = apply(narrowed(lambda w, x: x @ w.t(), X, weights=(W.t().contiguous(),)), PackWeights())
    check(module, "CHECK: func.func @main({{.*}}tensor<50x24xbf16> {{.*}}llmos.packed = [array<i64: 0>, array<i64: 1>]")


@pytest.mark.parametrize("function", [lambda x: x.sin(), lambda x: x @ x.t()])
def test_programs_without_matrices_or_steps_do_not_change(function: Any) -> None:
    assert "bf16" not in str(narrowed(function, X))
