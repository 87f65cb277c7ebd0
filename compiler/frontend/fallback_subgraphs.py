"""Ops that our table lacks, lowered by torch-mlir. Each becomes a separate function, called in place of the op and inlined at the end.

A fallback subgraph holds one op, which avoids torch-mlir's miscompilations of whole programs (mostly views of dynamic dims). One child
process lowers all fallback subgraphs of a program, because torch-mlir aborts its process on some ops.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

from llmos.compiler.frontend.dims import Shape
from llmos.compiler.ir.bindings import func, fx_importer, ir, tensor
from llmos.compiler.ir.functions import callee_of
from llmos.runtime.children import Children
from llmos.runtime.errors import UnsupportedError

_CHILDREN = Children("llmos.compiler.frontend.lowering")


@dataclass(frozen=True)
class FallbackSubgraph:
    """One op as a function `name(operands, dynamic sizes of the tensor operands) -> results`.

    `shapes` are the operands' shapes in the program: a size that is a symbol in export's metadata may be static here.
    """

    name: str
    node: fx.Node
    shapes: Mapping[fx.Node, Shape]


class FallbackSubgraphs:
    """The fallback subgraphs of one program."""

    def __init__(self) -> None:
        self._subgraphs: list[FallbackSubgraph] = []

    def add(self, node: fx.Node, shapes: Mapping[fx.Node, Shape]) -> FallbackSubgraph:
        """Add an op with its operands' shapes; return its subgraph. Raises UnsupportedError for an empty operand."""
        check_shapes(node)
        subgraph = FallbackSubgraph(f"fallback_{len(self._subgraphs)}_{str(node.target).replace('.', '_')}", node, shapes)
        self._subgraphs.append(subgraph)
        return subgraph

    @property
    def count(self) -> int:
        """Return the number of subgraphs so far."""
        return len(self._subgraphs)

    def try_last(self, context: ir.Context) -> None:
        """Lower the newest fallback subgraph alone and discard the result. Raises UnsupportedError if it can't be lowered."""
        _lowered(self._subgraphs[-1:], context)

    def inline_into(self, module: ir.Module) -> None:
        """Lower every fallback subgraph and inline it at its call in `module`. Raises UnsupportedError, naming the op."""
        if not self._subgraphs:
            return
        lowered = _lowered(self._subgraphs, module.context)
        calls, ops = _calls(module), {each.name: str(each.node.target) for each in self._subgraphs}
        for op in list(lowered.body.operations):
            if isinstance(op, func.FuncOp):
                _take_sizes_as_arguments(op)
                _inline(op, calls[op.name.value], ops[op.name.value])
            else:
                raise UnsupportedError(f"torch-mlir keeps state in {op.operation.name}, which compiled models can't")


def _lowered(fallback_subgraphs: Sequence[FallbackSubgraph], context: ir.Context) -> ir.Module:
    importer = fx_importer(context)
    for subgraph in fallback_subgraphs:
        try:
            function = importer.import_stateless_graph(_one_op_graph(subgraph), func_name=subgraph.name)
        except Exception as error:
            raise _unsupported(subgraph.node, str(error)) from None
        function.attributes["torch.assume_strict_symbolic_shapes"] = ir.UnitAttr.get(context)
    return lowered_in_child(importer.module, ", ".join(sorted({str(subgraph.node.target) for subgraph in fallback_subgraphs})))


def lowered_in_child(module: ir.Module, names: str) -> ir.Module:
    """Lower a module of torch ops in a child process. Raises UnsupportedError also if the process aborts; `names` says of which ops."""
    text = module.operation.get_asm(enable_debug_info=False)
    answer = _CHILDREN.ask(text.encode())
    if not (answer.failed or answer.fault):
        return ir.Module.parse(answer.output.decode(), module.context)
    detail = answer.said if answer.failed and answer.said else f"it ended its process: {answer.fault}"
    raise UnsupportedError(f"{names}: torch-mlir can't lower this ({detail}); `llmos check` lists every op of the model")


def _calls(module: ir.Module) -> dict[str, ir.Operation]:
    """Map each fallback subgraph's name to its one call."""
    found: dict[str, ir.Operation] = {}

    def visit(op: ir.Operation) -> ir.WalkResult:
        if op.name == "func.call":
            found[callee_of(op)] = op
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    return found


