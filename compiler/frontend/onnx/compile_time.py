"""Inputs of a graph that must be compile-time constants: shapes, axes, pads, repeats, trip counts."""

from __future__ import annotations

from collections.abc import Iterable

from llmos.compiler.frontend.onnx.graph import Graph, Node
from llmos.compiler.frontend.onnx.registry import Kind

_KNOWN_AT_COMPILE_TIME = (Kind.INTS, Kind.SIZES, Kind.FLOATS, Kind.NUMBERS, Kind.ARRAY, Kind.KNOWN)
# Ops whose result needs only the sizes of their input.
_OF_SIZES = frozenset({"Shape", "Size"})


def compile_time_inputs(graph: Graph, conditions: bool = False) -> frozenset[str]:
    """Return the inputs of `graph` that determine a value which an op requires as a constant; unless bound, the op is rejected.

    `conditions` adds the inputs that determine conditions of If, for branches whose results differ in shape or type.
    """
    return frozenset(_needed(graph, (), conditions) & set(graph.inputs))


def _needed(graph: Graph, wanted: Iterable[str], conditions: bool) -> set[str]:
    """Return the names that must be constant in `graph`, given that its outputs `wanted` must be; walks nodes in reverse."""
    needed = set(wanted)
    for node in reversed(graph.nodes):
        outputs_needed = any(name in needed for name in node.outputs if name)
        if outputs_needed and node.op not in _OF_SIZES:
            needed |= {name for name in node.inputs if name}
        needed |= {name for i, name in enumerate(node.inputs) if name and _is_compile_time(node, i, conditions)}
        for attribute in node.attributes.values():
            if isinstance(attribute, Graph):
                needed |= _needed(attribute, attribute.outputs if outputs_needed else (), conditions)
    return needed


def _is_compile_time(node: Node, index: int, conditions: bool) -> bool:
    return node.function.kind_of(index) in _KNOWN_AT_COMPILE_TIME or (conditions and node.op == "If" and index == 0)
