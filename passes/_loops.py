"""Which scf.for ops run as dispatches, and what is put in order in them before their dispatches are formed."""

from __future__ import annotations

from collections.abc import Sequence

from llmos.compiler.analysis.generic import map_elements
from llmos.compiler.analysis.loops import Loop, is_loop, root_of
from llmos.compiler.ir.attributes import INDUCTION_VARIABLE, INDUCTION_VARIABLES, SCAN_OUTPUT, ranges_attribute
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.shapes import Shapes, slice_parameters
from llmos.compiler.ir.sizes import Expr, SymbolTable
from llmos.passes._graph import is_tensor, owner_of

MAX_TRIP_COUNT = 1 << 31


def name_loops(module: ir.Module, func: ir.Operation) -> None:
    """Give the induction variable of each loop of a function that can run as dispatches a name; the others stay ops of the fallback."""
    for op in list(func.regions[0].blocks[0].operations):
        if op.operation.name != "scf.for" or is_loop(op.operation) or _writes_elements(op.operation):
            continue
        shapes = Shapes.of(func, SymbolTable.of(module))
        if not _counts_to_a_size(op.operation, shapes):
            continue
        _name(module, op.operation, shapes)
        table = SymbolTable.of(module)
        loop = Loop(op.operation, Shapes.of(func, table))
        if _is_accepted(loop, table):
            _order_yields(loop)
        else:
            _mark_scan_outputs(loop, False)
            del op.operation.attributes[INDUCTION_VARIABLE]


def _writes_elements(op: ir.Operation) -> bool:
    """Whether single elements of tensors are written somewhere inside: a dispatch of such a body would copy the tensors each time."""
    bodies = [inner.operation for region in op.regions for block in region.blocks for inner in block.operations]
    return any(inner.name == "tensor.insert" or _writes_elements(inner) for inner in bodies)


def _counts_to_a_size(op: ir.Operation, shapes: Shapes) -> bool:
    low, high, step = (shapes.index(v) if shapes.has_index(v) else None for v in list(op.operands)[:3])
    return low == 0 and high is not None and step == 1 and len(op.results) > 0


def _name(module: ir.Module, op: ir.Operation, shapes: Shapes) -> None:
    """INDUCTION_VARIABLES of the module gets one more."""
    table = shapes.table
    taken = {symbol.name for symbol in table.names}
    name = next(name for i in range(len(taken) + 1) if (name := f"step{i}") not in taken)
    high = table.bounds(shapes.index(op.operands[1]))[1]
    last = max(int(high) - 1, 0) if high.is_Integer else MAX_TRIP_COUNT
    known = {symbol.name: (symbol.min, symbol.max) for symbol in table.induction_variables}
    module.operation.attributes[INDUCTION_VARIABLES] = ranges_attribute({**known, name: (0, last)})
    op.attributes[INDUCTION_VARIABLE] = ir.StringAttr.get(name)


def _is_accepted(loop: Loop, table: SymbolTable) -> bool:
    """Whether every size in a loop is known outside it, and every carried tensor is a state or a scan output."""
    induction_variables = {symbol.expr for symbol in table.induction_variables}
    inner = [*loop.carried, *[result for op in loop.ops for result in op.results]]
    if not all(_is_known(loop.shapes, value, induction_variables) for value in inner):
        return False
    _mark_scan_outputs(loop, True)
    return all(position in loop.scan_outputs or _is_state(loop, position, value) for position, value in enumerate(loop.yielded))


def _is_known(shapes: Shapes, value: ir.Value, induction_variables: set[Expr]) -> bool:
    if not is_tensor(value):
        owner = owner_of(value)
        return shapes.has_index(value) or (owner is not None and owner.name == "arith.constant")
    known = shapes._shapes.get(value)
    return known is not None and not any(size.free_symbols & induction_variables for size in known)


def _is_state(loop: Loop, position: int, value: ir.Value) -> bool:
    """A tensor that has a value before the first iteration, and that no insert_slice of the body writes a part of."""
    init = owner_of(root_of(loop.inits[position]))
    return is_tensor(value) and (init is None or init.name != "tensor.empty")


def _mark_scan_outputs(loop: Loop, wanted: bool) -> None:
    for op in loop.ops:
        if op.name != "tensor.insert_slice":
            continue
        if wanted and _is_scan_output(loop, op):
            op.attributes[SCAN_OUTPUT] = ir.UnitAttr.get()
        elif SCAN_OUTPUT in op.attributes:
            del op.attributes[SCAN_OUTPUT]


def _is_scan_output(loop: Loop, insert: ir.Operation) -> bool:
    """One whole slice along the first dim, into a carried tensor that is read nowhere and that the iterations write entirely."""
    into, result = insert.operands[1], insert.results[0]
    if into not in loop.carried or len(list(into.uses)) != 1 or len(list(result.uses)) != 1:
        return False
    position = loop.carried.index(into)
    if loop.yielded[position] != result:
        return False
    offsets, sizes, strides = slice_parameters(loop.shapes, insert, 2)
    shape, induction_variable = loop.shapes.shape(into), loop.shapes.index(loop.induction_variable)
    if offsets is None or sizes is None or strides is None or any(step != 1 for step in strides):
        return False
    inner_whole = tuple(sizes[1:]) == tuple(shape[1:]) and all(offset == 0 for offset in offsets[1:])
    each_once = (offsets[0] - induction_variable).expand() == 0 or (offsets[0] + induction_variable - loop.trip_count + 1).expand() == 0
    return sizes[0] == 1 and inner_whole and each_once and (shape[0] - loop.trip_count).expand() == 0


def _order_yields(loop: Loop) -> None:
    """Each iteration makes each state and each slice anew, in memory of its own: what it only passes on is copied."""
    placed: list[ir.Value] = []
    for stacked in loop.scan_outputs.values():
        placed.append(_made_here(loop, stacked.insert, 0, placed))
    for position in loop.states:
        value = loop.ops[-1].operands[position]
        if root_of(value) == loop.carried[position]:
            continue
        if root_of(value) in [root_of(loop.scan_outputs[p].insert.operands[0]) for p in loop.scan_outputs]:
            continue  # the state is the slice that was just written
        placed.append(_made_here(loop, loop.ops[-1], position, placed))


def _made_here(loop: Loop, user: ir.Operation, number: int, placed: Sequence[ir.Value]) -> ir.Value:
    value = user.operands[number]
    root = root_of(value)
    owner = owner_of(root)
    if owner is None or owner.block != loop.block or root in placed:
        with ir.InsertionPoint(user):
            user.operands[number] = root = map_elements(value, value.type.element_type, lambda each: each)
    return root
