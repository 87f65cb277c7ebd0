"""The contracts of docs/architecture.md as properties: what passes rely on, checked at the pass that does."""

from __future__ import annotations

from collections.abc import Iterator

from llmos.compiler.analysis.loops import is_loop
from llmos.compiler.ir.attributes import BUFFERS, COMPUTES, LABEL, SCAN_OUTPUT, SLOTS, WITHIN
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import (
    DispatchFunc,
    EntryFunc,
    Func,
    callee_of,
    dispatch_functions,
    functions_of,
    is_dispatch,
    is_public,
    public_functions,
)
from llmos.compiler.ir.ops import VIEWS
from llmos.passes._property import Property


# -- arguments of entries
def _misplaced_argument(module: ir.Module) -> str | None:
    for func in public_functions(module):
        seen_weight = False
        for argument in EntryFunc(func).arguments:
            if argument.is_weight and not argument.name:
                return f"weight {argument.position} has no name"
            if argument.is_input and seen_weight:
                return f"input {argument.name!r} stands behind a weight"
            seen_weight = seen_weight or argument.is_weight
    return None


# -- dispatches
def _units(block: ir.Block) -> Iterator[ir.Operation]:
    """The calls and loops of a block, those in loops included."""
    for op in block.operations:
        if op.operation.name == "func.call" or is_loop(op.operation):
            yield op.operation
        if is_loop(op.operation):
            yield from _units(op.operation.regions[0].blocks[0])


def _host_op(op: ir.Operation) -> bool:
    """Whether the host function runs an op itself: views, size arithmetic, slices that loops stack, what loops begin with."""
    scalar = not any(isinstance(value.type, ir.RankedTensorType) for value in op.results)
    return scalar or op.name in VIEWS or op.name == "tensor.empty" or SCAN_OUTPUT in op.attributes or COMPUTES in op.attributes


def _undispatched(module: ir.Module) -> str | None:
    functions = functions_of(module)
    for func in public_functions(module):
        found = _undispatched_in(func.regions[0].blocks[0], functions)
        if found is not None:
            return f"{Func(func).name} holds {found}"
    return None


def _undispatched_in(block: ir.Block, functions: dict[str, ir.Operation]) -> str | None:
    for each in block.operations:
        op = each.operation
        if op.name == "func.call":
            callee = functions.get(callee_of(op))
            if callee is None or is_public(callee) or not is_dispatch(callee):
                return f"a call of {callee_of(op)}, which is no dispatch"
        elif is_loop(op):
            found = _undispatched_in(op.regions[0].blocks[0], functions)
            if found is not None:
                return found
        elif not _host_op(op):
            return f"{op.name} at {op.location}"
    return None


def _unlabeled(module: ir.Module) -> str | None:
    return next((f"{Func(func).name} has no {LABEL}" for func in dispatch_functions(module) if not DispatchFunc(func).label), None)


def _without_tile(module: ir.Module) -> str | None:
    dispatches = map(DispatchFunc, dispatch_functions(module))
    return next((f"{each.name} has no tile" for each in dispatches if each.kind == "winograd" and each.winograd_tile is None), None)


# -- layouts of weights
def _packed(module: ir.Module) -> str | None:
    for func in [*public_functions(module), *dispatch_functions(module)]:
        for argument in Func(func).arguments:
            if argument.packed is not None:
                return f"argument {argument.position} of {Func(func).name} is packed"
    return None


def _differently_packed(module: ir.Module) -> str | None:
    functions = functions_of(module)
    for func in public_functions(module):
        layouts = {each.value: each.packed for each in EntryFunc(func).arguments}
        for call in _calls(func):
            for argument, operand in zip(Func(functions[callee_of(call)]).arguments, call.operands, strict=True):
                if argument.packed != layouts.get(operand):
                    return f"argument {argument.position} of {callee_of(call)} isn't laid out as what it is given"
    return None


def _calls(func: ir.Operation) -> list[ir.Operation]:
    return [op for op in _units(func.regions[0].blocks[0]) if op.name == "func.call"]


# -- places in memory
def _placed(module: ir.Module) -> str | None:
    units = (op for func in public_functions(module) for op in _units(func.regions[0].blocks[0]))
    return next((f"{op.name} at {op.location} has a place" for op in units if BUFFERS in op.attributes), None)


def _unplaced(module: ir.Module) -> str | None:
    for func in public_functions(module):
        if SLOTS not in func.attributes:
            return f"{Func(func).name} has no {SLOTS}"
        num_slots = len(EntryFunc(func).slots)
        for op in _units(func.regions[0].blocks[0]):
            places = list(ir.DenseI64ArrayAttr(op.attributes[BUFFERS])) if BUFFERS in op.attributes else []
            per_result = 2 if op.name == "func.call" and op.parent.operation != func else 1  # in a loop: of even and odd iterations
            if len(places) != per_result * len(op.results) or any(place >= num_slots for place in places):
                return f"{op.name} at {op.location} has no place for each result"
    return None


def _updates_elsewhere(module: ir.Module) -> str | None:
    """A dispatch that writes in place lies within an argument, or its callers would lose the old value."""
    functions = functions_of(module)
    for func in public_functions(module):
        for call in _calls(func):
            if DispatchFunc(functions[callee_of(call)]).in_place is not None and WITHIN not in call.attributes:
                return f"{callee_of(call)} writes in place what its call puts elsewhere"
    return None


WEIGHTS_BEHIND_INPUTS = Property("weights-behind-inputs", _misplaced_argument)  # and each has a name
DISPATCHED = Property("dispatched", _undispatched)  # the entry holds calls of dispatches and host ops, nothing else
LABELED = Property("labeled", _unlabeled)
WINOGRAD_TILED = Property("winograd-tiled", _without_tile)
UNPACKED = Property("unpacked", _packed)
PACKED_ALIKE = Property("packed-alike", _differently_packed)  # dispatches and the entry say the same of a weight
UNPLACED = Property("unplaced", _placed)
PLACED = Property("placed", _unplaced)
IN_PLACE_WITHIN = Property("in-place-within", _updates_elsewhere)
