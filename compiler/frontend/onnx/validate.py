"""Validation of graphs: each value is defined once, and before its use (ONNX IR specification)."""

from __future__ import annotations

from collections.abc import Collection

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto

from llmos.runtime.errors import UserError


def check_model(proto: ModelProto) -> None:
    """Check the main graph and the bodies of the model's functions by `check_graph`."""
    check_graph(proto.graph)
    for function in proto.functions:
        inputs, outputs = ([ValueInfoProto(name=name) for name in names] for names in (function.input, function.output))
        check_graph(GraphProto(name=function.name, node=function.node, input=inputs, output=outputs))


def check_graph(graph: GraphProto, outer: Collection[str] = ()) -> None:
    """Raise UserError that names the invalid node or value. `outer`: values of the enclosing graphs, which a branch or body may read."""
    inputs, weights = [each.name for each in graph.input], [each.name for each in graph.initializer]
    _check_unique("inputs", inputs)
    _check_unique("initializers", weights)
    _check_unique("outputs", [each.name for each in graph.output])
    known = {*outer, *inputs, *weights, *(each.values.name for each in graph.sparse_initializer)}
    made = {name for node in graph.node for name in node.output if name}
    own = {*inputs, *weights}
    for node in graph.node:
        for name in filter(None, node.input):
            if name not in known:
                raise UserError(f"{_place(node)} reads '{name}', {_why(name, made)}.")
        for attribute in node.attribute:
            for inner in _graphs(attribute):
                check_graph(inner, known)
        for name in filter(None, node.output):
            if name in own:
                raise UserError(f"{_place(node)} makes '{name}', which is there already: values need names of their own.")
            own.add(name)
        known |= set(node.output)
    for output in graph.output:
        if output.name not in known:
            raise UserError(f"output '{output.name}' of graph '{graph.name}' is made by no node.")


def _why(name: str, made: Collection[str]) -> str:
    if name in made:
        return "which this node or a later one makes: the graph has a cycle, or its nodes are not in order"
    return "which is neither an input, an initializer nor the output of a node: a weight may have been lost when the model was saved"


def _graphs(attribute: AttributeProto) -> list[GraphProto]:
    return [attribute.g] if attribute.type == AttributeProto.GRAPH else list(attribute.graphs)


def _check_unique(what: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise UserError(f"two {what} have the name '{twice[0]}': each needs its own.")


def _place(node: NodeProto) -> str:
    return f"node '{node.name or (node.output[0] if node.output else '')}' ({node.op_type})"
