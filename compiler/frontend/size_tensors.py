"""Fold numbers read from tensors computed from sizes alone (`torch.tensor(x.shape[1]).item()`): they don't depend on data."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from llmos.compiler.frontend.splicing import copied, updated

_READS = ("aten.item.default", "aten._local_scalar_dense.default")
_COPIES = ("aten.to.device", "aten.to.dtype", "aten._to_copy.default", "aten.detach_.default", "aten.detach.default", "aten.clone.default")
_ARITHMETIC: Mapping[str, Callable[[Any, Any], Any]] = MappingProxyType(
    {
        "aten.add.Tensor": operator.add,
        "aten.sub.Tensor": operator.sub,
        "aten.mul.Tensor": operator.mul,
        "aten.rsub.Scalar": operator.sub,  # on swapped operands
    }
)


def with_sizes_read(program: ExportedProgram) -> ExportedProgram:
    """Replace each such read by its number; return the same program without one.

    The program must be traced again, because shapes still refer to the read.
    """
    if not any(str(node.target) in _READS for node in program.graph.nodes):
        return program
    module, signature = copied(program)
    known: dict[Any, Any] = {}
    for node in list(module.graph.nodes):
        if node.op == "call_function" and (number := _number(node, known)) is not None:
            known[node] = number
    reads = [node for node in known if str(node.target) in _READS]
    for node in reads:
        node.replace_all_uses_with(known[node])
        module.graph.erase_node(node)
    module.recompile()
    return updated(program, module, signature) if reads else program


def _number(node: fx.Node, known: Mapping[Any, Any]) -> Any:
    """Return an integer computed from sizes alone as a number of the graph; None for any other node."""
    name, val = str(node.target), node.meta.get("val")
    if name in _READS:
        return known.get(node.args[0])
    if not isinstance(val, torch.Tensor) or val.dim() > 0 or val.dtype not in (torch.int64, torch.int32):
        return None
    if name == "aten.scalar_tensor.default":
        return node.args[0]
    if name in _COPIES:
        return known.get(node.args[0])
    if name not in _ARITHMETIC or len(node.args) != 2 or node.kwargs:
        return None
    numbers = [known.get(each, each) if not isinstance(each, fx.Node) or each in known else None for each in node.args]
    if None in numbers:
        return None
    return _computed(node, _ARITHMETIC[name], numbers[::-1] if "rsub" in name else numbers)


def _computed(node: fx.Node, function: Callable[[Any, Any], Any], numbers: list[Any]) -> Any:
    if not any(isinstance(each, fx.Node) for each in numbers):
        return function(*numbers)
    with node.graph.inserting_before(node):
        made = node.graph.call_function(function, tuple(numbers))
    made.meta["val"] = function(*[each.meta["val"] if isinstance(each, fx.Node) else each for each in numbers])
    return made
