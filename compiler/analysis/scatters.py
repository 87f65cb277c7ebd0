"""Reading scatters: nests of loops that write (or combine) single elements of one tensor at places that other tensors give."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from llmos.compiler.ir.attributes import COUNTER
from llmos.compiler.ir.bindings import ir

_BODY_DIALECTS = ("arith.", "math.", "tensor.extract")


@dataclass(frozen=True)
class Scatter:
    """A nest of scf.for around one tensor.insert.

        %y = scf.for %i = 0 to %n step 1 iter_args(%a = %x) {
          %z = scf.for %j = 0 to %m step 1 iter_args(%b = %a) {
            ... scalars from tensor.extract, among them the place and, where it combines, the element of %b there
            %c = tensor.insert %made into %b[%place, %j]
            yield %c
          yield %z

    Updates of one place are made in the order of the loops. A loop whose counter is itself a coordinate is free: its turns write different
    elements, so that they may run in any order.
    """

    loops: tuple[ir.Operation, ...]
    insert: ir.Operation

    @property
    def base(self) -> ir.Value:
        """What the elements are that nothing is written to."""
        return self.loops[0].operands[3]

    @property
    def result(self) -> ir.Value:
        return self.loops[0].results[0]

    @property
    def held(self) -> ir.Value:
        """The tensor as it is before an update."""
        return _block(self.loops[-1]).arguments[1]

    @property
    def body(self) -> list[ir.Operation]:
        """What computes one update, in order."""
        return [op.operation for op in list(_block(self.loops[-1]).operations)[:-2]]

    @property
    def counters(self) -> list[ir.Value]:
        return [_block(loop).arguments[0] for loop in self.loops]

    @property
    def bounds(self) -> list[ir.Value]:
        return [loop.operands[1] for loop in self.loops]

    @property
    def place(self) -> list[ir.Value]:
        return list(self.insert.operands)[2:]

    @cached_property
    def free_axes(self) -> dict[int, int]:
        """By loop, outermost first: the axis whose coordinate its counter is."""
        counters = self.counters
        axes = [(counters.index(at), axis) for axis, at in enumerate(self.place) if at in counters]
        return dict(reversed(axes))  # of a counter that is several coordinates, the first


def scatter_of(op: ir.Operation) -> Scatter | None:
    """The scatter that an op is, or None."""
    loops: list[ir.Operation] = []
    while _is_plain_loop(op):
        loops.append(op)
        *ops, end = [each.operation for each in _block(op).operations]
        inner = [each for each in ops if each.name != "arith.constant"]
        if len(inner) != 1 or inner[0].name != "scf.for":
            return _with_body(loops, ops, end)
        if list(end.operands) != list(inner[0].results) or list(inner[0].operands)[3:] != [_block(op).arguments[1]]:
            return None
        op = inner[0]
    return None


def _block(loop: ir.Operation) -> ir.Block:
    return loop.regions[0].blocks[0]


def _is_plain_loop(op: ir.Operation) -> bool:
    """From 0 by 1, carrying one tensor; not one that runs as dispatches."""
    if op.name != "scf.for" or COUNTER in op.attributes or len(op.results) != 1:
        return False
    return isinstance(op.results[0].type, ir.RankedTensorType) and [_constant(v) for v in list(op.operands)[0:3:2]] == [0, 1]


def _constant(value: ir.Value) -> int | None:
    owner = value.owner
    is_constant = not isinstance(owner, ir.Block) and owner.name == "arith.constant"
    return int(ir.IntegerAttr(owner.attributes["value"]).value) if is_constant else None


def _with_body(loops: list[ir.Operation], ops: list[ir.Operation], end: ir.Operation) -> Scatter | None:
    insert = ops[-1] if ops else end
    held = _block(loops[-1]).arguments[1]
    if insert.name != "tensor.insert" or insert.operands[1] != held or list(end.operands) != list(insert.results):
        return None
    if any(not op.name.startswith(_BODY_DIALECTS) or len(list(op.regions)) for op in ops[:-1]):
        return None
    place = list(insert.operands)[2:]
    for use in held.uses:
        user = use.owner.operation
        if user != insert and (user.name != "tensor.extract" or list(user.operands)[1:] != place):
            return None
    if any(isinstance(op.results[0].type, ir.RankedTensorType) for op in ops[:-1]):
        return None
    found = Scatter(tuple(loops), insert)
    counters = found.counters
    return None if any(bound in counters or _is_inside(bound, loops[0]) for bound in found.bounds) else found


def _is_inside(value: ir.Value, loop: ir.Operation) -> bool:
    """Whether a value that is no constant is computed in a loop."""
    owner = value.owner
    op = owner.owner.operation if isinstance(owner, ir.Block) else owner.operation
    if op.name == "arith.constant":
        return False
    parent: ir.Operation | None = op
    while parent is not None:
        if parent == loop:
            return True
        parent = parent.parent.operation if parent.parent is not None else None
    return False
