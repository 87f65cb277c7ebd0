"""Ops that move elements and compute nothing, and the same moves of other tensors."""

from __future__ import annotations

from collections.abc import Sequence

from llmos.compiler.analysis.generic import Generic, dim_positions, permuted_operand
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.ops import RESHAPES
from llmos.passes.quant._generics import Read, axis_sizes, empty, generic


def moved_tensors(op: ir.Operation) -> list[ir.Value]:
    """Return the tensors whose elements are all that an op's one result holds; none for an op that computes, repeats or pads.

    Those are the inputs of a concatenation, and the source of a slice, a reshape or a permutation of axes.
    """
    if op.name == "tensor.concat":
        return list(op.operands)
    if op.name in RESHAPES:
        return [op.operands[0]]
    if op.name == "tensor.extract_slice":
        return [op.operands[0]] if op.results[0].type.rank == op.operands[0].type.rank else []
    return [] if permutation_of(op) is None else [Generic(op).inputs[permuted_operand(op) or 0]]


def permutation_of(op: ir.Operation) -> list[int] | None:
    """Return the axis of the result that each axis of the source becomes, for an op that permutes axes; else None."""
    source = permuted_operand(op)
    if source is None or len(op.results) != 1 or Generic(op).num_inputs != 1:
        return None
    inner = Generic(op)
    out, read = dim_positions(inner.maps[1]), dim_positions(inner.maps[source])
    axes = [out.index(dim) for dim in read if dim in out]
    return axes if sorted(axes) == list(range(op.results[0].type.rank)) and len(read) == len(axes) else None


def moved_like(op: ir.Operation, values: Sequence[ir.Value]) -> ir.Value:
    """Build the same move, at the insertion point, of tensors of other elements. values: one for each of `moved_tensors`, of its shape."""
    element = values[0].type.element_type
    axes = permutation_of(op)
    if axes is not None:
        sizes = axis_sizes(values[0])
        init = empty([sizes[axes.index(axis)] for axis in range(len(axes))], element)
        return generic([Read.at(values[0], axes)], Read.whole(init), (), len(axes), lambda each, _: each)
    kind = ir.RankedTensorType.get(op.results[0].type.shape, element)
    operands = [*values, *list(op.operands)[len(values) :]]
    attributes = {name: op.attributes[name] for name in op.attributes}
    return ir.Operation.create(op.name, results=[kind], operands=operands, attributes=attributes).results[0]
