"""The ops of a function as the dispatch passes see them: what is free, what is a view, what runs on the host, what needs a kernel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from llmos.compiler.analysis.contraction import Contraction, kernel_contraction_of
from llmos.compiler.analysis.generic import Generic, has_windows, is_fill, padded_source
from llmos.compiler.analysis.generic import captured as captured  # the passes' own vocabulary
from llmos.compiler.analysis.loops import is_loop
from llmos.compiler.analysis.quantization import quantization_of
from llmos.compiler.ir.attributes import SCAN_OUTPUT
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import EntryFunc
from llmos.compiler.ir.ops import REMATERIALIZABLE, VIEWS
from llmos.compiler.ir.shapes import Shapes
from llmos.passes._context import CostModel

MOVES = frozenset({"tensor.pad", "tensor.concat", "tensor.extract_slice"})  # evaluated point by point, and worth memory of their own
BODY_DIALECTS = ("arith.", "math.", "linalg.index", "linalg.yield", "tensor.extract", "affine.apply", "cf.assert")


@dataclass
class FusionGroup:
    """Ops that will be one dispatch."""

    kind: str  # attention, contraction, row, elementwise, scatter, fallback
    ops: list[ir.Operation]
    num_outer: int = -1  # of a row group: loop dims before the reduced ones
    sizes: tuple[object, ...] = ()  # of a row group: the full loop space

    def __contains__(self, op: ir.Operation) -> bool:
        return op in self.ops

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


def is_tensor(value: ir.Value) -> bool:
    """Whether a value is a tensor, ranked or not."""
    return isinstance(value.type, (ir.RankedTensorType, ir.UnrankedTensorType))


def owner_of(value: ir.Value) -> ir.Operation | None:
    """Return the op that makes a value; None for a block argument."""
    return None if isinstance(value.owner, ir.Block) else value.owner.operation


def among(op: ir.Operation | None, ops: Sequence[ir.Operation]) -> bool:
    """Whether `op` is one of `ops`; False for None, the owner of an argument."""
    return op is not None and op in ops


def erase_dead(func: ir.Operation) -> None:
    """Remove ops of a function's block whose results nothing uses."""
    ops = [op.operation for op in func.regions[0].blocks[0].operations]
    for op in reversed(ops[:-1]):
        if op.name != "func.call" and not any(True for result in op.results for _ in result.uses):
            op.erase()


def reads_table_of(op: ir.Operation, members: Sequence[ir.Operation]) -> bool:
    """Whether the body of an op reads, at places of its own, what members of a fusion group make: elements that may not be made yet.

    What elementwise ops alone make is no such table: it is computed where it is read.
    """
    if all(member.name == "linalg.generic" and Generic(member).is_elementwise for member in members):
        return False
    inner_ops = (inner for region in op.regions for block in region.blocks for inner in block)
    return any(among(owner_of(value), members) for inner in inner_ops for value in captured(inner.operation))


def is_evaluable(generic: Generic) -> bool:
    """Whether kernels can evaluate a generic point by point: one output map of distinct dims, no complex numbers, a body of plain scalar
    ops.
    """
    outputs = generic.maps[generic.num_inputs :]
    if any(affine != outputs[0] for affine in outputs):
        return False
    for affine in outputs:
        dims = [e.position for e in affine.results if isinstance(e, ir.AffineDimExpr)]
        others = [e for e in affine.results if not isinstance(e, ir.AffineDimExpr)]
        if len(set(dims)) != len(dims) or any(not isinstance(e, ir.AffineConstantExpr) or e.value != 0 for e in others):
            return False
    body = list(generic.body.operations)
    if any(not op.name.startswith(BODY_DIALECTS) or len(list(op.operation.regions)) for op in body):
        return False
    indexed = {e.position for affine in generic.maps for e in affine.results if isinstance(e, ir.AffineDimExpr)}
    if indexed != set(range(generic.rank)):
        return False
    kinds = [value.type.element_type if is_tensor(value) else value.type for value in generic.op.operands]
    return not any(isinstance(kind, ir.ComplexType) for kind in kinds)


