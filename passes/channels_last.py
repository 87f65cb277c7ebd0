"""channels-last: activations of convolutional graphs are stored with their channels innermost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import EntryFunc, public_functions
from llmos.compiler.ir.ops import RESHAPES
from llmos.compiler.ir.shapes import Shapes
from llmos.compiler.ir.sizes import SymbolTable
from llmos.passes._channels import (
    SAME_AXES,
    Channels,
    Convolution,
    carries,
    channels_last,
    convolution_of,
    extracts,
    is_in_order,
    is_layout_tensor,
    linked,
    moves_nothing,
)
from llmos.passes._context import PassContext
from llmos.passes._contracts import WEIGHTS_BEHIND_INPUTS
from llmos.passes._graph import captured, owner_of
from llmos.passes._pass import Pass
from llmos.passes._property import ONLY_LINALG_GENERICS, Property
from llmos.passes._relayout import Relayout
from llmos.runtime.errors import UnsupportedError

TYPICAL = 8  # what a dynamic size is taken for when traffic is counted
MOVE = 2.0  # passes over memory that a move costs, against one pass a tap that a convolution saves


@dataclass(frozen=True)
class ChannelsLast(Pass):
    """What is connected to a convolution is stored as [n, spatial..., c], its weight as [taps..., c, f]: channels then lie along vectors
    in every kernel, and a window is read where it lies.

    Before:
        %1 = linalg.generic {x[n, c, i + u, j + v] * w[f, c, u, v]} ins(%x, %w) -> tensor<?x64x56x56xf32>     // n, f, i, j over c, u, v
        %2 = linalg.generic {max 0} ins(%1) -> tensor<?x64x56x56xf32>
        return %2
    After:
        %w1 = linalg.generic {w[f, c, u, v]} ins(%w) -> tensor<3x3x64x64xf32>                                 // u, v, c, f
        %x1 = linalg.generic {x[n, c, i, j]} ins(%x) -> tensor<?x58x58x64xf32>                                // n, i, j, c
        %1 = linalg.generic {x[n, i + u, j + v, c] * w[u, v, c, f]} ins(%x1, %w1) -> tensor<?x56x56x64xf32>   // n, i, j, f over u, v, c
        %2 = linalg.generic {max 0} ins(%1) -> tensor<?x56x56x64xf32>
        %3 = linalg.generic {y[n, i, j, c]} ins(%2) -> tensor<?x64x56x56xf32>
        return %3

    Elementwise ops, reductions, pools, pads, concatenations, slices, and reshapes that keep channels apart take the layout on; at inputs,
    outputs and other reshapes the tensor is moved (free where all but one of what is exchanged has size 1). Loops over a single tap go,
    so a 1x1 convolution becomes a matrix product. Each connected part of a graph is done when its moves cost less than its convolutions
    save; a graph without convolutions stays as it is.
    """

    requires: ClassVar[frozenset[Property]] = frozenset({ONLY_LINALG_GENERICS, WEIGHTS_BEHIND_INPUTS})
    ensures: ClassVar[frozenset[Property]] = frozenset({ONLY_LINALG_GENERICS})

    def run(self, module: ir.Module, context: PassContext) -> None:
        """Store each part that is worth it with its channels innermost, in every public function."""
        table = SymbolTable.of(module)
        for func in public_functions(module):
            region = _Region(func, Shapes.of(func, table))
            region.grow()
            chosen = region.worthwhile()
            if chosen:
                Relayout(func, chosen, frozenset(region.weights)).run()


@dataclass
class _Region:
    """What convolutions are connected to, in parts that share no tensor."""

    func: ir.Operation
    shapes: Shapes
    channels: dict[ir.Value, Channels] = field(default_factory=dict)
    parts: dict[ir.Value, ir.Value] = field(default_factory=dict)  # a forest: a value's parent, itself for a root
    convolutions: list[Convolution] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.block = self.func.regions[0].blocks[0]
        self.ops = [op.operation for op in self.block.operations]
        self.weights = self._known_at_compile_time()
        self.pinned = self._pinned()

    def _known_at_compile_time(self) -> set[ir.Value]:
        known = {each.value for each in EntryFunc(self.func).arguments.weights}
        for op in self.ops[:-1]:
            if op.name != "func.call" and all(value in known for value in captured(op)):
                known.update(op.results)
        return known

    def _pinned(self) -> set[ir.Value]:
        """Tensors that an op's region uses in a way that no layout follows, and weights that are computed: they get their own layout."""
        pinned: set[ir.Value] = set()
        for op in self.ops:
            followed = {extract.operands[0] for extract in extracts(op)}
            inner = [v for v in captured(op) if v not in list(op.operands)]
            pinned.update(v for v in inner if is_layout_tensor(v) and v not in followed)
            if (found := convolution_of(op)) is not None:
                pinned.add(found.generic.inputs[found.weight])
        return pinned

    # -- growth
    def grow(self) -> None:
        """Give channels to everything that convolutions reach."""
        pending: list[ir.Value] = []
        for op in self.ops:
            found = convolution_of(op)
            if found is None:
                continue
            self.convolutions.append(found)
            x = found.generic.inputs[found.x]
            for value, channels in ((x, found.channels_in), (op.results[0], found.channels_out)):
                if self._give(value, channels):
                    pending.append(value)
        while pending:
            value = pending.pop(0)
            for op in self._around(value):
                for other, channels in linked(op, value, self.channels[value]):
                    if self._give(other, channels):
                        pending.append(other)
                    if other in self.channels:
                        self._join(value, other)
        for found in self.convolutions:
            sides = [v for v in (found.generic.inputs[found.x], found.generic.op.results[0]) if v in self.channels]
            for side in sides[1:]:
                self._join(sides[0], side)

    def _give(self, value: ir.Value, channels: Channels) -> bool:
        """Whether a value gets channels that it hadn't."""
        if not is_layout_tensor(value) or value in self.channels or value in self.pinned or value in self.weights or not channels:
            return False
        owner = owner_of(value)
        if (owner is not None and owner not in self.ops) or is_in_order(channels_last(channels, value.type.rank)):
            return False
        if owner is not None and len(owner.results) > 1 and owner.name != "linalg.generic":
            return False
        self.channels[value] = channels
        self.parts[value] = value
        return True

    def _around(self, value: ir.Value) -> Iterator[ir.Operation]:
        """The op that makes a value and those that use it."""
        owner = owner_of(value)
        if owner is not None:
            yield owner
        yield from self._users(value)

    def _users(self, value: ir.Value) -> Iterator[ir.Operation]:
        for use in value.uses:
            user = use.owner.operation
            while user.parent is not None and user.parent.operation != self.func:
                user = user.parent.operation
            yield user

    def _part(self, value: ir.Value) -> ir.Value:
        while self.parts[value] != value:
            value = self.parts[value]
        return value

    def _join(self, a: ir.Value, b: ir.Value) -> None:
        self.parts[self._part(a)] = self._part(b)

    # -- the decision
    def worthwhile(self) -> dict[ir.Value, Channels]:
        """The values of the parts that save more than they cost, with their channels."""
        gains = dict.fromkeys((self._part(value) for value in self.channels), 0.0)
        for found in self.convolutions:
            x = found.generic.inputs[found.x]
            side = x if x in self.channels else found.generic.op.results[0]
            if side in self.channels:
                gains[self._part(side)] += self._elements(x) * self._num_taps(found)
        for value, channels in self.channels.items():
            if not moves_nothing(value.type, channels_last(channels, value.type.rank)):
                gains[self._part(value)] -= MOVE * self._elements(value) * self._num_moves(value)
        return {value: channels for value, channels in self.channels.items() if gains[self._part(value)] > 0}

    def _num_moves(self, value: ir.Value) -> int:
        """Of a value: one where it comes from an op that keeps its order, one if any such op uses it."""
        owner = owner_of(value)
        made = owner is not None and carries(owner, self.channels[value])
        return (not made) + any(not self._takes(user, value) for user in self._users(value))

    def _takes(self, user: ir.Operation, value: ir.Value) -> bool:
        if user.name in ("linalg.generic", "tensor.dim"):
            return True
        return user.name in SAME_AXES | RESHAPES and bool(linked(user, value, self.channels[value])) and user.results[0] in self.channels

    def _num_taps(self, found: Convolution) -> int:
        shape = found.generic.inputs[found.weight].type.shape
        positions = [e.position if isinstance(e, ir.AffineDimExpr) else None for e in found.generic.maps[found.weight].results]
        return math.prod(size for p, size in zip(positions, shape, strict=True) if p in found.window and size > 0)

    def _elements(self, value: ir.Value) -> float:
        try:
            shape = self.shapes.shape(value)
        except UnsupportedError:
            return float(TYPICAL)
        typical = {s.expr: min(max(TYPICAL, s.min), s.max) for s in self.shapes.table.sizes}
        return math.prod(float(size.subs(typical)) for size in shape)
