"""Function bodies: inline ops that have no torch function by their definition in ONNX or in the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import onnx
import onnx.inliner
from onnx import AttributeProto, FunctionProto, NodeProto, defs

from llmos.compiler.frontend.onnx.loading import BODY_VERSION, LoadedModel, plain_domain
from llmos.compiler.frontend.onnx.registry import find

# A body may use ops that have bodies; ONNX's own nest three deep.
MAX_DEPTH = 5


def expand_functions(model: LoadedModel) -> LoadedModel:
    """Inline the functions that the model defines, and the ops that lack a torch function."""
    proto = onnx.inliner.inline_local_functions(model.proto) if model.proto.functions else model.proto
    for depth in range(MAX_DEPTH):
        current = replace(model, proto=proto)
        if not any(_body_of(node, current.versions, {}) or _is_contextual(node, current.versions) for node in _all_nodes(proto.graph)):
            return current
        proto = _expand_once(current, f"body{depth}")
    return replace(model, proto=proto)


def _all_nodes(graph: onnx.GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _all_nodes(attribute.g)


def _expand_once(model: LoadedModel, prefix: str) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    types = _types(proto.graph)
    _expand_graph(proto.graph, model.versions, types, prefix)
    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception:
        return proto


def _expand_graph(graph: onnx.GraphProto, versions: Mapping[str, int], types: Mapping[str, bytes], prefix: str) -> None:
    nodes: list[NodeProto] = []
    for index, node in enumerate(graph.node):
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                _expand_graph(attribute.g, versions, {**types, **_types(attribute.g)}, f"{prefix}_{index}_{attribute.name}")
        body = _body_of(node, versions, types)
        made = body is not None and _Instance(node, body, f"{prefix}_{index}_{node.op_type}_", _defaults(node, versions)).nodes()
        nodes += made or [node]
    del graph.node[:]
    graph.node.extend(nodes)


def _types(graph: onnx.GraphProto) -> dict[str, bytes]:
    """Return the serialized types of values, which a context-dependent body depends on."""
    found = {value.name: value.type.SerializeToString() for value in (*graph.input, *graph.value_info, *graph.output)}
    for tensor in graph.initializer:
        found[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims)).SerializeToString()
    return found


def _schema(node: NodeProto, versions: Mapping[str, int]) -> tuple[defs.OpSchema, int] | None:
    domain = plain_domain(node.domain)
    version = next((int(item.value) for item in node.metadata_props if item.key == BODY_VERSION), versions.get(domain, 1))
    if find(node.op_type, version, domain) is not None or node.op_type == "Constant" or not defs.has(node.op_type, version, domain):
        return None
    return defs.get_schema(node.op_type, version, domain), version


def _defaults(node: NodeProto, versions: Mapping[str, int]) -> dict[str, AttributeProto]:
    """Return the schema's default values of an op's attributes."""
    found = _schema(node, versions)
    attributes = found[0].attributes if found is not None else {}
    return {name: each.default_value for name, each in attributes.items() if each.default_value.type != AttributeProto.UNDEFINED}


def _is_contextual(node: NodeProto, versions: Mapping[str, int]) -> bool:
    found = _schema(node, versions)
    return found is not None and bool(found[0].context_dependent_function_opset_versions)


def _body_of(node: NodeProto, versions: Mapping[str, int], types: Mapping[str, bytes]) -> FunctionProto | None:
    found = _schema(node, versions)
    if found is None:
        return None
    schema, version = found
    plain = [v for v in schema.function_opset_versions if v <= version]
    if plain:
        body = schema.get_function_with_opset_version(max(plain))
    else:
        contextual = [v for v in schema.context_dependent_function_opset_versions if v <= version]
        if not contextual or not all(name in types for name in node.input if name):
            return None
        inputs = [types[name] if name else b"" for name in node.input]
        body = schema.get_context_dependent_function_with_opset_version(max(contextual), node.SerializeToString(), inputs)
    return FunctionProto.FromString(body) if isinstance(body, bytes) else body


@dataclass(frozen=True)
class _Instance:
    """One inlined body: its nodes under new names, with the call's inputs, outputs and attributes substituted."""

    call: NodeProto
    body: FunctionProto
    prefix: str
    defaults: Mapping[str, AttributeProto] = field(default_factory=dict)

    def nodes(self) -> list[NodeProto]:
        names = dict(zip(self.body.input, [*self.call.input] + [""] * len(self.body.input), strict=False))
        names |= {inner: outer for inner, outer in zip(self.body.output, self.call.output, strict=False) if outer}
        return [self._rename(node, names, i) for i, node in enumerate(self.body.node)]

    def _rename(self, node: NodeProto, names: Mapping[str, str], index: int) -> NodeProto:
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{self.call.name or self.prefix}{self.call.op_type}/{index}"
        self._rename_values(copy, names)
        self._fill_attributes(copy, names)
        domain = plain_domain(node.domain)
        version = next((item.version for item in self.body.opset_import if plain_domain(item.domain) == domain), None)
        if version is not None and not any(item.key == BODY_VERSION for item in copy.metadata_props):
            copy.metadata_props.add(key=BODY_VERSION, value=str(version))
        return copy

    def _rename_values(self, node: NodeProto, names: Mapping[str, str]) -> None:
        for values in (node.input, node.output):
            renamed = [names.get(name, self.prefix + name) if name else "" for name in values]
            del values[:]
            values.extend(renamed)

    def _fill_attributes(self, node: NodeProto, names: Mapping[str, str]) -> None:
        """Replace references to the call's attributes by their values or the body's defaults; drop absent ones."""
        given = {**self.defaults, **{a.name: a for a in (*self.body.attribute_proto, *self.call.attribute)}}
        filled = []
        for attribute in node.attribute:
            source = given.get(attribute.ref_attr_name) if attribute.ref_attr_name else attribute
            if source is None:
                continue
            copy = AttributeProto()
            copy.CopyFrom(source)
            copy.name = attribute.name
            if copy.type == AttributeProto.GRAPH:
                self._rename_graph(copy.g, names)
            filled.append(copy)
        del node.attribute[:]
        node.attribute.extend(filled)

    def _rename_graph(self, graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
        for i, node in enumerate(graph.node):
            renamed = self._rename(node, names, i)
            node.CopyFrom(renamed)
        for value in (*graph.input, *graph.output, *graph.initializer):
            value.name = names.get(value.name, self.prefix + value.name)
