"""An ONNX graph as plain records, after parsing, version conversion and inlining of function bodies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import AttributeProto, numpy_helper

from llmos.compiler.frontend.onnx.loading import BODY_VERSION, plain_domain
from llmos.compiler.frontend.onnx.registry import OpFunction, find
from llmos.compiler.frontend.onnx.values import ConstantValue, constant_value
from llmos.runtime.errors import UnsupportedError, UserError


@dataclass(frozen=True)
class Node:
    """One op: `function` computes it from tensors, `on_host` (if any) from constant values."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    function: OpFunction
    on_host: OpFunction | None

    def __str__(self) -> str:
        return f"{self.op} '{self.name}'"


@dataclass(frozen=True)
class Graph:
    """Nodes in execution order, their constants, and the names of inputs and outputs."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, ConstantValue]


def parse_graph(proto: onnx.GraphProto, versions: Mapping[str, int], load: Any = numpy_helper.to_array) -> Graph:
    """Convert a graph whose ops all have functions to records. `load` reads one TensorProto into an array.

    Raises UnsupportedError for an op, an attribute or a sparse initializer that isn't supported, UserError for a missing attribute.
    """
    constants = {tensor.name: ConstantValue(array, array.dtype) for tensor in proto.initializer for array in (load(tensor),)}
    if proto.sparse_initializer:
        raise UnsupportedError("sparse initializers aren't supported; store those weights densely.")
    nodes = []
    for index, node in enumerate(proto.node):
        if node.op_type == "Constant" and not plain_domain(node.domain):
            constants[node.output[0]] = _constant(node)
            continue
        nodes.append(_parse_node(node, index, versions, load))
    inputs = tuple(value.name for value in proto.input if value.name not in constants)
    return Graph(inputs, tuple(value.name for value in proto.output), tuple(nodes), constants)


@dataclass(frozen=True)
class Problem:
    """A node that can't be compiled, and why."""

    op: str
    node: str
    reason: str


def find_problems(proto: onnx.GraphProto, versions: Mapping[str, int], load: Any = numpy_helper.to_array) -> list[Problem]:
    """Return all nodes of a graph and its subgraphs that can't be compiled."""
    found: list[Problem] = []
    for index, node in enumerate(proto.node):
        inner = [p for a in node.attribute if a.type == AttributeProto.GRAPH for p in find_problems(a.g, versions, load)]
        found += inner
        if inner or (node.op_type == "Constant" and not plain_domain(node.domain)):
            continue
        try:
            _parse_node(node, index, versions, load)
        except UserError as error:
            found.append(Problem(f"{node.domain}.{node.op_type}".lstrip("."), node_name(node, index), str(error)))
    return found


def node_name(node: onnx.NodeProto, index: int) -> str:
    """Return a node's name for messages: its name, else its first output, else its position."""
    return node.name or next((output for output in node.output if output), f"#{index}")


def _parse_node(node: onnx.NodeProto, index: int, versions: Mapping[str, int], load: Any) -> Node:
    domain = plain_domain(node.domain)
    version = _body_version(node) or versions.get(domain, 1)
    function = find(node.op_type, version, domain)
    name = node_name(node, index)
    if function is None:
        raise UnsupportedError(f"node '{name}': the op {domain + '.' if domain else ''}{node.op_type} isn't supported.")
    attributes = {a.name: _attribute(a, versions, load) for a in node.attribute if a.type != AttributeProto.UNDEFINED}
    _check_signature(f"{node.op_type} '{name}'", function, node, attributes)
    outputs = tuple(node.output)
    return Node(node.op_type, name, tuple(node.input), outputs, attributes, function, find(node.op_type, version, domain, on_host=True))


def _body_version(node: onnx.NodeProto) -> int | None:
    """Return the opset version of the function body that a node comes from, or None."""
    return next((int(item.value) for item in node.metadata_props if item.key == BODY_VERSION), None)


def _check_signature(place: str, function: OpFunction, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> None:
    unknown = sorted(set(attributes) - function.attributes)
    if unknown:
        raise UnsupportedError(f"node {place}: attribute {unknown[0]}={attributes[unknown[0]]!r} isn't supported.")
    missing = sorted(function.required_attributes - set(attributes))
    if missing:
        raise UserError(f"node {place} lacks its attribute '{missing[0]}'; check the model with onnx.checker.")
    if len(node.input) < function.num_required or (function.variadic is None and len(node.input) > len(function.inputs)):
        raise UnsupportedError(f"node {place}: {len(node.input)} inputs aren't supported.")


def _attribute(attribute: AttributeProto, versions: Mapping[str, int], load: Any) -> Any:
    if attribute.type == AttributeProto.GRAPH:
        return parse_graph(attribute.g, versions, load)
    if attribute.type == AttributeProto.TENSOR:
        return constant_value(load(attribute.t))
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if attribute.type == AttributeProto.STRINGS:
        return tuple(item.decode() for item in value)
    return tuple(value) if attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS) else value


def _constant(node: onnx.NodeProto) -> ConstantValue:
    attribute = node.attribute[0]
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        array = numpy_helper.to_array(value)
        return ConstantValue(array, array.dtype)
    if attribute.name in ("value_int", "value_ints"):
        return constant_value(value, "int64")
    if attribute.name in ("value_float", "value_floats"):
        return constant_value(value, "float32")
    raise UnsupportedError(f"node '{node.name or node.output[0]}': a Constant given as {attribute.name} isn't supported.")
