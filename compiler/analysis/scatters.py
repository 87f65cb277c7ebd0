"""Analysis of scatters: loop nests that write (or combine) single elements of a tensor at data-dependent positions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from llmos.compiler.ir.attributes import INDUCTION_VARIABLE
from llmos.compiler.ir.bindings import ir

_BODY_DIALECTS = ("arith.", "math.", "tensor.extract")


@dataclass(frozen=True)
class Scatter:
    """A nest of scf.for around one tensor.insert.

        %y = scf.for %i = 0 to %n step 1 iter_args(%a = %x) {
          %z = scf.for %j = 0 to %m step 1 iter_args(%b = %a) {
            ... scalars from tensor.extract: the position, the value and, for a combining update, the current element of %b
            %c = tensor.insert %made into %b[%place, %j]
            yield %c
          yield %z

    Updates of one position run in loop order. A loop whose induction variable is a coordinate of the insert is parallel: its iterations
    write different elements.
    """

    loops: tuple[ir.Operation, ...]
    insert: ir.Operation

    @property
    def base(self) -> ir.Value:
        """Return the tensor of initial elements, which unwritten positions keep."""
        return self.loops[0].operands[3]

    @property
    def result(self) -> ir.Value:
        """Return the tensor after all updates."""
        return self.loops[0].results[0]

    @property
    def held(self) -> ir.Value:
        """Return the tensor before an update."""
        return _block(self.loops[-1]).arguments[1]

    @property
    def body(self) -> list[ir.Operation]:
        """Return the ops that compute one update, in order."""
        return [op.operation for op in list(_block(self.loops[-1]).operations)[:-2]]

    @property
    def counters(self) -> list[ir.Value]:
        """Return the induction variables of the loops, outermost first."""
        return [_block(loop).arguments[0] for loop in self.loops]

    @property
    def bounds(self) -> list[ir.Value]:
        """Return the trip counts of the loops, index values, outermost first."""
        return [loop.operands[1] for loop in self.loops]

    @property
    def place(self) -> list[ir.Value]:
        """Return the position that is written, one index value a dim of the tensor."""
        return list(self.insert.operands)[2:]

    @cached_property
    def free_axes(self) -> dict[int, int]:
        """Map each parallel loop, outermost first, to the axis that its induction variable indexes."""
        counters = self.counters
        axes = [(counters.index(at), axis) for axis, at in enumerate(self.place) if at in counters]
        return dict(reversed(axes))  # the first, if an induction variable indexes several axes


def scatter_of(op: ir.Operation) -> Scatter | None:
    """Match a scatter, else None."""
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
    """Whether a loop counts from 0 by 1 and carries one tensor, and isn't a loop over dispatches."""
    if op.name != "scf.for" or INDUCTION_VARIABLE in op.attributes or len(op.results) != 1:
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
    """Whether a non-constant value is computed inside a loop."""
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
