"""plan-memory: give every intermediate result a place in the arena."""

from __future__ import annotations

from dataclasses import dataclass, field

import sympy

from llmos.compiler.ir import ir
from llmos.compiler.symbolic import Expr, Shapes, SymbolTable
from llmos.passes._graph import VIEWS, owner_of
from llmos.passes._pass import Pass

SLOTS = "llmos.slots"
BUFFERS = "llmos.buffers"


@dataclass(frozen=True)
class PlanMemory(Pass):
    """Results whose lives don't overlap share a slot; sizes are expressions, so one plan serves every batch and length.

    Before:
        %1 = call @d0_contraction(%x, %w)
        %2 = call @d1_contraction(%1, %v)
        return %2
    After:
        func.func @main(...) attributes {llmos.slots = ["4096*tokens"]}
        %1 = call @d0_contraction(%x, %w) {llmos.buffers = array<i64: 0>}       // slot 0
        %2 = call @d1_contraction(%1, %v) {llmos.buffers = array<i64: -1>}      // output 0

    A slot is as large as the largest of its tenants, where the ranges of the symbols decide which that is; a result that can't be
    compared with any free slot gets a new one.
    """

    def run(self, module: ir.Module) -> None:
        table = SymbolTable.of(module)
        for op in module.body.operations:
            if "sym_visibility" not in op.operation.attributes:
                _plan(op.operation, table)


@dataclass
class _Slots:
    table: SymbolTable
    sizes: list[Expr] = field(default_factory=list)
    free: list[int] = field(default_factory=list)

    def take(self, size: Expr) -> int:
        """The best free slot for `size` bytes, grown if it must be, or a new one."""
        best: tuple[Expr, int] | None = None
        for slot in self.free:
            larger = self._larger(self.sizes[slot], size)
            if larger is None:
                continue
            waste = sympy.expand(larger - size) + sympy.expand(larger - self.sizes[slot])
            if best is None or self._larger(best[0], waste) == best[0]:
                best = (waste, slot)
        if best is None:
            self.sizes.append(size)
            return len(self.sizes) - 1
        slot = best[1]
        self.free.remove(slot)
        self.sizes[slot] = self._larger(self.sizes[slot], size) or size
        return slot

    def _larger(self, a: Expr, b: Expr) -> Expr | None:
        """The larger of two sizes, if that is the same for all values of the symbols."""
        low, high = self.table.bounds(sympy.expand(a - b))
        return a if low >= 0 else b if high <= 0 else None


def _plan(func: ir.Operation, table: SymbolTable) -> None:
    shapes = Shapes.of(func, table)
    ops = [op.operation for op in func.regions[0].blocks[0].operations]
    outputs = {_root(value): number for number, value in enumerate(ops[-1].operands)}
    last_use = _last_uses(ops)
    slots = _Slots(table)
    held: dict[ir.Value, int] = {}
    for position, op in enumerate(ops):
        if op.name != "func.call":
            continue
        places: list[int] = []
        for result in op.results:
            if result in outputs:
                places.append(-1 - outputs[result])
            else:
                held[result] = slots.take(num_bytes(shapes, result))
                places.append(held[result])
        op.attributes[BUFFERS] = ir.DenseI64ArrayAttr.get(places)
        for value in [value for value, end in last_use.items() if end <= position and value in held]:
            slots.free.append(held.pop(value))
        for result in op.results:  # a result that nobody reads is free at once
            if result in held and result not in last_use:
                slots.free.append(held.pop(result))
    func.attributes[SLOTS] = ir.ArrayAttr.get([ir.StringAttr.get(str(size)) for size in slots.sizes])


def _root(value: ir.Value) -> ir.Value:
    """The result behind views."""
    owner = owner_of(value)
    return _root(owner.operands[0]) if owner is not None and owner.name in VIEWS else value


def _last_uses(ops: list[ir.Operation]) -> dict[ir.Value, int]:
    last: dict[ir.Value, int] = {}
    for position, op in enumerate(ops):
        if op.name in ("func.call", "func.return"):
            for operand in op.operands:
                last[_root(operand)] = position
    return last


def num_bytes(shapes: Shapes, value: ir.Value) -> Expr:
    """Size of a tensor in memory; bool is one byte an element."""
    kind = ir.RankedTensorType(value.type).element_type
    width = max(1, int(getattr(kind, "width", 64)) // 8)
    return sympy.expand(sympy.Mul(*shapes.shape(value)) * width)
