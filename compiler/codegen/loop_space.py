"""The loop space of a `row_reduction` or `elementwise` dispatch: what is computed at which level, and which dims are walked as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from llmos.compiler.analysis.casts import is_extended_argument
from llmos.compiler.analysis.generic import Generic, LinearExpr, is_fill
from llmos.compiler.codegen.access import Accesses
from llmos.compiler.codegen.builder import Value
from llmos.compiler.codegen.coordinates import Coord
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import DispatchFunc
from llmos.compiler.ir.ops import EXPENSIVE_FLOAT
from llmos.compiler.ir.sizes import Expr


@dataclass
class RowPlan:
    """What a dispatch computes at which level."""

    dispatch: Dispatch
    num_outer: int
    sizes: tuple[Expr, ...]  # of the full loop space: outer dims, then inner dims
    generics: list[Generic] = field(default_factory=list)
    _levels: dict[Value, int] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """Return the number of loop dims, outer and inner."""
        return len(self.sizes)

    def level(self, value: Value) -> int:
        """Return the number of reductions that must end before `value` can be evaluated inside a row."""
        owner = value.owner
        if isinstance(owner, ir.Block):
            return 0
        if value not in self._levels:
            inputs = [self.level(operand) for operand in owner.operands if isinstance(operand.type, ir.RankedTensorType)]
            inputs += [self.level(tensor) for tensor in _extracted(owner.operation)]
            own = max(inputs, default=0)
            self._levels[value] = own + 1 if self.is_row_reduction(owner.operation) else own
        return self._levels[value]

    def is_row_reduction(self, op: ir.Operation) -> bool:
        """Return whether an op reduces over all inner dims of the loop space."""
        if op.name != "linalg.generic" or is_fill(op):
            return False
        generic = Generic(op)
        return self.num_outer < self.rank and generic.reduction_dims == list(range(self.num_outer, self.rank)) and generic.rank == self.rank

    def is_outer(self, value: Value) -> bool:
        """Whether a value has one element a row."""
        shape = self.dispatch.shapes.shape(value)
        if len(shape) == self.num_outer:
            return True
        return (
            len(shape) == self.rank
            and all(size == 1 for size in shape[self.num_outer :])
            and any(s != 1 for s in self.sizes[self.num_outer :])
        )

    def is_read_by_rows(self, value: Value) -> bool:
        """Whether every use of a value of the outer dims' rank reads it at the row; a vector along the row has that rank as well."""
        if self.level(value) > 0:
            return True  # one number of this row's reductions
        outer = [ir.AffineExpr.get_dim(dim) for dim in range(self.num_outer)]
        for use in value.uses:
            owner = use.owner.operation if not isinstance(use.owner, ir.Operation) else use.owner
            if owner.name != "linalg.generic":
                return bool(owner.name == "func.return")
            if list(Generic(owner).maps[use.operand_number].results)[: len(outer)] != outer:
                return False
            if any(len(self.dispatch.shapes.shape(r)) == self.num_outer and not self.is_read_by_rows(r) for r in owner.results):
                return False
        return True

    def reductions_at(self, level: int) -> list[Generic]:
        """Return the row reductions that are made at `level`."""
        return [g for g in self.generics if self.is_row_reduction(g.op) and self.level(g.op.results[0]) == level + 1]

    @property
    def last_level(self) -> int:
        """Return the highest level of any value."""
        return max((self.level(value) for g in self.generics for value in g.op.results), default=0)

    def kept_at(self, level: int) -> list[Value]:
        """Return the full rows computed at `level` that a later level uses and that are expensive to compute again."""
        values = [value for generic in self.generics if generic.is_elementwise for value in generic.op.results]
        full = [value for value in values if self.level(value) == level and not self.is_outer(value)]
        return [value for value in full if self._used_later(value, level) and self._is_expensive(value)]

    def _used_later(self, value: Value, level: int) -> bool:
        for use in value.uses:
            owner = use.owner.operation if not isinstance(use.owner, ir.Operation) else use.owner
            if owner.name != "linalg.generic":
                continue
            phase = self.level(owner.results[0]) - (1 if self.is_row_reduction(owner) else 0)
            if phase > level:
                return True
        return False

    def _is_expensive(self, value: Value) -> bool:
        """Two or more reads, a data-dependent read, or a slow operation."""
        reads, expensive = self._cost(value, self.level(value))
        return expensive or reads >= 2

    def _cost(self, value: Value, level: int) -> tuple[int, bool]:
        owner = value.owner
        if isinstance(owner, ir.Block):
            return (0 if self.is_outer(value) else 1), False
        if self.level(value) < level or is_fill(owner.operation) or owner.name != "linalg.generic":
            return 1, False
        generic = Generic(owner.operation)
        if not generic.is_elementwise:
            return 0, False
        expensive = any(op.name.startswith(EXPENSIVE_FLOAT) or op.name == "tensor.extract" for op in generic.body.operations)
        reads = 0
        for operand, argument in zip(generic.op.operands, generic.body.arguments, strict=True):
            if isinstance(operand.type, ir.RankedTensorType) and any(True for _ in argument.uses):
                more, also = self._cost(operand, level)
                reads, expensive = reads + more, expensive or also
        return reads, expensive


