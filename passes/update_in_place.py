"""update-in-place: let dispatches write the new value of an updated input where the input lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from llmos.compiler.analysis.loops import is_loop, root_of
from llmos.compiler.analysis.scatters import scatter_of
from llmos.compiler.ir.attributes import DISPATCH, IN_PLACE, WITHIN, integer
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import EntryFunc, callee_of, functions_of, public_functions
from llmos.compiler.ir.ops import VIEWS
from llmos.compiler.ir.shapes import Shapes, slice_parameters
from llmos.compiler.ir.sizes import SymbolTable
from llmos.passes._context import PassContext
from llmos.passes._contracts import DISPATCHED, IN_PLACE_WITHIN, UNPLACED
from llmos.passes._graph import captured, is_tensor
from llmos.passes._pass import Pass
from llmos.passes._property import Property


@dataclass(frozen=True)
class UpdateInPlace(Pass):
    """A dispatch whose result becomes an input's new value writes into the input, if nothing reads the old value from then on. A scatter
    into the old value, or a slice of it that is inserted, then writes what it changes, and nothing else.

    Before:
        func.func @main(%cache {llmos.name = "cache"}, %row, %at) -> (tensor<8x4xf32> {llmos.updates = "cache"}) {
          %1 = call @d0_scatter(%cache, %at, %row)
          return %1
        }
        func.func private @d0_scatter(...) attributes {llmos.dispatch = "scatter"}
    After:
          %1 = call @d0_scatter(%cache, %at, %row) {llmos.within = 0}                                   // lies in the memory of argument 0
        func.func private @d0_scatter(...) attributes {llmos.dispatch = "scatter", llmos.in_place = 0}  // so its operand 0 is in place

    A dispatch that stands before the last reader of the old value is moved behind it, where nobody needs its result earlier. Where that
    can't be, the new value is made elsewhere, and the host function copies it at the end.
    """

    requires: ClassVar[frozenset[Property]] = frozenset({DISPATCHED, UNPLACED})
    ensures: ClassVar[frozenset[Property]] = frozenset({DISPATCHED, IN_PLACE_WITHIN})

    def run(self, module: ir.Module, context: PassContext) -> None:
        """Set WITHIN of the calls whose results lie in the inputs that they update, and IN_PLACE of their dispatches."""
        functions = functions_of(module)
        for func in public_functions(module):
            for number, argument in EntryFunc(func).updated.items():
                _Update(func, functions, SymbolTable.of(module), number, argument).place()


@dataclass
class _Update:
    """One input of a public function and the result that is its new value."""

    func: ir.Operation
    functions: Mapping[str, ir.Operation]
    table: SymbolTable
    number: int
    argument: int

    def place(self) -> None:
        held = self.func.regions[0].blocks[0].arguments[self.argument]  # what lies in the input's memory
        returned = [root_of(value) for value in self._ops()[-1].operands]
        for call, operand in self._writers(returned[self.number]):
            result = call.results[0]
            is_output = result in returned and returned.index(result) != self.number
            in_place = operand is not None and root_of(call.operands[operand]) == held
            if is_output or (not in_place and _reads(call, self._aliases(held))) or not self._is_last(call, held):
                continue
            call.attributes[WITHIN] = integer(self.argument)
            if operand is not None and in_place:
                callee = self._callee(call)
                callee.attributes[IN_PLACE] = integer(operand)
                if _returned(callee).name == "tensor.insert_slice":
                    callee.attributes[DISPATCH] = ir.StringAttr.get("insert")
            held = result

    def _ops(self) -> list[ir.Operation]:
        return [op.operation for op in self.func.regions[0].blocks[0].operations]

    def _callee(self, call: ir.Operation) -> ir.Operation:
        return self.functions[callee_of(call)]

    def _writers(self, value: ir.Value) -> list[tuple[ir.Operation, int | None]]:
        """The dispatches that make a value out of one another's results, the first one first; with the operand that each writes into."""
        owner = value.owner
        if isinstance(owner, ir.Block) or owner.name != "func.call" or len(owner.operation.results) != 1:
            return []
        call = owner.operation
        operand = self._written_operand(call)
        before = [] if operand is None else self._writers(root_of(call.operands[operand]))
        return [*before, (call, operand)]

    def _written_operand(self, call: ir.Operation) -> int | None:
        """The operand of which a dispatch is a copy but for what it writes; None where there is none that could be in place."""
        callee = self._callee(call)
        arguments, base = list(callee.regions[0].blocks[0].arguments), _base(callee, self.table)
        if base is None or base not in arguments or sum(1 for _ in base.uses) != 1:
            return None
        operand = arguments.index(base)
        alone = sum(1 for each in call.operands if root_of(each) == root_of(call.operands[operand])) == 1
        return operand if alone and self._is_called_once(call) else None

    def _is_called_once(self, call: ir.Operation) -> bool:
        name = callee_of(call)
        calls = [op for op in self._ops() if op.name == "func.call" and callee_of(op) == name]
        return calls == [call]

    # -- who reads what lies in the input's memory
    def _aliases(self, value: ir.Value) -> set[ir.Value]:
        """The value, and results of loops that may lie where it does because they began with it."""
        same = {value}
        for op in self._ops():
            if is_loop(op) and any(root_of(init) in same for init in list(op.operands)[3:]):
                same.update(op.results)
        return same

    def _is_last(self, call: ir.Operation, value: ir.Value) -> bool:
        """Whether nothing behind a call reads a value; the call is moved behind the last reader where that makes it so."""
        ops, same = self._ops(), self._aliases(value)
        readers = [op for op in ops[:-1] if op != call and op.name not in VIEWS and _reads(op, same)]
        last = max((ops.index(op) for op in readers), default=-1)
        if last < ops.index(call):
            return True
        if min(ops.index(op) for op in self._users(call.results[0])) <= last:
            return False
        self._move_behind(call, ops[last])
        return True

    def _users(self, value: ir.Value) -> list[ir.Operation]:
        """The ops of the function's block that use a value or a view of it, the views left out."""
        users = [op for op in self._ops() if any(each == value for each in captured(op))]
        views = [op for op in users if op.name in VIEWS]
        return [op for op in users if op not in views] + [user for view in views for user in self._users(view.results[0])]

    def _move_behind(self, call: ir.Operation, place: ir.Operation) -> None:
        """The call, and the views of its result that stand before the place."""
        following = [op for op in self._ops() if op.name in VIEWS and root_of(op.results[0]) == call.results[0]]
        for op in [call, *following]:
            op.move_after(place)
            place = op


