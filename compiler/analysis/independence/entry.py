"""The candidate batch dimension of an entry, and its proof."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from llmos.compiler.analysis.independence.domain import Batch, Mixed, Rows, State, Uniform
from llmos.compiler.analysis.independence.function import Frame, Function
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import EntryFunc
from llmos.compiler.ir.guards import Guard
from llmos.runtime.artifact.manifest import RowSpec, TensorSpec


def row_independence(
    main: Function,
    functions: Mapping[str, Function],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    guards: Sequence[Guard] = (),
) -> RowSpec:
    """Return the symbol along which rows are independent, or the reason why there is none. `inputs`, `outputs`: the manifest's specs."""
    updated = next((spec.name for spec in inputs if spec.updated), None)
    if updated is not None:
        return RowSpec(reason=f"a call updates input {updated!r}")
    candidate = _candidate(inputs, outputs)
    if isinstance(candidate, RowSpec):
        return candidate
    for guard in guards:
        if candidate in {str(symbol) for symbol in guard.symbols}:
            return RowSpec(reason=f"a call needs {guard.text}, which says something of {candidate!r}")
    found = objections(main, functions, inputs, candidate)
    reasons = [f"output {spec.name!r}: {reason}" for spec, reason in zip(outputs, found, strict=True) if reason]
    return RowSpec(reason=reasons[0]) if reasons else RowSpec(candidate)


def objections(main: Function, functions: Mapping[str, Function], inputs: Sequence[TensorSpec], candidate: str) -> list[str]:
    """Return, for each output, why its rows aren't proven independent along the symbol `candidate`; empty if all are."""
    symbols = {symbol.name: symbol.expr for symbol in main.shapes.table.names}
    batch = Batch(symbols[candidate], frozenset(symbols[name] for name in _free_names(main, inputs, candidate)))
    results = Frame(batch, main, functions).run([_argument(batch, main, value) for value in main.block.arguments])
    returned = list(list(main.block.operations)[-1].operands)
    return [_objection(batch, main, value, state) for value, state in zip(returned, results, strict=True)]


def _candidate(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str | RowSpec:
    """Return the only possible symbol: first in every input and output, and nowhere else."""
    first = next((spec.shape[0] for spec in inputs if spec.shape), None)
    if not isinstance(first, str) or not first.isidentifier():
        return RowSpec(reason="no dynamic dimension stands first in every input and output")
    for what, specs in (("input", inputs), ("output", outputs)):
        for spec in specs:
            if not spec.shape or spec.shape[0] != first:
                return RowSpec(reason=f"{first!r} doesn't stand first in {what} {spec.name!r}")
    return first


def _free_names(main: Function, inputs: Sequence[TensorSpec], candidate: str) -> Collection[str]:
    """Return the symbols of other input dimensions, and induction variables of loops."""
    given = {dim for spec in inputs for dim in spec.shape if isinstance(dim, str)}
    counters = {counter.name for counter in main.shapes.table.induction_variables}
    return [symbol.name for symbol in main.shapes.table.names if symbol.name in (given | counters) - {candidate}]


def _argument(batch: Batch, main: Function, value: ir.BlockArgument) -> State:
    if not EntryFunc(main.op).arguments[value.arg_number].is_input:
        return Uniform()
    others = main.shapes.shape(value)[1:]
    return Rows(0) if all(batch.is_free(size) for size in others) else Mixed(f"an input has {batch.name} in two dimensions")


def _objection(batch: Batch, main: Function, value: ir.Value, state: State) -> str:
    if isinstance(state, Mixed):
        return state.reason
    shape = main.shapes.shape(value)
    if shape[:1] != (batch.symbol,) or not all(batch.is_free(size) for size in shape[1:]):
        return f"its shape is not one row for each of {batch.name}"
    if isinstance(state, Rows) and state != Rows(0):
        return f"its rows lie in another order than those of {batch.name}"
    return ""