def _extracted(op: ir.Operation) -> list[Value]:
    """Tensors that a body reads by `tensor.extract`."""
    if op.name != "linalg.generic":
        return []
    return [inner.operands[0] for inner in Generic(op).body.operations if inner.name == "tensor.extract"]


def plan_rows(dispatch: Dispatch) -> RowPlan:
    """Read the loop space of a `row_reduction` or `elementwise` dispatch."""
    ops = [op.operation for op in dispatch.block.operations if op.name == "linalg.generic" and not is_fill(op.operation)]
    # an extended argument may have any shape, a table's for example: it is no part of the row, but read where something asks for it
    generics = [Generic(op) for op in ops if not is_extended_argument(op.results[0])]
    num_outer = DispatchFunc(dispatch.func).num_outer
    if num_outer is None:
        shape = dispatch.shapes.shape(dispatch.results[0])
        return RowPlan(dispatch, len(shape), shape, generics)
    reduction = next(g for g in generics if g.reduction_dims and g.reduction_dims == list(range(num_outer, g.rank)))
    return RowPlan(dispatch, num_outer, reduction.loop_sizes(dispatch.shapes), generics)


def accesses_of(plan: RowPlan) -> Accesses:
    """Return what the ops of a dispatch read and write, by the dims of its loop space."""
    accesses = Accesses(plan.dispatch)
    made = {value for generic in plan.generics for value in generic.op.results}
    for value in plan.dispatch.results:
        if value not in made:  # a slice, a pad, a concatenation
            shape = plan.dispatch.shapes.shape(value)
            forms: list[LinearExpr] = [{dim: 1} if size != 1 else {} for dim, size in enumerate(shape)]
            accesses.trace(value, forms)
            accesses.leaves.append((shape, forms))
    for generic in plan.generics:
        for value in generic.op.results:
            if plan.is_row_reduction(generic.op):
                continue
            shape = plan.dispatch.shapes.shape(value)
            forms = [{dim: 1} if size != 1 else {} for dim, size in enumerate(shape)]
            accesses.trace(value, forms)
            if value in plan.dispatch.results:
                accesses.leaves.append((shape, list(forms)))
        if plan.is_row_reduction(generic.op):
            for operand, affine in zip(generic.inputs, generic.maps, strict=False):
                if isinstance(operand.type, ir.RankedTensorType):
                    accesses.trace(operand, [{e.position: 1} if isinstance(e, ir.AffineDimExpr) else {} for e in affine.results])
            for op in generic.body.operations:
                if op.name == "linalg.index":
                    accesses.pinned.add(ir.IntegerAttr(op.attributes["dim"]).value)
    return accesses


def spread(plan: RowPlan, groups: Sequence[Sequence[int]], indices: Sequence[Coord], zero: Value) -> dict[int, Coord]:
    """Loop coordinates from one index a group: the flat index stands at the group's last dim, whose stride is the smallest."""
    coords: dict[int, Coord] = dict.fromkeys((dim for group in groups for dim in group), zero)
    for group, index in zip(groups, indices, strict=True):
        coords[group[-1]] = index
    return coords