def _inline(subgraph: func.FuncOp, call: ir.Operation, name: str) -> None:
    """Move the ops of the fallback subgraph, made of the op `name`, before its one call. (MLIR's inliner doesn't inline tm_tensor ops.)"""
    block = subgraph.entry_block
    with ir.InsertionPoint(call):
        for argument, operand in zip(block.arguments, list(call.operands), strict=True):
            argument.replace_all_uses_with(_of_type(operand, argument.type))
        *body, end = list(block.operations)
        for op in body:
            op.operation.move_before(call)
        for result, value in zip(call.results, list(end.operation.operands), strict=True):
            if not _is_alike(value.type, result.type):
                raise UnsupportedError(f"{name}: torch-mlir gives {value.type} where torch gives {result.type}")
            result.replace_all_uses_with(_of_type(value, result.type))
    call.erase()


def _is_alike(a: ir.Type, b: ir.Type) -> bool:
    """Whether two tensor types have the same rank and element type, and no different static sizes."""
    a, b = ir.RankedTensorType(a), ir.RankedTensorType(b)
    if a.rank != b.rank or a.element_type != b.element_type:
        return False
    dims = [(a.get_dim_size(i), b.get_dim_size(i)) for i in range(a.rank) if not (a.is_dynamic_dim(i) or b.is_dynamic_dim(i))]
    return all(x == y for x, y in dims)


def _of_type(value: ir.Value, kind: ir.Type) -> ir.Value:
    """Cast to a type with other static sizes: ranges, unknown to torch-mlir, may make a size static (min(3, s) with s >= 5)."""
    return value if value.type == kind else tensor.CastOp(kind, value).result


def check_shapes(node: fx.Node) -> None:
    """Raise UnsupportedError for an empty operand, on which torch-mlir aborts for many ops."""
    for each in node.all_input_nodes:
        value = each.meta.get("val")
        if isinstance(value, torch.Tensor) and any(isinstance(size, int) and size == 0 for size in value.shape):
            raise UnsupportedError("an operand has no elements, which this op can't be compiled for")


def _one_op_graph(subgraph: FallbackSubgraph) -> fx.Graph:
    graph, node = fx.Graph(), subgraph.node
    copies = {}
    for each in node.all_input_nodes:
        copies[each] = graph.placeholder(each.name)
        copies[each].meta["val"] = _with_known_sizes(each.meta["val"], subgraph.shapes.get(each, ()))
    copy = graph.node_copy(node, lambda each: copies[each])
    val = node.meta["val"]
    if isinstance(val, torch.Tensor):
        graph.output((copy,))
        return graph
    items = []
    for index, each in enumerate(val):
        item = graph.call_function(operator.getitem, (copy, index))
        item.meta["val"] = each
        items.append(item)
    graph.output(tuple(items))
    return graph


def _with_known_sizes(val: Any, shape: Shape) -> Any:
    """Return a value's metadata with the program's static sizes, so that torch-mlir and the call agree on the dynamic ones."""
    if not isinstance(val, FakeTensor) or not any(isinstance(known, int) for known in shape):
        return val
    sizes = [known if isinstance(known, int) else size for known, size in zip(shape, val.shape, strict=True)]
    with val.fake_mode:
        return torch.empty(sizes, dtype=val.dtype)


def _take_sizes_as_arguments(function: func.FuncOp) -> None:
    """Append each tensor argument's dynamic sizes as index arguments, which replace tensor.dim."""
    if function.is_external:
        return
    block = function.entry_block
    with function.operation.context, ir.Location.unknown() as unknown:
        for argument in list(block.arguments):
            if not isinstance(argument.type, ir.RankedTensorType):
                continue
            for axis in (axis for axis in range(argument.type.rank) if argument.type.is_dynamic_dim(axis)):
                _replace_dim(argument, axis, block.add_argument(ir.IndexType.get(), unknown))


def _replace_dim(argument: ir.Value, axis: int, size: ir.Value) -> None:
    for use in list(argument.uses):
        op = use.owner
        if op.name != "tensor.dim":
            continue
        constant = op.operands[1].owner
        if ir.IntegerAttr(constant.attributes["value"]).value == axis:
            op.results[0].replace_all_uses_with(size)
            op.operation.erase()


def _unsupported(node: fx.Node, detail: str) -> UnsupportedError:
    from llmos.compiler.frontend.graph import source_line

    return UnsupportedError(
        f"{node.target}: torch-mlir can't import this ({(detail.splitlines() or ['no reason given'])[0]}){source_line(node)}"
    )
