"""What an op is, beside what pays on a CPU: analyzes answer the first, the cost model the second."""

from __future__ import annotations

import pytest
import torch

from llmos.compiler.analysis.contraction import Contraction, float_contraction_of
from llmos.compiler.backends.cpu.cost import CpuCosts
from llmos.compiler.ir.bindings import ir
from llmos.passes import CostModel, PassContext, run_pipeline
from llmos.passes.channels_last import ChannelsLast
from llmos.passes.form_dispatches import FormDispatches
from tests.passes.ir_tests import QUIET, apply, functions, generics, kinds

CONV = torch.nn.functional.conv2d


def convolution(channels: int, columns: int, groups: int = 1) -> ir.Module:
    """A convolution of 3x3 pixels, its channels innermost."""
    weight = torch.randn(columns, channels // groups, 3, 3)
    return apply(generics(lambda w, x: CONV(x, w, groups=groups), torch.randn(2, channels, 9, 9), weights=(weight,)), ChannelsLast())


def contractions(module: ir.Module) -> list[Contraction]:
    found = [float_contraction_of(op.operation) for op in functions(module)[0].regions[0].blocks[0].operations]
    return [each for each in found if each is not None]


@pytest.mark.parametrize(("channels", "columns", "pays"), [(16, 24, True), (1, 24, True), (16, 2, True), (1, 2, False), (2, 4, False)])
def test_a_convolution_of_few_channels_is_a_contraction_that_does_not_pay(channels: int, columns: int, pays: bool) -> None:
    module = convolution(channels, columns)
    (found,) = contractions(module)
    assert CpuCosts().pays_as_contraction(found) is pays


def test_it_is_a_question_of_the_cost_models_fields() -> None:
    module = convolution(1, 2)
    (found,) = contractions(module)
    assert CpuCosts(min_columns=2).pays_as_contraction(found)


@pytest.mark.parametrize(("costs", "pays"), [(CpuCosts(), False), (CpuCosts(min_columns=2), True)])
def test_dispatches_follow_the_cost_model(costs: CostModel, pays: bool) -> None:
    module = convolution(1, 2)
    run_pipeline(module, [FormDispatches()], options=QUIET, context=PassContext(costs))
    assert ("contraction" in kinds(module)) is pays


def test_what_is_recomputed() -> None:
    costs = CpuCosts()
    assert costs.pays_to_recompute(["arith.addf", "linalg.yield"], 1)
    assert not costs.pays_to_recompute(["math.exp", "linalg.yield"], 1)
    assert not costs.pays_to_recompute(["arith.addf", "linalg.yield"], 2)
    assert not costs.pays_to_recompute(["arith.addf"] * 5 + ["linalg.yield"], 1)
