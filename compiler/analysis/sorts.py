"""Analysis of sorts: `tm_tensor.sort` of integer keys in ascending order, with payloads.

    %0:3 = tm_tensor.sort dimension(1) outs(%keys, %values, %places : ...) { ^bb0(%a, %b, ...): yield %a <= %b }

The first operand holds the keys, the others payloads that are permuted alike. The sort is stable. If all users of the results are slices
of one range along the sorted dimension, only that range must be computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import sympy

from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.shapes import Shapes, slice_parameters
from llmos.compiler.ir.sizes import Expr

SORT = "tm_tensor.sort"
_SIGNED_AT_MOST = 3  # of arith.cmpi's predicates: sle


def is_sort(op: ir.Operation) -> bool:
    """Whether an op is a stable ascending sort of the last dimension by integer keys."""
    if op.name != SORT:
        return False
    keys = ir.RankedTensorType(op.operands[0].type)
    if not isinstance(keys.element_type, ir.IntegerType) or keys.element_type.width not in (8, 16, 32, 64):
        return False
    return ir.IntegerAttr(op.attributes["dimension"]).value == keys.rank - 1 and _compares_keys(op.regions[0].blocks[0])


def _compares_keys(body: ir.Block) -> bool:
    """Whether the comparator is a signed less-or-equal of the keys."""
    first, second, *_ = body.arguments
    ops = [op.operation for op in body.operations]
    if len(ops) != 2 or ops[0].name != "arith.cmpi" or list(ops[1].operands) != list(ops[0].results):
        return False
    return ir.IntegerAttr(ops[0].attributes["predicate"]).value == _SIGNED_AT_MOST and list(ops[0].operands) == [first, second]


@dataclass(frozen=True)
class Sort:
    """One sort, and the slices of its results if these are its only users."""

    op: ir.Operation
    shapes: Shapes
    slices: Sequence[ir.Operation] = ()

    @property
    def keys(self) -> ir.Value:
        """Return the tensor of integer keys."""
        return self.op.operands[0]

    @property
    def lead(self) -> tuple[Expr, ...]:
        """Return the sizes of the dimensions before the sorted one."""
        return self.shapes.shape(self.keys)[:-1]

    @property
    def length(self) -> Expr:
        """Return the size of the sorted dimension, the last one."""
        return self.shapes.shape(self.keys)[-1]

    @cached_property
    def range(self) -> tuple[Expr, Expr]:
        """Return the used range along the sorted dimension: first position and length."""
        found = range_of(self.slices[0], self.shapes) if self.slices else None
        return found if found is not None else (sympy.S.Zero, self.length)

    @property
    def is_partial(self) -> bool:
        """Whether users read a part of the sorted dimension only."""
        return self.range != (sympy.S.Zero, self.length)

    def source_of(self, result: ir.Value) -> ir.Value:
        """Return the operand that a result, or a slice of one, permutes."""
        owner = result.owner.operation
        return self.source_of(owner.operands[0]) if owner in self.slices else self.op.operands[ir.OpResult(result).result_number]


def range_of(op: ir.Operation, shapes: Shapes) -> tuple[Expr, Expr] | None:
    """Return (first position, length) of a unit-stride slice along the last dimension only; None for another op."""
    if op.name != "tensor.extract_slice" or op.results[0].type.rank != op.operands[0].type.rank:
        return None
    offsets, sizes, strides = slice_parameters(shapes, op, 1)
    if offsets is None or sizes is None or strides is None:
        return None
    whole = shapes.shape(op.operands[0])
    inner = offsets[:-1] == (sympy.S.Zero,) * (len(whole) - 1) and tuple(sizes[:-1]) == tuple(whole[:-1])
    return (offsets[-1], sizes[-1]) if inner and all(step == 1 for step in strides) else None
