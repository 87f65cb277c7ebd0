"""Ops that our table lacks, lowered by torch-mlir: each is a function of its own, called where the op stands and inlined at the end.

An island sees one op, so what torch-mlir does wrongly with whole programs (views of dynamic dims above all) can't reach it, and the text of the
islands is all that has to cross into a child process should torch-mlir abort.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from llmos.compiler.ir import PassManager, func, fx_importer, ir
from llmos.runtime.errors import UnsupportedError

TO_BACKEND = "builtin.module(func.func(torch-match-quantized-custom-ops),torchdynamo-export-to-torch-backend-pipeline{extra-library=})"
TO_LINALG = (
    "builtin.module("
    "torch-backend-to-linalg-on-tensors-backend-pipeline{allow-non-finites=true},"
    "func.func(canonicalize,resolve-ranked-shaped-type-result-dims,canonicalize,cse))"
)
_VIEWS = ("torch.aten.view", "torch.aten.reshape", "torch.aten._unsafe_view", "torch.aten._reshape_alias")


@dataclass(frozen=True)
class Island:
    """One op as a function `name(operands) -> results`; a tensor operand is followed by its dynamic sizes."""

    name: str
    node: fx.Node


class Islands:
    """The islands of one program."""

    def __init__(self) -> None:
        self._islands: list[Island] = []

    def add(self, node: fx.Node, operands: Sequence[Sequence[ir.Value]]) -> Island:
        check_shapes(node)
        island = Island(f"island_{len(self._islands)}_{str(node.target).replace('.', '_')}", node)
        self._islands.append(island)
        return island

    def inline_into(self, module: ir.Module) -> None:
        """Lower every island and inline it at its calls in `module`. Public until then: torch-mlir's pipeline drops private functions."""
        if not self._islands:
            return
        lowered = self._lowered(module.context)
        for op in list(lowered.body.operations):
            if isinstance(op, func.FuncOp):
                _take_sizes_as_arguments(op)
            copy = op.operation.clone()
            copy.attributes["sym_visibility"] = ir.StringAttr.get("private", module.context)
            module.body.append(copy)
        PassManager.parse("builtin.module(inline,symbol-dce)", module.context).run(module.operation)

    def _lowered(self, context: ir.Context) -> ir.Module:
        importer = fx_importer(context)
        for island in self._islands:
            try:
                function = importer.import_stateless_graph(_one_op_graph(island.node), func_name=island.name)
            except (NotImplementedError, AssertionError, RuntimeError, TypeError, KeyError) as error:
                raise _unsupported(island.node, str(error)) from None
            function.attributes["torch.assume_strict_symbolic_shapes"] = ir.UnitAttr.get(context)
        module: ir.Module = importer.module
        self._run(module, TO_BACKEND)
        self._reject_dynamic_views(module)
        self._run(module, TO_LINALG)
        return module

    def _run(self, module: ir.Module, pipeline: str) -> None:
        errors: list[str] = []
        try:
            handler = module.context.attach_diagnostic_handler(lambda d: errors.append(str(d.message)) is None)
            PassManager.parse(pipeline, module.context).run(module.operation)
            handler.detach()
        except ir.MLIRError as error:
            detail = (errors or [str(error)])[0].splitlines()[0]
            names = ", ".join(sorted({str(island.node.target) for island in self._islands}))
            raise UnsupportedError(f"{names}: torch-mlir can't lower this ({detail}); `llmos check` lists every op of the model") from None

    def _reject_dynamic_views(self, module: ir.Module) -> None:
        """torch-mlir lowers a view of two dynamic dims wrongly and in silence, so none may be left for it."""
        bad: list[str] = []

        def visit(op: ir.Operation) -> ir.WalkResult:
            if op.name in _VIEWS and any("?" in str(value.type).split("]")[0] for value in (op.operands[0], op.results[0])):
                bad.append(f"{op.name}: {op.operands[0].type} to {op.results[0].type}")
            return ir.WalkResult.ADVANCE

        module.operation.walk(visit)
        if bad:
            raise UnsupportedError(f"an op decomposes to a reshape of dynamic sizes that can't be lowered safely ({bad[0]}); give it static sizes")


def check_shapes(node: fx.Node) -> None:
    """Guard what is known to abort torch-mlir's process: operands of no elements, and rank 0 where a dimension is needed."""
    for each in node.all_input_nodes:
        value = each.meta.get("val")
        if isinstance(value, torch.Tensor) and any(isinstance(size, int) and size == 0 for size in value.shape):
            raise UnsupportedError("an operand has no elements, which this op can't be compiled for")


def _one_op_graph(node: fx.Node) -> fx.Graph:
    graph = fx.Graph()
    copies = {}
    for each in node.all_input_nodes:
        copies[each] = graph.placeholder(each.name)
        copies[each].meta["val"] = each.meta["val"]
    copy = graph.node_copy(node, lambda each: copies[each])
    val = node.meta["val"]
    if isinstance(val, torch.Tensor):
        graph.output((copy,))
        return graph
    items = []
    for index, each in enumerate(val):
        item = graph.call_function(_getitem(), (copy, index))
        item.meta["val"] = each
        items.append(item)
    graph.output(tuple(items))
    return graph


def _getitem() -> object:
    import operator

    return operator.getitem


def _take_sizes_as_arguments(function: func.FuncOp) -> None:
    """Give each tensor argument's dynamic sizes as index arguments after it, in place of tensor.dim."""
    if function.is_external:
        return
    block, position = function.entry_block, 0
    index = ir.IndexType.get(function.operation.context)
    with function.operation.context, ir.Location.unknown():
        while position < len(block.arguments):
            argument = block.arguments[position]
            kind, position = argument.type, position + 1
            if not isinstance(kind, ir.RankedTensorType):
                continue
            for axis in (axis for axis in range(kind.rank) if kind.is_dynamic_dim(axis)):
                size = block.insert_argument(position, index, ir.Location.unknown())
                _replace_dim(argument, axis, size)
                position += 1
        old = ir.FunctionType(function.type)
        new = ir.FunctionType.get([argument.type for argument in block.arguments], old.results)
        function.attributes["function_type"] = ir.TypeAttr.get(new)
        for name in ("torch.assume_strict_symbolic_shapes",):
            if name in function.attributes:
                del function.attributes[name]


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

    return UnsupportedError(f"{node.target}: torch-mlir can't import this ({detail.splitlines()[0]}){source_line(node)}")
