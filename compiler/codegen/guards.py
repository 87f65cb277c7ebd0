"""Reads that not every point may make: under a condition, or at an index that is checked first."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmos.compiler.codegen.available import AvailableValues
from llmos.compiler.codegen.builder import Builder, Value, is_vector
from llmos.compiler.codegen.coordinates import Coord, IndexEmitter, Lane
from llmos.compiler.codegen.memory import MemoryEmitter
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.sizes import Expr, SymbolTable
from llmos.runtime.native.abi import INDEX_OUT_OF_RANGE


@dataclass(frozen=True)
class Guards:
    """Conditions and checks, emitted into one kernel."""

    memory: MemoryEmitter  # whose mask they narrow
    available: AvailableValues
    table: SymbolTable
    error: Value  # address of the kernel's i32 error code

    @property
    def b(self) -> Builder:
        """Return the builder of the kernel."""
        return self.memory.b

    @property
    def index(self) -> IndexEmitter:
        """Return what computes coordinates."""
        return self.memory.index

    def may_be_empty(self, size: Expr) -> bool:
        """Whether a dim of this size may have no elements."""
        return bool(self.table.bounds(size)[0] < 1)

    def checked(self, coord: Value, size: Expr) -> tuple[Value, Value]:
        """An index from data that is safe to use if the dim isn't empty, and whether (on which lanes) it was in range; an error if not."""
        b = self.b
        coord = b.op("llvm.freeze", [coord], coord.type)  # of a float without an integer's value: one value for the check and the use
        inside = b.compare("ult", coord, self.index.sizes(size))
        outside = b.binary("arith.xori", inside, b.const(b.i1, 1))
        if is_vector(outside) and self.memory.mask is not None:
            outside = b.op("arith.andi", [outside, self.memory.mask], outside.type)
        anywhere = b.op("vector.reduction", [outside], b.i1, kind=ir.Attribute.parse("#vector.kind<or>")) if is_vector(outside) else outside
        with b.when(anywhere):
            b.store(b.const(b.i32, INDEX_OUT_OF_RANGE), self.error, 4)
        return b.select(inside, coord, b.index(0)), inside

    def within(self, coord: Coord, size: Expr) -> tuple[Coord, Value]:
        """A coordinate that is safe to read at, and whether (on which lanes) the given one is in [0, size)."""
        b = self.b
        within = b.compare("ult", self.index.lanes_of(coord), self.index.sizes(size))
        if isinstance(coord, Lane):
            return coord, within  # lanes outside are masked
        return b.select(within, coord, b.index(0)), within

    def choose(self, conditions: Sequence[Value], read: Callable[[], Value], otherwise: Value, guarded: bool = False) -> Value:
        """read() where every condition holds; lanes where one doesn't are not read.

        `guarded`: where a condition that all lanes share doesn't hold, there is nothing that could be read.
        """
        b = self.b
        # What is the same on all lanes is chosen by on its own: LLVM 22 never ends on a splat of it and a constant mask, without AVX-512.
        by_lane, for_all = (self._all([c for c in conditions if is_vector(c) is kind]) for kind in (True, False))
        outer = self.memory.mask
        mask = outer if by_lane is None else by_lane if outer is None else b.binary("arith.andi", outer, by_lane)

        def masked_read() -> Value:
            with self.memory.masked(mask):
                return read()

        value = self._read_if(for_all, masked_read, otherwise) if guarded and for_all is not None else masked_read()
        for condition in (by_lane, for_all):
            value = value if condition is None else b.select(condition, value, otherwise)
        return value

    def _read_if(self, condition: Value, read: Callable[[], Value], otherwise: Value) -> Value:
        """read() under a branch."""
        draft = ir.Operation.create("scf.if", operands=[condition], regions=2)  # the type of the result is known when it was read
        block = draft.regions[0].blocks.append()
        with ir.InsertionPoint(block), self.available.scope():
            value = read()
            value = self.b.splat(value, otherwise.type.shape[0]) if is_vector(otherwise) else value
            ir.Operation.create("scf.yield", operands=[value])
        op = ir.Operation.create("scf.if", results=[value.type], operands=[condition], regions=2)
        block.append_to(op.regions[0])
        draft.erase()
        with ir.InsertionPoint(op.regions[1].blocks.append()):
            other = self.b.splat(otherwise, value.type.shape[0]) if is_vector(value) else otherwise
            ir.Operation.create("scf.yield", operands=[other])
        return op.results[0]

    def _all(self, conditions: Sequence[Value]) -> Value | None:
        """Whether every one holds; None for none."""
        return functools.reduce(functools.partial(self.b.binary, "arith.andi"), conditions) if conditions else None
