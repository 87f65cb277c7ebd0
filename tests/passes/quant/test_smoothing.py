"""quantize-contractions with SmoothQuant's vectors, with products that stay in float, and with products that choose at run time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from llmos.compiler.analysis.contraction import contraction_of
from llmos.compiler.execution.interpreter import Interpreter, OpCache
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import EntryFunc
from llmos.passes import parse_pipeline
from llmos.passes.fold_weight_computation import FoldWeightComputation
from llmos.passes.quant._candidates import products_of
from llmos.passes.quant._fitted import CORRECT, SMOOTH, add_fitted
from llmos.passes.quant._switches import SWITCHES, add_switches
from llmos.passes.quant.quantize_contractions import QuantizeContractions
from llmos.runtime.errors import UserError
from tests.passes.ir_tests import CONTEXT, apply, generics

from .quant_tests import w8a8

K, N = 64, 32


def chain(first: torch.Tensor, second: torch.Tensor, third: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Two products that read x, and one that reads their sum."""
    linear = torch.nn.functional.linear
    return linear(linear(x, first) + linear(x, second), third)


def weights() -> tuple[torch.Tensor, ...]:
    made = torch.Generator().manual_seed(0)
    return torch.randn(K, K, generator=made), torch.randn(K, K, generator=made), torch.randn(N, K, generator=made)


def module_of(*given: torch.Tensor) -> ir.Module:
    return generics(chain, torch.randn(3, K), weights=given)


def run(module: ir.Module, x: torch.Tensor, given: tuple[torch.Tensor, ...], more: Mapping[str, np.ndarray]) -> np.ndarray:
    named = {f"weights.{number}": weight.numpy() for number, weight in enumerate(given)}
    with module.context:
        return np.asarray(Interpreter(module, OpCache(opt_level=0)).run([x.numpy()], {**named, **more}).outputs[0])


def names(module: ir.Module) -> list[str]:
    return [each.name for each in EntryFunc.of(module).arguments]


def are_integers(module: ir.Module) -> list[bool]:
    """Of each contraction, in program order."""
    with module.context:
        return [not each.is_float for op in EntryFunc.of(module).ops if (each := contraction_of(op)) is not None]


def test_products_are_numbered_with_their_activations() -> None:
    module = module_of(*weights())
    with module.context:
        found = products_of(EntryFunc.of(module), CONTEXT.costs)
    assert [(each.number, each.activation, each.label, each.work) for each in found] == [
        (0, 0, "weights.0", K * K),
        (1, 0, "weights.1", K * K),
        (2, 1, "weights.2", K * N),
    ]


def ones(length: int) -> np.ndarray:
    return np.ones(length, np.float32)


def test_a_vector_divides_the_activation_and_multiplies_its_weights() -> None:
    given = weights()
    module = module_of(*given)
    add_fitted(EntryFunc.of(module), SMOOTH, {0: ones(K)})
    apply(module, QuantizeContractions())
    x, s = torch.randn(5, K), torch.rand(K) + 0.5
    smoothed = x * (1 / s)
    want = w8a8(w8a8(smoothed, given[0] * s) + w8a8(smoothed, given[1] * s), given[2])
    got = run(module, x, given, {"quant.smooth.0": s.numpy()})
    np.testing.assert_array_equal(got, want.numpy())


def test_the_weights_side_is_folded_and_unused_vectors_leave() -> None:
    module = module_of(*weights())
    add_fitted(EntryFunc.of(module), SMOOTH, {number: ones(K) for number in (0, 1, 7)})
    apply(module, QuantizeContractions(keep=(2,)))
    assert [name for name in names(module) if name.startswith("quant.")] == ["quant.smooth.0"]
    apply(module, FoldWeightComputation())
    with module.context:
        entry = EntryFunc.of(module)
        vector = next(each.value for each in entry.arguments if each.name == "quant.smooth.0")
        assert not list(vector.uses)
        assert sum(str(each.value.type) == f"tensor<{K}x{K}xi8>" for each in entry.arguments) == 2


def test_what_is_kept_stays_in_float() -> None:
    (option,) = parse_pipeline("quantize-contractions{keep=1,2}")
    assert option == QuantizeContractions(keep=(1, 2)) and str(option) == "quantize-contractions{keep=1,2}"
    assert are_integers(apply(module_of(*weights()), option)) == [True, False, False]
    assert are_integers(apply(module_of(*weights()), QuantizeContractions(keep=(0, 1, 2)))) == [False] * 3


def test_switches_choose_between_a_product_and_its_quantized_form() -> None:
    given = weights()
    module = module_of(*given)
    add_switches(EntryFunc.of(module), 3)
    apply(module, QuantizeContractions())
    x = torch.randn(5, K)
    for keep in ((), (0,), (1, 2), (0, 1, 2)):
        switches = np.array([number not in keep for number in range(3)], np.int32)
        alone = apply(module_of(*given), QuantizeContractions(keep=keep))
        got, want = run(module, x, given, {SWITCHES: switches}), run(alone, x, given, {})
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("keep", "message"),
    [((3,), "keep=3 names 3, and the contractions that it takes here are 0 to 2"), ((1, -1, 7), "keep=1,-1,7 names -1, 7, and")],
)
def test_numbers_that_no_product_has_are_refused_in_a_line(keep: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        apply(module_of(*weights()), QuantizeContractions(keep=keep))
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="keep=0 names 0, and it takes no contraction here"):
        apply(module_of(*weights()), QuantizeContractions(min_k=K + 1, keep=(0,)))


def test_a_correction_is_added_to_its_product() -> None:
    given = weights()
    module = module_of(*given)
    add_fitted(EntryFunc.of(module), CORRECT, {1: ones(K), 2: ones(N)})
    apply(module, QuantizeContractions(keep=(2,)))
    assert [name for name in names(module) if name.startswith("quant.")] == ["quant.correct.1"]
    x, c = torch.randn(5, K), torch.randn(K)
    want = (w8a8(x, given[0]) + (w8a8(x, given[1]) + c)) @ given[2].T
    np.testing.assert_allclose(run(module, x, given, {"quant.correct.1": c.numpy()}), want.numpy(), rtol=1e-4, atol=1e-4)
