"""form-dispatches: outline every group of ops that runs as one kernel."""

from __future__ import annotations

from dataclasses import dataclass

from llmos.compiler.ir import ir
from llmos.compiler.linalg import map_elements
from llmos.compiler.symbolic import Shapes, SymbolTable
from llmos.passes._clusters import cluster_all
from llmos.passes._graph import VIEWS, Graph, owner_of
from llmos.passes._outline import rebuild, schedule
from llmos.passes._pass import Pass
from llmos.passes.recognise_attention import GROUP


@dataclass(frozen=True)
class FormDispatches(Pass):
    """One root op (contraction, attention, reductions over a row) with its elementwise prologue and epilogue, or a chain of elementwise
    ops, becomes a private function; the public function keeps views, size arithmetic and calls.

    Before:
        %1 = linalg.generic {x W} ins(%x, %w)                       // (t, n) over k
        %2 = linalg.generic {addf} ins(%1, %bias)
        %3 = linalg.generic {max 0} ins(%2)
        return %3
    After:
        %1 = call @d0_contraction(%x, %w, %bias, %tokens) {llmos.shapes = [["tokens", 256]]}
        return %1
        func.func private @d0_contraction(...) attributes {llmos.dispatch = "contraction"} { the three generics }

    Cheap elementwise ops over one tensor (casts, transposes, broadcasts) and slices get no dispatch: they are cloned into each user.
    """

    prefix: str = "d"

    def run(self, module: ir.Module) -> None:
        table = SymbolTable.of(module)
        publics = [op.operation for op in module.body.operations if op.operation.name == "func.func" and not _is_private(op.operation)]
        for func in publics:
            copy_returned_arguments(func)
            graph = Graph(func, Shapes.of(func, table))
            cluster_all(graph, _attention_groups(graph))
            rebuild(graph, module, schedule(graph), self.prefix)


def _is_private(func: ir.Operation) -> bool:
    return "sym_visibility" in func.attributes


def _attention_groups(graph: Graph) -> list[list[ir.Operation]]:
    groups: dict[int, list[ir.Operation]] = {}
    for op in graph.ops:
        if GROUP in op.attributes:
            groups.setdefault(ir.IntegerAttr(op.attributes[GROUP]).value, []).append(op)
    return list(groups.values())


def copy_returned_arguments(func: ir.Operation) -> None:
    """An argument, or a value returned already, is copied before it is returned: each output has memory of its own."""
    terminator = list(func.regions[0].blocks[0].operations)[-1].operation
    returned: list[ir.Value] = []
    for i, value in enumerate(list(terminator.operands)):
        root = _root(value)
        if root in returned or isinstance(root.owner, ir.Block):
            with ir.InsertionPoint(terminator):
                terminator.operands[i] = map_elements(value, value.type.element_type, lambda each: each)
        else:
            returned.append(root)


def _root(value: ir.Value) -> ir.Value:
    owner = owner_of(value)
    return _root(owner.operands[0]) if owner is not None and owner.name in VIEWS else value
