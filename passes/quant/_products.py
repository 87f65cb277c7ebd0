"""Contractions of an activation and a weight as the passes of this folder rewrite them."""

from __future__ import annotations

from typing import Literal

from llmos.compiler.analysis.contraction import Contraction, unit_dims
from llmos.compiler.analysis.generic import dim_positions, dims_of, fill_value, has_windows, is_fill
from llmos.compiler.ir.bindings import arith, ir
from llmos.passes._graph import owner_of
from llmos.passes.quant._generics import Read, axis_sizes, constant, filled, generic


def is_matrix_product(contraction: Contraction) -> bool:
    """Whether the right side is one matrix for all of the left, and both are read at plain loop dims, each once.

    A convolution isn't one: its left side is read through windows.
    """
    maps, unit = [contraction.lhs_map, contraction.rhs_map], unit_dims(contraction.generic)
    if any(map(has_windows, maps)) or dims_of(maps[1]) & set(contraction.batch) - unit:
        return False
    if set().union(*map(dims_of, (*maps, contraction.out_map))) != set(range(contraction.generic.rank)):
        return False  # only a further input says how long a loop is
    positions = [[p for p in dim_positions(affine) if p is not None] for affine in maps]
    return all(len(set(each)) == len(each) for each in positions)


def summed_axes(contraction: Contraction, side: int) -> tuple[int, ...]:
    """Return the axes of an operand along which products are summed."""
    return tuple(axis for axis, dim in enumerate(dim_positions(contraction.generic.maps[side])) if dim in contraction.k)


def integer_sums(contraction: Contraction, lhs: ir.Value, rhs: ir.Value) -> ir.Value:
    """Build the contraction that kernels know: acc + extui(lhs) * extsi(rhs), from 0, in int32; loop dims and maps as before."""
    old = contraction.generic
    i32 = ir.IntegerType.get_signless(32)
    sides: list[tuple[ir.Value, Literal["extui", "extsi"]]] = [(lhs, "extui"), (rhs, "extsi")]
    ordered = sides if contraction.left == 0 else sides[::-1]
    init = filled(constant(0, i32), axis_sizes(old.inits[0]))
    reads = [Read(value, tuple(affine.results)) for (value, _), affine in zip(ordered, old.maps, strict=False)]

    def body(first: ir.Value, second: ir.Value, acc: ir.Value) -> ir.Value:
        factors = [getattr(arith, name)(i32, each) for each, (_, name) in zip((first, second), ordered, strict=True)]
        return arith.addi(acc, arith.muli(*factors))

    return generic(reads, Read(init, tuple(contraction.out_map.results)), old.reduction_dims, old.rank, body)


def over_result(contraction: Contraction, side: int, read: Read) -> Read:
    """Turn what is read over the axes of an operand, summed ones aside, into a read over the axes of the result."""
    places = {dim: axis for axis, dim in enumerate(dim_positions(contraction.out_map)) if dim is not None}
    dims = dim_positions(contraction.generic.maps[side])

    def moved(expr: ir.AffineExpr) -> ir.AffineExpr:
        dim = dims[expr.position] if isinstance(expr, ir.AffineDimExpr) else None
        return ir.AffineExpr.get_dim(places[dim]) if dim in places else ir.AffineExpr.get_constant(0)

    return Read(read.value, tuple(map(moved, read.exprs)))


def is_zero(value: ir.Value) -> bool:
    """Whether a tensor is filled with zeros."""
    owner = owner_of(value)
    if owner is None or not is_fill(owner):
        return False
    number = fill_value(owner)
    made = owner_of(number) if number is not None else None
    return made is not None and made.name == "arith.constant" and made.attributes["value"].value == 0
