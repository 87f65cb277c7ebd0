"""form-dispatches: outline every group of ops that runs as one kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llmos.compiler.analysis.generic import map_elements
from llmos.compiler.analysis.grouped_rows import GroupedRows, is_grouped_rows
from llmos.compiler.analysis.loops import is_loop, loops_in, root_of
from llmos.compiler.ir.attributes import ATTENTION, INDUCTION_VARIABLE, SCAN_OUTPUT, TILING, text_of
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import DispatchFunc, EntryFunc, dispatch_functions, public_functions
from llmos.compiler.ir.ops import VIEWS
from llmos.compiler.ir.shapes import Shapes
from llmos.compiler.ir.sizes import SymbolTable
from llmos.compiler.ir.tiling import Tiling
from llmos.passes._context import PassContext
from llmos.passes._contracts import DISPATCHED
from llmos.passes._fusion_groups import fuse_all
from llmos.passes._graph import Graph, owner_of
from llmos.passes._loops import name_loops
from llmos.passes._outline import rebuild, schedule
from llmos.passes._pass import Pass
from llmos.passes._property import NO_FRONTEND_OPS, ONLY_LINALG_GENERICS, TENSORS_ONLY, Property


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

    The body of an scf.for that counts to a size is taken apart in the same way: it becomes calls, between which its tensors are carried.
    Its induction variable is a symbol (llmos.induction_variables) that the dispatches inside may read.

    A depthwise convolution or a pool that alone reads what a contraction writes runs in its dispatch, a "contraction_window" one.

    What takes each row's own columns of a product by the matrices of several groups runs in its dispatch, a "grouped_contraction" one. Its
    tiling says the columns of a panel, which divide those of a group.

    Cheap elementwise ops over one tensor (casts, transposes, broadcasts) and slices get no dispatch: they are cloned into each user.
    """

    requires: ClassVar[frozenset[Property]] = frozenset({NO_FRONTEND_OPS, ONLY_LINALG_GENERICS, TENSORS_ONLY})
    ensures: ClassVar[frozenset[Property]] = frozenset({DISPATCHED})

    prefix: str = "d"

    def run(self, module: ir.Module, context: PassContext) -> None:
        """Form the dispatches of every public function, loops first. Raises UnsupportedError for a size that depends on data."""
        for func in public_functions(module):
            name_loops(module, func)
            materialise_empty(func)
            copy_returned_arguments(func)
            shapes = Shapes.of(func, SymbolTable.of(module))
            for loop in list(loops_in(func.regions[0].blocks[0])):  # first: what is cheap outside is cloned into them
                self._form(module, Graph(loop, shapes, context.costs), f"{text_of(loop.attributes, INDUCTION_VARIABLE)}_")
            self._form(module, Graph(func, shapes, context.costs), self.prefix)
        for dispatch in dispatch_functions(module):
            if DispatchFunc(dispatch).kind == "grouped_contraction":
                (rows,) = (GroupedRows(op) for op in DispatchFunc(dispatch).ops if is_grouped_rows(op))
                dispatch.attributes[TILING] = ir.StringAttr.get(str(Tiling(columns=context.costs.columns_of_groups(rows))))

    def _form(self, module: ir.Module, graph: Graph, prefix: str) -> None:
        fuse_all(graph, _attention_groups(graph))
        rebuild(graph, module, schedule(graph), prefix)


def _attention_groups(graph: Graph) -> list[list[ir.Operation]]:
    groups: dict[int, list[ir.Operation]] = {}
    for op in graph.ops:
        if ATTENTION in op.attributes:
            groups.setdefault(ir.IntegerAttr(op.attributes[ATTENTION]).value, []).append(op)
    return list(groups.values())


def materialise_empty(func: ir.Operation) -> None:
    """Copy a tensor of no elements, which folding leaves as a bare `tensor.empty`, where the host function itself takes it."""
    for op in [op.operation for op in func.regions[0].blocks[0].operations if op.operation.name == "tensor.empty"]:
        empty = op.results[0]
        uses = [use for use in empty.uses if use.owner.name in VIEWS or use.owner.name == "func.return"]
        if not uses:
            continue
        with ir.InsertionPoint.after(op):
            copy = map_elements(empty, empty.type.element_type, lambda each: each)
        for use in uses:
            use.owner.operands[use.operand_number] = copy


def copy_returned_arguments(func: ir.Operation) -> None:
    """Copy an argument, or a value returned already, before it is returned: each output has memory of its own.

    The new value of an updated input comes first: it lies where the input does, and is no copy of an output.
    """
    terminator = list(func.regions[0].blocks[0].operations)[-1].operation
    updated = EntryFunc(func).updated
    returned: list[ir.Value] = []
    for i in [*updated, *[i for i in range(len(terminator.operands)) if i not in updated]]:
        value = terminator.operands[i]
        root = root_of(value)
        if i in updated and root == func.regions[0].blocks[0].arguments[updated[i]]:
            continue  # nothing changes
        if root in returned or isinstance(root.owner, ir.Block) or _is_state(root):
            with ir.InsertionPoint(terminator):
                terminator.operands[i] = map_elements(value, value.type.element_type, lambda each: each)
        else:
            returned.append(root)


def _is_state(value: ir.Value) -> bool:
    """Whether a value is the last state of a loop, which lies where the last iteration left it."""
    owner = owner_of(value)
    if owner is None or not is_loop(owner):
        return False
    last = list(owner.regions[0].blocks[0].operations)[-1].operands[ir.OpResult(value).result_number].owner
    return isinstance(last, ir.Block) or SCAN_OUTPUT not in last.operation.attributes
