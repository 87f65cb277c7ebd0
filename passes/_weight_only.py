"""Which ops of a function need nothing but weights: what fold-weight-computation can take out of the program."""

from __future__ import annotations

from llmos.compiler.ir.bindings import ir
from llmos.passes._graph import captured, is_tensor, owner_of


def weight_only_ops(block: ir.Block, weights: set[ir.Value]) -> list[ir.Operation]:
    """Return the ops that need nothing but weights and constants, static in shape, in program order."""
    found: list[ir.Operation] = []
    known: set[ir.Value] = set(weights)
    for op in list(block.operations)[:-1]:
        operation = op.operation
        static = all(not is_tensor(r) or ir.RankedTensorType(r.type).has_static_shape for r in operation.results)
        if static and all(v in known for v in captured(operation)) and operation.name != "func.call":
            found.append(operation)
            known.update(operation.results)
    return found


def weight_only_values(block: ir.Block, weights: set[ir.Value]) -> set[ir.Value]:
    """Return the weights, constants, and what is computed from them alone."""
    return weights | {result for op in weight_only_ops(block, weights) for result in op.results}


def weight_sources(value: ir.Value, weights: set[ir.Value]) -> set[ir.Value]:
    """Return the weights that a value is computed from."""
    return _sources(value, weights, set())


def _sources(value: ir.Value, weights: set[ir.Value], seen: set[ir.Value]) -> set[ir.Value]:
    if value in weights:
        return {value}
    owner = owner_of(value)
    if owner is None or value in seen:
        return set()
    seen.add(value)
    return {source for operand in captured(owner) for source in _sources(operand, weights, seen)}
