"""Contracts between passes: each one that is broken is named, by the pass that relies on it or that broke it."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from llmos.compiler.frontend.torch import import_torch
from llmos.compiler.ir.attributes import BUFFERS, DISPATCH, IN_PLACE, LABEL, SLOTS, WINOGRAD, PackedLayout, integer
from llmos.compiler.ir.bindings import context, ir
from llmos.compiler.ir.functions import EntryFunc, Func, dispatch_functions
from llmos.passes import Pass, run_pipeline
from llmos.passes._contracts import PACKED_ALIKE, WINOGRAD_TILED
from llmos.passes.channels_last import ChannelsLast
from llmos.passes.fold_weight_computation import FoldWeightComputation
from llmos.passes.form_dispatches import FormDispatches
from llmos.passes.label_dispatches import LabelDispatches
from llmos.passes.pack_weights import PackWeights
from llmos.passes.plan_memory import PlanMemory
from llmos.passes.tile_dispatches import TileDispatches
from llmos.passes.truncate_activations import TruncateActivations
from llmos.passes.update_in_place import UpdateInPlace
from llmos.passes.winograd import Winograd
from llmos.runtime.errors import PassError

from .ir_tests import CONTEXT, PIPELINE, PRELUDE, QUIET, Call

Break = Callable[[ir.Module], Any]


@cache
def text_after(last: str) -> str:
    """Two layers after the pass of a name, or before all of ours."""
    weights = (torch.nn.Parameter(torch.randn(16, 8)), torch.nn.Parameter(torch.randn(4, 16)))
    model = Call(lambda w, v, x: torch.softmax((x @ w.T).relu() @ v.T, -1), *weights).eval()
    module = import_torch(model, (torch.randn(3, 8),), name="m").module
    names = [step.name for step in PIPELINE]
    run_pipeline(module, PIPELINE[: names.index(last) + 1] if last else PRELUDE[:2], options=QUIET, context=CONTEXT)
    return str(module)


def run(after: str, change: Break, *passes: Pass) -> ir.Module:
    with context(), ir.Location.unknown():
        module = ir.Module.parse(text_after(after))
        change(module)
    run_pipeline(module, passes, options=QUIET, context=CONTEXT)
    return module


def entry(module: ir.Module) -> EntryFunc:
    return EntryFunc.of(module)


def first_call(module: ir.Module) -> ir.Operation:
    return next(op for op in entry(module).ops if op.name == "func.call")


def nothing(module: ir.Module) -> None:
    """Break no contract."""


def pack_the_first(module: ir.Module) -> None:
    entry(module).mark_argument(entry(module).arguments.weights[0].position, packed=PackedLayout((0,), (1,)).attribute())


def forget_a_dispatch(module: ir.Module) -> None:
    del dispatch_functions(module)[0].attributes[DISPATCH]


def input_last(module: ir.Module) -> None:
    entry(module).mark_argument(len(entry(module).arguments) - 1, kind=ir.StringAttr.get("input"))


def nameless(module: ir.Module) -> None:
    entry(module).mark_argument(entry(module).arguments.weights[0].position, name=ir.StringAttr.get(""))


def compute_in_the_entry(module: ir.Module) -> None:
    last = entry(module).ops[-1]
    with ir.InsertionPoint(last):
        ir.Operation.create("arith.negf", results=[last.operands[0].type], operands=[last.operands[0]])


def place_the_first(module: ir.Module) -> None:
    first_call(module).attributes[BUFFERS] = ir.DenseI64ArrayAttr.get([0])


def write_in_place(module: ir.Module) -> None:
    dispatch_functions(module)[0].attributes[IN_PLACE] = integer(0)


REQUIRED: list[tuple[str, Break, Pass, str]] = [
    ("", nothing, ChannelsLast(), "only-linalg-generics"),
    ("", nothing, FoldWeightComputation(), "only-linalg-generics"),
    ("", nothing, FormDispatches(), "only-linalg-generics"),
    ("channels-last", input_last, FoldWeightComputation(), "weights-behind-inputs"),
    ("channels-last", nameless, FoldWeightComputation(), "weights-behind-inputs"),
    *[
        ("form-dispatches", change, step, "dispatched")
        for change in (forget_a_dispatch, compute_in_the_entry)
        for step in (Winograd(), LabelDispatches(), TruncateActivations(), TileDispatches(), PackWeights(), UpdateInPlace(), PlanMemory())
    ],
    *[
        ("form-dispatches", pack_the_first, step, "unpacked")
        for step in (Winograd(), TruncateActivations(), TileDispatches(), PackWeights())
    ],
    ("pack-weights", nothing, TileDispatches(), "unpacked"),
    ("pack-weights", nothing, TruncateActivations(), "unpacked"),
    ("form-dispatches", pack_the_first, PlanMemory(), "packed-alike"),
    ("pack-weights", place_the_first, UpdateInPlace(), "unplaced"),
    ("plan-memory", nothing, UpdateInPlace(), "unplaced"),
    ("pack-weights", write_in_place, PlanMemory(), "in-place-within"),
]


@pytest.mark.parametrize(("after", "change", "step", "contract"), REQUIRED, ids=lambda each: getattr(each, "__name__", str(each)))
def test_a_broken_contract_is_named_by_the_pass_that_relies_on_it(after: str, change: Break, step: Pass, contract: str) -> None:
    with pytest.raises(PassError, match=f"{step.name} requires {contract}"):
        run(after, change, step)


def unlabel(module: ir.Module) -> None:
    del dispatch_functions(module)[-1].attributes[LABEL]


def forget_a_place(module: ir.Module) -> None:
    del first_call(module).attributes[BUFFERS]


def too_few_slots(module: ir.Module) -> None:
    entry(module).op.attributes[SLOTS] = ir.ArrayAttr.get([])


def winograd_without_tile(module: ir.Module) -> None:
    func = dispatch_functions(module)[0]
    func.attributes[DISPATCH] = ir.StringAttr.get("winograd")
    if WINOGRAD in func.attributes:
        del func.attributes[WINOGRAD]


def unpack_a_dispatch(module: ir.Module) -> None:
    func = Func(dispatch_functions(module)[0])
    func.mark_argument(0, packed=PackedLayout((1,), (0,)).attribute())


@pytest.mark.parametrize(
    ("after", "change", "contract"),
    [
        ("label-dispatches", unlabel, *LabelDispatches.ensures),
        ("plan-memory", forget_a_place, *PlanMemory.ensures),
        ("plan-memory", too_few_slots, *PlanMemory.ensures),
        ("form-dispatches", compute_in_the_entry, *FormDispatches.ensures),
        ("form-dispatches", winograd_without_tile, WINOGRAD_TILED),
        ("pack-weights", unpack_a_dispatch, PACKED_ALIKE),
    ],
    ids=lambda each: getattr(each, "__name__", str(each)),
)
def test_what_a_pass_ensures_is_checked(after: str, change: Break, contract: Any) -> None:
    with context(), ir.Location.unknown():
        module = ir.Module.parse(text_after(after))
        assert contract.check(module) is None
        change(module)
        assert contract.check(module)


def test_every_pass_of_the_pipeline_keeps_its_contracts() -> None:
    module = run("", nothing, *PIPELINE)
    assert SLOTS in entry(module).op.attributes
