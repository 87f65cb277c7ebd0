"""Extract one call of an exported graph as a program that reproduces the failure of its lowering, without the model's weights."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, OutputKind, OutputSpec, TensorArgument
from torch.utils import _pytree as pytree


def one_op_program(call: fx.Node) -> ExportedProgram:
    """Return a program of the call with its tensors as inputs, after the graph's other inputs, from which sizes are read."""
    graph, copies = fx.Graph(), {}
    scalars = [each for each in call.graph.nodes if each in set(_scalars(call))]
    tensors = [each for each in call.graph.nodes if _is_tensor(each) and (_gives_sizes(each) or _feeds(each, [call, *scalars]))]
    for each in tensors:
        copies[each] = graph.placeholder(each.name)
        copies[each].meta = {"val": each.meta["val"]}
    for each in [*scalars, call]:
        copies[each] = graph.node_copy(each, copies.__getitem__)
    outputs = _outputs(graph, copies[call])
    graph.output(tuple(outputs))
    return _program(graph, [copies[each] for each in tensors], outputs)


def _scalars(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the sizes and numbers that a call needs, and what they are computed from."""
    for each in node.all_input_nodes:
        if each.op == "call_function" and not _is_tensor(each):
            yield each
            yield from _scalars(each)


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _gives_sizes(node: fx.Node) -> bool:
    return node.op == "placeholder" and any(isinstance(size, torch.SymInt) for size in node.meta["val"].shape)


def _feeds(node: fx.Node, calls: Sequence[fx.Node]) -> bool:
    return any(user in calls for user in node.users)


def _outputs(graph: fx.Graph, call: fx.Node) -> list[fx.Node]:
    val = call.meta["val"]
    if isinstance(val, torch.Tensor):
        return [call]
    items = []
    for place, each in enumerate(val):
        if isinstance(each, torch.Tensor):
            items.append(graph.call_function(operator.getitem, (call, place)))
            items[-1].meta["val"] = each
    return items


def _program(graph: fx.Graph, inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]) -> ExportedProgram:
    signature = ExportGraphSignature(
        [InputSpec(InputKind.USER_INPUT, TensorArgument(each.name), None) for each in inputs],
        [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(each.name), None) for each in outputs],
    )
    _, in_spec = pytree.tree_flatten((tuple(inputs), {}))
    _, out_spec = pytree.tree_flatten(tuple(outputs))
    whole = ModuleCallSignature([], [], in_spec, out_spec, [each.name for each in inputs])
    return ExportedProgram(
        root=torch.nn.Module(),
        graph=graph,
        graph_signature=signature,
        state_dict={},
        range_constraints=_ranges([each.meta["val"] for each in inputs]),
        module_call_graph=[ModuleCallEntry("", whole)],
        example_inputs=None,
        constants={},
    )


def _ranges(values: Sequence[Any]) -> dict[Any, Any]:
    nodes = [size.node for value in values for size in value.shape if isinstance(size, torch.SymInt)]
    return {symbol: node.shape_env.var_to_range[symbol] for node in nodes for symbol in node.expr.free_symbols}
