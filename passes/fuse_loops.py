"""fuse-loops: one loop of loops that have the same trip count and don't need one another."""

from __future__ import annotations

from dataclasses import dataclass

from llmos.compiler.analysis.loops import loops_in
from llmos.compiler.ir.attributes import INDUCTION_VARIABLE, INDUCTION_VARIABLES, items, text_of
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import public_functions
from llmos.compiler.ir.shapes import Shapes
from llmos.compiler.ir.sizes import SymbolTable
from llmos.passes._context import PassContext
from llmos.passes._graph import captured, owner_of
from llmos.passes._loops import name_loops
from llmos.passes._pass import Pass


@dataclass(frozen=True)
class FuseLoops(Pass):
    """The directions of a recurrent layer become independent parts of one loop, which can run side by side.

    Before:
        %1 = scf.for %i = 0 to %n iter_args(%h = %a) { forward }
        %2 = scf.for %i = 0 to %n iter_args(%h = %b) { backward }
    After:
        %1:2 = scf.for %i = 0 to %n iter_args(%h = %a, %g = %b) { forward; backward }

    Only loops that can run as dispatches are fused (passes/_loops.py).
    """

    def run(self, module: ir.Module, context: PassContext) -> None:
        """Fuse the loops of every public function that can run as dispatches."""
        for func in public_functions(module):
            name_loops(module, func)
            _fuse_all(func, SymbolTable.of(module))
        _drop_induction_variables(module)


def _fuse_all(func: ir.Operation, table: SymbolTable) -> None:
    shapes = Shapes.of(func, table)
    block = func.regions[0].blocks[0]
    loops = list(loops_in(block))
    while loops:
        first = loops.pop(0)
        for other in list(loops):
            order = {op.operation: i for i, op in enumerate(block.operations)}
            needed = _needed(other, order, order[first])
            if shapes.index(first.operands[1]) == shapes.index(other.operands[1]) and first not in needed:
                loops.remove(other)
                for op in sorted(needed, key=lambda op: order[op]):
                    op.move_before(first)
                first = _fused(first, other)
                shapes = Shapes.of(func, table)


def _needed(op: ir.Operation, order: dict[ir.Operation, int], after: int) -> set[ir.Operation]:
    """The ops from place `after` on that an op needs."""
    found: set[ir.Operation] = set()
    pending = [op]
    while pending:
        for value in captured(pending.pop()):
            owner = owner_of(value)
            if owner is not None and order[owner] >= after and owner not in found:
                found.add(owner)
                pending.append(owner)
    return found


def _fused(first: ir.Operation, second: ir.Operation) -> ir.Operation:
    """One loop in the place of the first, which takes the bodies of both."""
    inits = [*list(first.operands)[3:], *list(second.operands)[3:]]
    with ir.InsertionPoint(first):
        made = ir.Operation.create(
            "scf.for",
            results=[value.type for value in inits],
            operands=[*list(first.operands)[:3], *inits],
            attributes={INDUCTION_VARIABLE: first.attributes[INDUCTION_VARIABLE]},
            regions=1,
        )
    block = made.regions[0].blocks.append(ir.IndexType.get(), *[value.type for value in inits])
    carried, results, yielded = list(block.arguments)[1:], list(made.results), []
    for loop in (first, second):
        body = loop.regions[0].blocks[0]
        induction_variable, *own = body.arguments
        induction_variable.replace_all_uses_with(block.arguments[0])
        for old, new in zip([*own, *loop.results], [*carried[: len(own)], *results[: len(own)]], strict=True):
            old.replace_all_uses_with(new)
        carried, results = carried[len(own) :], results[len(own) :]
        *ops, last = [op.operation for op in body.operations]
        yielded += list(last.operands)
        for op in ops:
            block.append(op)
    with ir.InsertionPoint(block):
        ir.Operation.create("scf.yield", operands=yielded)
    second.erase()
    first.erase()
    return made


def _drop_induction_variables(module: ir.Module) -> None:
    """Those of loops that are part of another now."""
    if INDUCTION_VARIABLES not in module.operation.attributes:
        return
    used = {
        text_of(loop.attributes, INDUCTION_VARIABLE)
        for op in module.body.operations
        for loop in loops_in(op.operation.regions[0].blocks[0])
    }
    known = items(module.operation.attributes[INDUCTION_VARIABLES])
    module.operation.attributes[INDUCTION_VARIABLES] = ir.DictAttr.get({name: bounds for name, bounds in known.items() if name in used})
