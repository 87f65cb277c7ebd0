"""plan-memory: give every intermediate result a place in the arena."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import sympy

from llmos.compiler.analysis.loops import ELSEWHERE, Loop, is_loop, root_of
from llmos.compiler.ir.attributes import BUFFERS, COMPUTES, SLOTS, WITHIN, integer_of
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import EntryFunc, public_functions
from llmos.compiler.ir.shapes import Shapes
from llmos.compiler.ir.sizes import Expr, SymbolTable
from llmos.compiler.ir.updates import argument_place
from llmos.passes._context import PassContext
from llmos.passes._contracts import DISPATCHED, IN_PLACE_WITHIN, PACKED_ALIKE, PLACED
from llmos.passes._graph import captured
from llmos.passes._pass import Pass
from llmos.passes._property import Property


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

    In a loop each result has two places, which the iterations use alternately: two slots where the next one reads it, the same one twice
    where it doesn't, ELSEWHERE where it is written into the slice of a scan output.

    A result that update-in-place has put into an argument's memory needs no slot.
    A slot is as large as the largest of its tenants, where the ranges of the symbols decide which that is; a result that can't be
    compared with any free slot gets a new one. Tenants depend on the same computed sizes: the host asks for a slot once these are known.
    """

    requires: ClassVar[frozenset[Property]] = frozenset({DISPATCHED, IN_PLACE_WITHIN, PACKED_ALIKE})
    ensures: ClassVar[frozenset[Property]] = frozenset({PLACED})

    def run(self, module: ir.Module, context: PassContext) -> None:
        """Set BUFFERS of every call and loop, and SLOTS of every public function. Raises UnsupportedError for a size that depends on
        data.
        """
        table = SymbolTable.of(module)
        for func in public_functions(module):
            _Planner(EntryFunc(func), Shapes.of(func, table), _Slots(table)).plan()


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
        if self.table.computed_in(a) != self.table.computed_in(b):
            return None
        low, high = self.table.bounds(sympy.expand(a - b))
        return a if low >= 0 else b if high <= 0 else None


@dataclass
class _Planner:
    """Places of the results of one public function, op by op."""

    func: EntryFunc
    shapes: Shapes
    slots: _Slots

    def plan(self) -> None:
        ops = self.func.ops
        self.outputs = {root_of(output.value): number for number, output in enumerate(self.func.outputs)}
        last_use = _last_uses(ops)
        held: dict[ir.Value, list[int]] = {}
        for position, op in enumerate(ops):
            if op.name == "func.call":
                within = integer_of(op, WITHIN)
                places = [argument_place(within)] if within is not None else [self._place(result, held) for result in op.results]
                op.attributes[BUFFERS] = ir.DenseI64ArrayAttr.get(places)
            elif is_loop(op):
                self._place_loop(Loop(op, self.shapes), held)
            else:
                continue
            for value in [value for value, end in last_use.items() if end <= position and value in held]:
                self.slots.free += held.pop(value)
            for result in op.results:  # a result that nobody reads is free at once
                if result in held and result not in last_use:
                    self.slots.free += held.pop(result)
        self.func.op.attributes[SLOTS] = ir.ArrayAttr.get([ir.StringAttr.get(str(size)) for size in self.slots.sizes])

    def _place(self, result: ir.Value, held: dict[ir.Value, list[int]]) -> int:
        """An output, or a slot that is held from now on."""
        if result in self.outputs:
            return -1 - self.outputs[result]
        slot = self._take(result)
        held[result] = [slot]
        return slot

    def _take(self, value: ir.Value) -> int:
        return self.slots.take(num_bytes(self.shapes, value))

    def _place_loop(self, loop: Loop, held: dict[ir.Value, list[int]]) -> None:
        """Place a scan output like any result. Give a state two slots, which the iterations write alternately; it keeps both."""
        results = list(loop.op.results)
        places = {position: self._place(results[position], held) for position in loop.scan_outputs}
        stacked = {each.source for each in loop.scan_outputs.values()}
        twins: dict[ir.Value, list[int]] = {}
        for position in loop.states:
            root = root_of(loop.yielded[position])
            if root not in stacked and root not in twins and root != loop.carried[position]:
                twins[root] = held[results[position]] = [self._take(root), self._take(root)]
        self._place_iteration(loop, twins, stacked)
        loop.op.attributes[BUFFERS] = ir.DenseI64ArrayAttr.get([places.get(position, ELSEWHERE) for position in range(len(results))])

    def _place_iteration(self, loop: Loop, twins: dict[ir.Value, list[int]], stacked: set[ir.Value]) -> None:
        """Place what one iteration makes and reads for the last time. Parts of a loop may run at the same time: they share no slot."""
        last_use = _last_uses(loop.ops)
        taken: list[int] = []
        for calls in loop.parts:
            held: dict[ir.Value, int] = {}
            mine: list[int] = []
            for call in calls:
                places = []
                for result in call.results:
                    slots = twins.get(result) or ([ELSEWHERE] if result in stacked else [self._take(result)])
                    if slots[0] != ELSEWHERE and result not in twins:
                        held[result] = slots[0]
                        mine.append(slots[0])
                    places += [slots[0], slots[-1]]
                call.attributes[BUFFERS] = ir.DenseI64ArrayAttr.get(places)
                position = loop.ops.index(call)
                for value in [value for value in held if last_use.get(value, position) <= position]:
                    self.slots.free.append(held.pop(value))
            self.slots.free = [slot for slot in self.slots.free if slot not in mine]
            taken += mine
        self.slots.free += list(dict.fromkeys(taken))


def _last_uses(ops: list[ir.Operation]) -> dict[ir.Value, int]:
    """The last op that reads each value. A loop's results may lie where its states began or its slices went: all live as long as any."""
    last: dict[ir.Value, int] = {}
    for position, op in enumerate(ops):
        if op.name in ("func.call", "func.return", "scf.yield", "tensor.insert_slice") or is_loop(op) or COMPUTES in op.attributes:
            for operand in captured(op) if is_loop(op) else op.operands:
                last[root_of(operand)] = position
    for op in reversed([op for op in ops if is_loop(op)]):
        together = [*op.results, *[root_of(init) for init in list(op.operands)[3:]]]
        end = max((last[value] for value in together if value in last), default=0)
        last.update({value: max(end, last.get(value, 0)) for value in together})
    return last


def num_bytes(shapes: Shapes, value: ir.Value) -> Expr:
    """Return the bytes of a tensor in memory, dense; bool is one byte an element."""
    kind = ir.RankedTensorType(value.type).element_type
    width = max(1, int(getattr(kind, "width", 64)) // 8)
    return sympy.expand(sympy.Mul(*shapes.shape(value)) * width)
