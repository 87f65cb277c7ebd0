"""Puts a traced function in the place of a node of an exported graph."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, TensorArgument
from torch.fx.experimental.proxy_tensor import make_fx

_KEPT = ("stack_trace", "nn_module_stack", "source_fn_stack")


def copied(program: ExportedProgram) -> tuple[fx.GraphModule, ExportGraphSignature]:
    """A graph and a signature to change: the program's own belong to whoever gave it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = copy.deepcopy(program.graph_module)
    for old, new in zip(program.graph.nodes, module.graph.nodes, strict=True):
        new.name = old.name  # a copy renames what is called as Python's own names are, such as an input `input`
    return module, copy.deepcopy(program.graph_signature)


def updated(program: ExportedProgram, module: fx.GraphModule, signature: ExportGraphSignature, **values: Any) -> ExportedProgram:
    """The program with a changed graph; `values`: what else changed, by ExportedProgram's names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return program._update(module, signature, **values)


def rename_outputs(signature: ExportGraphSignature, names: Mapping[str, str]) -> None:
    """Have the signature call outputs by the nodes that took the places of others."""
    for spec in signature.output_specs:
        if isinstance(spec.arg, TensorArgument) and spec.arg.name in names:
            spec.arg.name = names[spec.arg.name]


def splice(node: fx.Node, function: Callable[..., Sequence[Any]], operands: Sequence[fx.Node]) -> list[Any]:
    """Nodes of what `function` gives for the values of `operands`, put before `node`, with the place in the model that `node` has.

    `function` takes one value an operand (a tensor, or a size) and is traced over them as they are in the graph's metadata, sizes symbolic.
    """
    values = [each.meta["val"] for each in operands]
    traced = _traced(function, values, detect_fake_mode([*values, node.meta.get("val")]))
    graph = node.graph
    places = [each for each in traced.graph.nodes if each.op == "placeholder"]
    found: dict[fx.Node, Any] = dict(zip(places, operands, strict=True))
    before = set(graph.nodes)
    with graph.inserting_before(node):
        results = graph.graph_copy(traced.graph, found)
    for each in graph.nodes:
        if each not in before:
            each.meta.update({key: node.meta[key] for key in _KEPT if key in node.meta})
    return list(results)  # type: ignore[arg-type]


def _traced(function: Callable[..., Sequence[Any]], values: Sequence[Any], mode: Any) -> fx.GraphModule:
    with mode or nullcontext(), torch.no_grad():
        return make_fx(lambda *args: tuple(function(*args)), tracing_mode="real", _allow_non_fake_inputs=True)(*values)