def _reads(op: ir.Operation, values: set[ir.Value]) -> bool:
    """Whether an op reads one of some values, or a view of one."""
    return any(root_of(each) in values for each in captured(op) if is_tensor(each))


def _returned(callee: ir.Operation) -> ir.Operation | ir.Block:
    """What makes the one result of a dispatch."""
    owner = list(callee.regions[0].blocks[0].operations)[-1].operands[0].owner
    return owner if isinstance(owner, ir.Block) else owner.operation


def _base(callee: ir.Operation, table: SymbolTable) -> ir.Value | None:
    """The tensor that a scatter, or an inserted slice that lies inside at all sizes, changes a part of; None for other dispatches."""
    op = _returned(callee)
    if isinstance(op, ir.Block):
        return None
    if op.name == "tensor.insert_slice":
        return op.operands[1] if _lies_inside(op, Shapes.of(callee, table)) else None
    scatter = scatter_of(op)
    return scatter.base if scatter is not None else None


def _lies_inside(insert: ir.Operation, shapes: Shapes) -> bool:
    offsets, sizes, steps = slice_parameters(shapes, insert, 2)
    if offsets is None or sizes is None or steps is None or any(step != 1 for step in steps):
        return False
    room = [whole - offset - size for whole, offset, size in zip(shapes.shape(insert.results[0]), offsets, sizes, strict=True)]
    return all(shapes.table.bounds(shapes.table.simplify(each))[0] >= 0 for each in (*room, *offsets))
