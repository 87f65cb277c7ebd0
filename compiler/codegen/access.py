"""How a dispatch touches memory: each buffer's index as linear forms of the loop dims, traced through its elementwise ops.

From it: which neighboring loop dims may be walked as one (a dense tensor read in order is one long vector, whatever its rank).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import sympy

from llmos.compiler.analysis.generic import Generic, LinearExpr, compose, is_fill
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.shapes import kept_dims, slice_parameters
from llmos.compiler.ir.sizes import Expr


@dataclass
class Accesses:
    """Every read and write of a dispatch, and the dims whose value itself is used.

    through_pads: follow a padded axis, on which one step is one of the source's wherever that is read.
    """

    dispatch: Dispatch
    through_pads: bool = False
    leaves: list[tuple[tuple[Expr, ...], list[LinearExpr]]] = field(default_factory=list)  # (buffer shape, form of each axis)
    pinned: set[int] = field(default_factory=set)
    _seen: set[tuple[object, ...]] = field(default_factory=set)

    def trace(self, value: ir.Value, forms: Sequence[LinearExpr]) -> None:
        """Record what evaluating `value` at a point given by `forms` reads."""
        key = self._key(value, forms)
        if key in self._seen:
            return
        self._seen.add(key)
        owner = value.owner
        if isinstance(owner, ir.Block):
            self.leaves.append((self.dispatch.shapes.shape(value), list(forms)))
        elif owner.name == "tensor.extract_slice":
            self._slice(owner.operation, forms)
        elif owner.name == "tensor.cast":
            self.trace(owner.operands[0], forms)
        elif owner.name in ("tensor.pad", "tensor.concat"):
            self._shifted(owner.operation, forms)
        elif owner.name == "linalg.generic" and not is_fill(owner.operation):
            self._generic(Generic(owner.operation), value, forms)

    def trace_map(self, value: ir.Value, affine: ir.AffineMap) -> None:
        """Record what an operand read through `affine` reads."""
        identity: list[LinearExpr] = [{dim: 1} for dim in range(affine.n_dims)]
        self.trace(value, [compose(expr, identity) for expr in affine.results])

    def ignore(self, value: ir.Value, forms: Sequence[LinearExpr]) -> None:
        """Take a value as held in registers where it is read at `forms`."""
        self._seen.add(self._key(value, forms))

    @staticmethod
    def _key(value: ir.Value, forms: Sequence[LinearExpr]) -> tuple[object, ...]:
        return (value, tuple(None if form is None else tuple(sorted(form.items())) for form in forms))

    def _generic(self, generic: Generic, value: ir.Value, forms: Sequence[LinearExpr]) -> None:
        loop: list[LinearExpr] = [{}] * generic.rank
        for expr, form in zip(generic.output_map(value).results, forms, strict=True):
            if isinstance(expr, ir.AffineDimExpr):
                loop[expr.position] = form
        for dim in generic.reduction_dims:
            loop[dim] = {-1: 1}  # a counter of its own
        for op in generic.body.operations:
            if op.name == "linalg.index":
                self._pin(loop[ir.IntegerAttr(op.attributes["dim"]).value])
            if op.name == "tensor.extract":
                self.trace(op.operands[0], [None] * len(op.operands[0].type.shape))
        for operand, affine in zip(generic.op.operands, generic.maps, strict=True):
            if isinstance(operand.type, ir.RankedTensorType):
                self.trace(operand, [compose(expr, loop) for expr in affine.results])

    def _slice(self, op: ir.Operation, forms: Sequence[LinearExpr]) -> None:
        for form in forms:
            self._pin(form)
        _, _, strides = slice_parameters(self.dispatch.shapes, op, 1)
        inner: list[LinearExpr] = [{}] * len(self.dispatch.shapes.shape(op.operands[0]))
        for dim, form in zip(kept_dims(op), forms, strict=True):
            inner[dim] = form if strides is not None and strides[dim] == 1 else None
        self.trace(op.operands[0], inner)

    def _shifted(self, op: ir.Operation, forms: Sequence[LinearExpr]) -> None:
        """Pads and concatenations: axes whose size changes can't be walked together with others."""
        whole = self.dispatch.shapes.shape(op.results[0])
        tensors = [operand for operand in op.operands if isinstance(operand.type, ir.RankedTensorType)]
        follows = self.through_pads and op.name == "tensor.pad"
        for tensor in tensors:
            shape = self.dispatch.shapes.shape(tensor)
            for form, size, outer in zip(forms, shape, whole, strict=True):
                if size != outer:
                    self._pin(form)
            self.trace(tensor, [form if size == outer or follows else None for form, size, outer in zip(forms, shape, whole, strict=True)])

    def _pin(self, form: LinearExpr) -> None:
        self.pinned |= set(form or ())

    def joinable(self, first: int, second: int, size: Expr) -> bool:
        """Whether loop dims `first` and `second` (of `size`) can be walked as one."""
        if first in self.pinned or second in self.pinned:
            return False
        return all(_adjacent(shape, forms, first, second, size) for shape, forms in self.leaves)


def _adjacent(shape: Sequence[Expr], forms: Sequence[LinearExpr], first: int, second: int, size: Expr) -> bool:
    touched = [axis for axis, form in enumerate(forms) if form is not None and (first in form or second in form)]
    if not touched:
        return True
    # axes of size 1 between the two don't move the address
    real = [axis for axis in touched if shape[axis] != 1]
    if len(real) != 2:
        return False
    a, b = real
    between_is_unit = all(shape[axis] == 1 for axis in range(a + 1, b))
    return between_is_unit and forms[a] == {first: 1} and forms[b] == {second: 1} and sympy.expand(shape[b] - size) == 0


def group_dims(accesses: Accesses, sizes: Sequence[Expr], dims: Sequence[int]) -> list[list[int]]:
    """Dims in order, gathered into runs that can be walked as one; dims of size 1 are left out (their coordinate is 0)."""
    groups: list[list[int]] = []
    for dim in dims:
        if sizes[dim] == 1:
            continue
        if groups and accesses.joinable(groups[-1][-1], dim, sizes[dim]):
            groups[-1].append(dim)
        else:
            groups.append([dim])
    return groups