def is_fill_of(value: ir.Value) -> bool:
    """Whether a tensor is filled with one number."""
    owner = owner_of(value)
    return owner is not None and is_fill(owner)


def _is_bytes(value: ir.Value) -> bool:
    return isinstance(value.type, ir.RankedTensorType) and value.type.element_type == ir.IntegerType.get_signless(8)


@dataclass
class Graph:
    """One public function, or the body of a loop in it, under dispatch formation."""

    func: ir.Operation  # the func.func or the scf.for
    shapes: Shapes
    costs: CostModel
    groups: dict[ir.Operation, FusionGroup] = field(default_factory=dict)

    @property
    def block(self) -> ir.Block:
        """Return the body, one block."""
        return self.func.regions[0].blocks[0]

    @cached_property
    def ops(self) -> list[ir.Operation]:
        """Return the ops of the body as they were at first use, in order."""
        return [op.operation for op in self.block.operations]

    @cached_property
    def position(self) -> dict[ir.Operation, int]:
        """Return the position of each op in `ops`."""
        return {op: i for i, op in enumerate(self.ops)}

    def generics(self) -> Iterator[Generic]:
        """Yield the generics that are not fills, in program order."""
        for op in self.ops:
            if op.name == "linalg.generic" and not is_fill(op):
                yield Generic(op)

    def is_free(self, op: ir.Operation) -> bool:
        """Whether an op is cloned into whatever uses it: constants, fills, empty destinations, scalars."""
        return op.name in REMATERIALIZABLE or is_fill(op) or self.is_empty(op) or not any(is_tensor(result) for result in op.results)

    def is_empty(self, op: ir.Operation) -> bool:
        """Whether an op makes an empty destination, or a view of one: its shape is all that matters."""
        owner = owner_of(op.operands[0]) if op.name in VIEWS else None
        return op.name == "tensor.empty" or (owner is not None and self.is_empty(owner))

    def is_host(self, op: ir.Operation) -> bool:
        """Whether an op stays in the host function: views, size arithmetic, loops over dispatches and the slices that they stack, the
        return.
        """
        return (
            (op.name in VIEWS and not self.is_empty(op))
            or is_loop(op)
            or SCAN_OUTPUT in op.attributes
            or not any(is_tensor(result) for result in op.results)
        )

    def is_inlined(self, op: ir.Operation) -> bool:
        """Whether an op is cheap to evaluate at each use: a slice, zeros around a convolution's image, or a short elementwise body over
        one tensor.
        """
        if op in self.groups:
            return False
        if op.name == "tensor.extract_slice":
            return self.shapes_known(op)
        if op.name == "tensor.pad":
            return self.shapes_known(op) and self._is_read_by_windows(op)
        if op.name != "linalg.generic" or is_fill(op):
            return False
        generic = Generic(op)
        if not generic.is_elementwise or len(op.results) != 1 or not is_evaluable(generic):
            return False
        if self.is_dequantization(op):
            return True
        body = list(generic.body.operations)
        tensors = {
            operand
            for operand, argument in zip(generic.inputs, generic.body.arguments, strict=False)
            if is_tensor(operand) and any(True for _ in argument.uses)
        }
        return self.costs.pays_to_recompute([inner.name for inner in body], len(tensors))

    def is_dequantization(self, op: ir.Operation) -> bool:
        """Whether an op dequantizes bytes that aren't a weight, by parameters that are: those bytes are what lies in memory.

        For a product of floats they are dequantized once, before it.
        """
        found = quantization_of(op)
        if found is None or found.kind != "dequantize" or not _is_bytes(found.input) or self._is_weight(found.input):
            return False
        if any(self.contraction_of(user) is not None for user in self.users(found.result)):
            return False
        others = [value for value in found.generic.inputs if value != found.input and is_tensor(value)]
        return is_evaluable(found.generic) and all(self._is_weight(v) or is_fill_of(v) for v in others)

    def _is_weight(self, value: ir.Value) -> bool:
        if not isinstance(value.owner, ir.Block) or value.owner.owner.operation.name != "func.func":
            return False
        return any(each.value == value for each in EntryFunc(value.owner.owner.operation).arguments.weights)

    def _is_read_by_windows(self, pad: ir.Operation) -> bool:
        """Whether kernels read around the zeros of a padding: it surrounds pixels of enough channels, and only convolutions use it."""
        source, padding = padded_source(pad.results[0])
        channels = self.shapes.shape(source)[-1]
        if padding is None or channels != self.shapes.shape(pad.results[0])[-1] or not self.costs.pays_to_read_around_padding(channels):
            return False
        found = [self.contraction_of(user) for user in self.users(pad.results[0])]
        return all(c is not None and c.lhs == pad.results[0] and has_windows(c.lhs_map) for c in found)

    def contraction_of(self, op: ir.Operation) -> Contraction | None:
        """Return the contraction that an op is, if it pays as one; else None."""
        found = kernel_contraction_of(op)
        return found if found is not None and self.costs.pays_as_contraction(found) else None

    def shapes_known(self, op: ir.Operation) -> bool:
        """Whether the scalar operands of an op, all but its first one, are expressions over the symbols."""
        return all(self.shapes.has_index(operand) for operand in list(op.operands)[1:])

    def users(self, value: ir.Value) -> list[ir.Operation]:
        """Return the ops of the block that use a value, directly or from a region, one entry a use."""
        found: list[ir.Operation] = []
        for use in value.uses:
            owner = use.owner.operation
            while owner.parent is not None and owner.parent.operation != self.func:
                owner = owner.parent.operation
            found.append(owner)
        return found

    def assign(self, group: FusionGroup, ops: Iterable[ir.Operation]) -> None:
        """Add ops to a fusion group, which stays in program order."""
        for op in ops:
            self.groups[op] = group
            if op not in group.ops:
                group.ops.append(op)
        group.ops.sort(key=lambda op: self.position[op])

    def release(self, group: FusionGroup, op: ir.Operation) -> None:
        """Take an op out of its fusion group."""
        group.ops.remove(op)
        del self.groups[op]

    def depends(self, value: ir.Value, group: FusionGroup) -> bool:
        """Whether `value`, made outside a fusion group, needs one of its results first (then joining its user would close a cycle)."""
        stop = min(self.position[op] for op in group.ops)
        seen: set[ir.Operation] = set()
        pending = [value]
        while pending:
            op = owner_of(pending.pop())
            if op is None or op in seen or op not in self.position:
                continue
            seen.add(op)
            unit = self.groups.get(op)
            if unit is group:
                return True
            members = unit.ops if unit is not None else [op]
            if all(self.position[member] < stop for member in members):
                continue
            pending += [operand for member in members for operand in captured(member)]
        return False

    def would_depend(self, value: ir.Value, trial: FusionGroup) -> bool:
        """Whether `depends` would hold for a fusion group that is not assigned yet."""
        before = {op: self.groups.get(op) for op in trial.ops}
        for op in trial.ops:
            self.groups[op] = trial
        try:
            return self.depends(value, trial)
        finally:
            for op, group in before.items():
                if group is None:
                    del self.groups[op]
                else:
                    self.groups[op] = group

    def may_join(self, op: ir.Operation, group: FusionGroup) -> bool:
        """Whether every operand of `op` is in the fusion group or independent of it, and it reads no table that the group makes."""
        if reads_table_of(op, group.ops):
            return False
        return all(among(owner_of(v), group.ops) or not self.depends(v, group) for v in captured(op))
