"""Contractions of an activation and a weight as the passes of this folder rewrite them."""

from __future__ import annotations

from typing import Literal

from llmos.compiler.analysis.contraction import Contraction, unit_dims
from llmos.compiler.analysis.generic import dim_positions, dims_of, dims_of_expr, fill_value, has_windows, is_fill
from llmos.compiler.ir.bindings import arith, ir
from llmos.passes._graph import owner_of
from llmos.passes.quant._generics import Read, axis_sizes, constant, empty, filled, generic


def is_matrix_product(contraction: Contraction) -> bool:
    """Whether the right side is one matrix for all of the left, and both are read at plain loop dims, each once.

    A convolution isn't one: its left side is read through windows.
    """
    return has_matrix_weight(contraction) and not has_windows(contraction.lhs_map)


def has_matrix_weight(contraction: Contraction) -> bool:
    """Whether the right side is one matrix for all of the left, read at plain loop dims, each once; the left side, too, or by windows."""
    maps, unit = [contraction.lhs_map, contraction.rhs_map], unit_dims(contraction.generic)
    if has_windows(maps[1]) or dims_of(maps[1]) & set(contraction.batch) - unit:
        return False
    if set().union(*map(dims_of, (*maps, contraction.out_map))) != set(range(contraction.generic.rank)):
        return False  # only a further input says how long a loop is
    positions = [[p for p in dim_positions(affine) if p is not None] for affine in maps]
    return all(len(set(each)) == len(each) for each in positions)


def summed_axes(contraction: Contraction, side: int) -> tuple[int, ...]:
    """Return the axes of an operand along which products are summed, those that windows slide along included."""
    exprs = contraction.generic.maps[side].results
    return tuple(axis for axis, expr in enumerate(exprs) if dims_of_expr(expr) & set(contraction.k))


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


def window_sums(contraction: Contraction, numbers: ir.Value) -> Read:
    """Build the sums of unsigned bytes over each window of the left side, in int32, and return how they are read over the result."""
    generic_, i32 = contraction.generic, ir.IntegerType.get_signless(32)
    dims = [dim for dim in range(generic_.rank) if dim not in contraction.n]
    lhs = [expr.compose(_renumbered(generic_.rank, dims)) for expr in contraction.lhs_map.results]
    places = [(axis, dim) for axis, dim in enumerate(dim_positions(contraction.out_map)) if dim in dims]
    out_sizes = axis_sizes(generic_.inits[0])
    init = Read.at(filled(constant(0, i32), [out_sizes[axis] for axis, _ in places]), [dims.index(dim) for _, dim in places])
    rhs_sizes = dict(zip(dim_positions(contraction.rhs_map), axis_sizes(contraction.rhs), strict=True))
    bounds = Read.at(empty([rhs_sizes[dim] for dim in contraction.k], i32), [dims.index(dim) for dim in contraction.k])

    def body(number: ir.Value, _: ir.Value, acc: ir.Value) -> ir.Value:
        return arith.addi(acc, arith.extui(i32, number))

    total = generic([Read(numbers, tuple(lhs)), bounds], init, [dims.index(dim) for dim in contraction.k], len(dims), body)
    return Read.at(total, [axis for axis, _ in places])


def _renumbered(rank: int, dims: list[int]) -> ir.AffineMap:
    """The loop dims `dims` of `rank` as those of a nest of them alone."""
    exprs = [ir.AffineExpr.get_dim(dims.index(dim)) if dim in dims else ir.AffineExpr.get_constant(0) for dim in range(rank)]
    return ir.AffineMap.get(len(dims), 0, exprs)


def is_zero(value: ir.Value) -> bool:
    """Whether a tensor is filled with zeros."""
    owner = owner_of(value)
    if owner is None or not is_fill(owner):
        return False
    number = fill_value(owner)
    made = owner_of(number) if number is not None else None
    return made is not None and made.name == "arith.constant" and made.attributes["value"].value == 0
