"""Analysis of loops over dispatches: loop-carried states, scan outputs, and independent parts of the body.

A loop over dispatches counts from 0 by 1 to a size, and carries tensors of two kinds:

* a state: each iteration reads the result of the previous one;
* a scan output: each iteration writes one slice along its first dim, by a tensor.insert_slice marked STACK; the body doesn't read it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from llmos.compiler.ir.attributes import INDUCTION_VARIABLE, SCAN_OUTPUT
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.ops import VIEWS
from llmos.compiler.ir.shapes import Shapes, slice_parameters
from llmos.compiler.ir.sizes import Expr

ELSEWHERE = -(1 << 32)  # an offset that the loop determines: a slice of a scan output


def is_loop(op: ir.Operation) -> bool:
    """Whether an op is a loop over dispatches, whose induction variable has a name."""
    return op.name == "scf.for" and INDUCTION_VARIABLE in op.attributes


def root_of(value: ir.Value) -> ir.Value:
    """Return the value that owns the memory of a chain of views."""
    owner = value.owner
    if isinstance(owner, ir.Block) or owner.operation.name not in VIEWS:
        return value
    return root_of(owner.operation.operands[0])


@dataclass(frozen=True)
class ScanOutput:
    """A scan output: each iteration writes `source` at `offset` of the first dim."""

    position: int
    source: ir.Value  # without views
    offset: Expr
    insert: ir.Operation


@dataclass(frozen=True)
class Loop:
    """One scf.for."""

    op: ir.Operation
    shapes: Shapes

    @property
    def block(self) -> ir.Block:
        """Return the body: its arguments are the induction variable and the carried tensors."""
        return self.op.regions[0].blocks[0]

    @property
    def induction_variable(self) -> ir.Value:
        """Return the index of the iteration, from 0."""
        return self.block.arguments[0]

    @property
    def carried(self) -> list[ir.Value]:
        """Return the carried tensors as the body sees them."""
        return list(self.block.arguments)[1:]

    @property
    def inits(self) -> list[ir.Value]:
        """Return the carried tensors before the first iteration."""
        return list(self.op.operands)[3:]

    @cached_property
    def ops(self) -> list[ir.Operation]:
        """Return the ops of the body, in order; the last one is the yield."""
        return [op.operation for op in self.block.operations]

    @property
    def calls(self) -> list[ir.Operation]:
        """Return the calls of dispatches in the body."""
        return [op for op in self.ops if op.name == "func.call"]

    @property
    def yielded(self) -> list[ir.Value]:
        """Return the yielded values, in the order of the carried tensors."""
        return list(self.ops[-1].operands)

    @property
    def trip_count(self) -> Expr:
        """Return the number of iterations. Raises UnsupportedError if it depends on data."""
        return self.shapes.index(self.op.operands[1])

    @cached_property
    def scan_outputs(self) -> dict[int, ScanOutput]:
        """Return the scan outputs by position among the carried tensors."""
        found: dict[int, ScanOutput] = {}
        for position, value in enumerate(self.yielded):
            owner = value.owner
            if isinstance(owner, ir.Block) or SCAN_OUTPUT not in owner.operation.attributes:
                continue
            insert = owner.operation
            offsets = slice_parameters(self.shapes, insert, 2)[0]
            assert offsets is not None
            found[position] = ScanOutput(position, root_of(insert.operands[0]), offsets[0], insert)
        return found

    @property
    def states(self) -> list[int]:
        """Return the positions of the carried tensors that are states."""
        return [position for position in range(len(self.yielded)) if position not in self.scan_outputs]

    @cached_property
    def parts(self) -> list[list[ir.Operation]]:
        """Partition the calls, in order, into groups that share no value of the loop: each group could run as a separate loop."""
        groups: list[tuple[set[ir.Value], list[ir.Operation]]] = []
        for call in self.calls:
            touched = {self._class_of(value) for value in [*call.operands, *call.results] if self._is_inner(value)}
            joined = [group for group in groups if group[0] & touched]
            groups = [group for group in groups if group not in joined]
            groups.append((touched.union(*[g[0] for g in joined]), [*[op for g in joined for op in g[1]], call]))
        order = {call: i for i, call in enumerate(self.calls)}
        parts = [sorted(calls, key=lambda call: order[call]) for _, calls in groups]
        return sorted(parts, key=lambda calls: order[calls[0]])

    def _is_inner(self, value: ir.Value) -> bool:
        owner = root_of(value).owner
        block = owner if isinstance(owner, ir.Block) else owner.operation.block
        return block == self.block and value != self.induction_variable and isinstance(value.type, ir.RankedTensorType)

    def _class_of(self, value: ir.Value) -> ir.Value:
        """Return the representative of a value: a yielded value is identified with its carried tensor."""
        root = root_of(value)
        for position, result in enumerate(self.yielded):
            if root in (root_of(result), self.carried[position]) and position not in self.scan_outputs:
                return self.carried[position]
        return root


def loops_in(block: ir.Block) -> Iterator[ir.Operation]:
    """Yield the loops over dispatches in a block."""
    for op in block.operations:
        if is_loop(op.operation):
            yield op.operation
