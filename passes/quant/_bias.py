"""Biases of integer sums: added as integers, and to the correction that is known at compile time, so that kernels add one vector.

The additions that these replace stay, unused: a pass that goes through the ops of a block may still hold them.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from llmos.compiler.analysis.generic import Generic, is_identity
from llmos.compiler.ir.bindings import arith, ir
from llmos.passes._graph import owner_of
from llmos.passes.quant._generics import Read, after, axis_sizes, elementwise


@dataclass(frozen=True)
class _Sum:
    """An elementwise op of a tensor, read in order, and one other."""

    op: ir.Operation
    name: str
    tensor: ir.Value
    other: Read


def add_bias_as_integer(sums: ir.Value, converted: ir.Value) -> None:
    """Rewrite float(sums) + float(bias), if nothing else reads either sum, as float(sums + bias): the sum that onnxruntime has.

    sums: int32; converted: the same in float32.
    """
    user = _only_user(converted, "arith.addf")
    bias = _integers_behind(user.other.value) if user is not None else None
    if user is None or bias is None:
        return
    with ir.InsertionPoint(user.op), user.op.location:
        reads = [Read.whole(sums), Read(bias, user.other.exprs)]
        total = elementwise(reads, axis_sizes(sums), sums.type.element_type, arith.addi)
        f32 = converted.type.element_type
        made = elementwise([Read.whole(total)], axis_sizes(sums), f32, lambda each: arith.sitofp(f32, each))
    user.op.results[0].replace_all_uses_with(made)


def merge_known_addends(corrected: ir.Value, known: Set[ir.Value]) -> None:
    """Rewrite (sums - a) + b, where a and b are known at compile time and read alike, as sums - (a - b)."""
    inner, user = _sum_of(owner_of(corrected), "arith.subi"), _only_user(corrected, "arith.addi")
    if inner is None or user is None or user.other.value not in known or len(user.other.value.type.shape) != 1:
        return
    (position,) = user.other.exprs
    moved = [expr for expr in inner.other.exprs if isinstance(expr, ir.AffineDimExpr)]
    if moved != [position]:
        return
    axis = list(inner.other.exprs).index(position)
    total = inner.other.value
    with after(total):
        reads = [Read.whole(total), Read(user.other.value, (ir.AffineExpr.get_dim(axis),))]
        difference = elementwise(reads, axis_sizes(total), total.type.element_type, arith.subi)
    number = list(inner.op.operands).index(total)
    inner.op.operands[number] = difference
    user.op.results[0].replace_all_uses_with(corrected)


def _only_user(value: ir.Value, name: str) -> _Sum | None:
    """The op of that name that alone uses a tensor, and reads it in order."""
    users = [use.owner.operation for use in value.uses]
    return _sum_of(users[0], name, value) if len(users) == 1 else None


def _sum_of(op: ir.Operation | None, name: str, tensor: ir.Value | None = None) -> _Sum | None:
    if op is None or op.name != "linalg.generic" or len(op.results) != 1:
        return None
    generic = Generic(op)
    ops = list(generic.body.operations)
    plain = generic.is_elementwise and generic.num_inputs == 2 and is_identity(generic.maps[2])
    if not plain or [each.name for each in ops] != [name, "linalg.yield"]:
        return None
    if list(ops[0].operands) != list(generic.body.arguments)[:2] and name != "arith.addf":
        return None
    number = generic.inputs.index(tensor) if tensor is not None else 0
    if not is_identity(generic.maps[number]):
        return None
    return _Sum(op, name, generic.inputs[number], Read(generic.inputs[1 - number], tuple(generic.maps[1 - number].results)))


def _integers_behind(value: ir.Value) -> ir.Value | None:
    """The int32 tensor that an op converts to float32, one by one."""
    owner = owner_of(value)
    if owner is None or owner.name != "linalg.generic":
        return None
    generic = Generic(owner)
    names = [each.name for each in generic.body.operations]
    if names != ["arith.sitofp", "linalg.yield"] or generic.num_inputs != 1 or not all(map(is_identity, generic.maps)):
        return None
    source = generic.inputs[0]
    return source if source.type.element_type == ir.IntegerType.get_signless(32) else None
