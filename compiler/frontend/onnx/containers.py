"""Sequence and optional inputs of a model, replaced by one tensor input for each item, which the graph assembles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper


def with_plain_inputs(model: onnx.ModelProto, feed: Mapping[str, Any]) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Flatten each sequence and optional input as given in `feed` (a list, or None); return the model and the arrays of its plain inputs.

    Item i of the sequence "x" becomes the input "x.i", with the item's shape.
    """
    containers = [value for value in model.graph.input if value.name in feed and not value.type.HasField("tensor_type")]
    if not containers:
        return model, {name: np.asarray(value) for name, value in feed.items()}
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    arrays: dict[str, np.ndarray] = {name: np.asarray(value) for name, value in feed.items() if name not in {c.name for c in containers}}
    inputs = [value for value in plain.graph.input if value.name in arrays or value.name not in feed]
    nodes = []
    for container in containers:
        value, elem_type = feed[container.name], _elem_type(container.type)
        items = {f"{container.name}.{i}": np.asarray(item) for i, item in enumerate(value)} if isinstance(value, list) else {}
        if isinstance(value, list):
            nodes.append(_construct(container.name, list(items), elem_type))
        elif value is None:
            nodes.append(helper.make_node("Optional", [], [container.name], type=container.type.optional_type.elem_type))
        else:
            items = {container.name: np.asarray(value)}
        inputs += [helper.make_tensor_value_info(name, elem_type, array.shape) for name, array in items.items()]
        arrays |= items
    _replace(plain.graph.input, inputs)
    _replace(plain.graph.node, [*nodes, *plain.graph.node])
    return plain, arrays


def _construct(name: str, items: list[str], elem_type: int) -> onnx.NodeProto:
    if items:
        return helper.make_node("SequenceConstruct", items, [name])
    return helper.make_node("SequenceEmpty", [], [name], dtype=elem_type)


def _elem_type(kind: onnx.TypeProto) -> int:
    """Return the element type of the tensors in a sequence, an optional, or an optional sequence."""
    while not kind.HasField("tensor_type"):
        kind = kind.sequence_type.elem_type if kind.HasField("sequence_type") else kind.optional_type.elem_type
    return int(kind.tensor_type.elem_type)


def _replace(field: Any, values: list[Any]) -> None:
    kept = list(values)
    del field[:]
    field.extend(kept)
