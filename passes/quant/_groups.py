"""Sums of products of dequantized tensors that no matrix kernel multiplies: depthwise convolutions and others in groups."""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import replace

from llmos.compiler.analysis.contraction import is_sum_of_products
from llmos.compiler.analysis.generic import Generic, dim_positions, padding_number
from llmos.compiler.ir.bindings import arith, ir
from llmos.passes._graph import owner_of
from llmos.passes.quant._bias import add_bias_as_integer
from llmos.passes.quant._generics import Read, axis_sizes, constant, elementwise, filled, generic
from llmos.passes.quant._integers import Integers, dequantized, parameters_as_numbers
from llmos.passes.quant._moves import moved_like, moved_tensors
from llmos.passes.quant._parameters import can_move, moved, varying_axes
from llmos.passes.quant._products import is_zero
from llmos.passes.quant._sides import padded_like

MAX_PRODUCTS = (1 << 31) // 255**2  # of 8-bit numbers less their zero points: their sum fits in int32
MAX_FLOAT_PRODUCTS = (1 << 24) // 255**2  # likewise: float32 holds every sum on the way


def sum_in_integers(op: ir.Operation, known: Set[ir.Value]) -> None:
    """Rewrite a float32 sum of products of an activation and a weight, both dequantized, as one of whole numbers that is scaled once.

    The numbers are float32 as long as that holds all sums, as kernels of windows are faster so, and int32 beyond. Left as it is: what is
    in that form already, scales that vary along the sums, and a sum that doesn't start from 0.
    """
    if not is_sum_of_products(op) or not isinstance(op.results[0].type.element_type, ir.F32Type) or not is_zero(op.operands[-1]):
        return
    old = Generic(op)
    right = next((side for side in (0, 1) if old.inputs[side] in known), None)
    if right is None or old.inputs[1 - right] in known:
        return
    x, w = _source(old.inputs[1 - right]), _weight(old.inputs[right])
    num_products = _num_products(old, right)
    if x is None or w is None or num_products is None or num_products > MAX_PRODUCTS or varying_axes(x.scale or 1.0):
        return
    is_exact = num_products <= MAX_FLOAT_PRODUCTS
    if is_exact and x.scale is None and w.scale is None:
        return
    factor = _over_result(old, right, w.scale) if isinstance(w.scale, Read) else w.scale
    if isinstance(w.scale, Read) and factor is None:
        return
    element = ir.F32Type.get() if is_exact else ir.IntegerType.get_signless(32)
    with ir.InsertionPoint(op), op.location:
        sides = [_unscaled(value, element) for value in old.inputs[:2]]
        _replace(op, _sums(old, sides, element), [x.scale, factor])


def _num_products(old: Generic, right: int) -> int | None:
    """The products of one sum; None where that isn't known."""
    sizes = dict(zip(dim_positions(old.maps[right]), old.inputs[right].type.shape, strict=True))
    found = [sizes.get(dim, -1) for dim in old.reduction_dims]
    return math.prod(found) if all(size > 0 for size in found) else None


def _source(value: ir.Value) -> Integers | None:
    """What an activation is dequantized from, behind moves and padding with zeros; its numbers are those before the moves."""
    owner = owner_of(value)
    if owner is None:
        return None
    if owner.name == "tensor.pad":
        return _source(owner.operands[0]) if padding_number(owner) == 0 else None
    tensors = moved_tensors(owner)
    return _source(tensors[0]) if len(tensors) == 1 else parameters_as_numbers(value)


def _weight(value: ir.Value) -> Integers | None:
    """What a weight is dequantized from, with its scale over the axes of `value`."""
    owner = owner_of(value)
    tensors = moved_tensors(owner) if owner is not None else []
    if owner is None or len(tensors) != 1:
        return parameters_as_numbers(value)
    found = _weight(tensors[0])
    if found is None or found.scale is None or not can_move(owner, [found.scale], tensors):
        return found if found is None or found.scale is None else None
    with ir.InsertionPoint(owner), owner.location:
        return replace(found, scale=moved(owner, [found.scale], tensors, ir.F32Type.get()))


def _unscaled(value: ir.Value, element: ir.Type) -> ir.Value:
    """Build a dequantized tensor without its scale."""
    owner = owner_of(value)
    assert owner is not None
    if owner.name == "tensor.pad":
        return padded_like(owner, _unscaled(owner.operands[0], element), 0)
    tensors = moved_tensors(owner)
    if tensors:
        return moved_like(owner, [_unscaled(tensors[0], element)])
    found = parameters_as_numbers(value)
    assert found is not None
    return dequantized(replace(found, scale=None), element)


def _over_result(old: Generic, right: int, scale: Read) -> Read | None:
    """What is read over the axes of the weight, over those of the result; None where it varies along the sums."""
    dims, out = dim_positions(old.maps[right]), dim_positions(old.maps[old.num_inputs])
    exprs: list[ir.AffineExpr] = []
    for expr in scale.exprs:
        if isinstance(expr, ir.AffineDimExpr):
            if dims[expr.position] not in out:
                return None
            expr = ir.AffineExpr.get_dim(out.index(dims[expr.position]))
        exprs.append(expr)
    return Read(scale.value, tuple(exprs))


def _sums(old: Generic, sides: list[ir.Value], element: ir.Type) -> ir.Value:
    values = [*sides, *old.inputs[2:]]
    reads = [Read(value, tuple(affine.results)) for value, affine in zip(values, old.maps, strict=False)]
    init = filled(constant(0, element), axis_sizes(old.inits[0]))
    multiply, add = (arith.mulf, arith.addf) if isinstance(element, ir.F32Type) else (arith.muli, arith.addi)
    out = Read(init, tuple(old.maps[old.num_inputs].results))
    return generic(reads, out, old.reduction_dims, old.rank, lambda *elements: add(elements[-1], multiply(elements[0], elements[1])))


def _replace(op: ir.Operation, sums: ir.Value, scales: list[Read | float | None]) -> None:
    """Read the scaled sums instead of those of an op, which stays unused; where there are no scales, a bias is added in integers."""
    f32 = ir.F32Type.get()
    factors = [each for each in scales if each is not None]
    if not factors:
        _convert(op, sums)
        return

    def body(total: ir.Value, *read: ir.Value) -> ir.Value:
        rest, value = list(read), total if total.type == f32 else arith.sitofp(f32, total)
        for each in factors:
            value = arith.mulf(value, rest.pop(0) if isinstance(each, Read) else constant(each, f32))
        return value

    reads = [Read.whole(sums), *[each for each in factors if isinstance(each, Read)]]
    op.results[0].replace_all_uses_with(elementwise(reads, axis_sizes(sums), f32, body))


def _convert(op: ir.Operation, sums: ir.Value) -> None:
    """Convert sums of int32 behind the reshape that joins groups, where it alone reads them: a bias follows it."""
    users = [use.owner.operation for use in op.results[0].uses]
    joins = users[0] if len(users) == 1 and users[0].name == "tensor.collapse_shape" else None
    old = op if joins is None else joins
    with ir.InsertionPoint(old), old.location:
        total = sums if joins is None else moved_like(joins, [sums])
        f32 = ir.F32Type.get()
        made = elementwise([Read.whole(total)], axis_sizes(total), f32, lambda each: arith.sitofp(f32, each))
    old.results[0].replace_all_uses_with(made)
    add_bias_as_integer(total, made)
