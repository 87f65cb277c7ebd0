"""drop-unused-weights leaves the weights that dispatches read, inputs as they are, and the result of the entry the same."""

from __future__ import annotations

import pytest
import torch

from llmos.compiler.ir.functions import EntryFunc, public_functions
from llmos.passes.drop_unused_weights import DropUnusedWeights
from llmos.passes.form_dispatches import FormDispatches

from .ir_tests import apply, generics


@pytest.mark.parametrize("unused", [0, 1, 2])
def test_only_what_something_reads_stays(unused: int) -> None:
    weights = [torch.ones(4) * number for number in range(3)]
    module = generics(lambda a, b, c, x, y: x * [a, b, c][unused] + 0 * y, torch.ones(2, 4), torch.ones(2, 4), weights=weights)
    apply(module, FormDispatches())
    (func,) = public_functions(module)
    before = EntryFunc(func).arguments
    read = [each.name for each in before.weights if any(True for _ in each.value.uses)]
    apply(module, DropUnusedWeights())
    after = EntryFunc(func).arguments
    assert [each.name for each in after.weights] == read and len(read) == 1
    assert [each.name for each in after.inputs] == [each.name for each in before.inputs]
