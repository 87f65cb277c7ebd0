"""Replace a node of an exported graph by a traced function."""

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
    """Copy the graph and the signature for modification, since the caller owns the program."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = copy.deepcopy(program.graph_module)
    for old, new in zip(program.graph.nodes, module.graph.nodes, strict=True):
        new.name = old.name  # a copy renames nodes named like Python builtins, such as an input `input`
    return module, copy.deepcopy(program.graph_signature)


def updated(program: ExportedProgram, module: fx.GraphModule, signature: ExportGraphSignature, **values: Any) -> ExportedProgram:
    """Return the program with a changed graph; `values`: other changed fields of ExportedProgram."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return program._update(module, signature, **values)


def rename_outputs(signature: ExportGraphSignature, names: Mapping[str, str]) -> None:
    """Rename outputs in the signature after their nodes were replaced."""
    for spec in signature.output_specs:
        if isinstance(spec.arg, TensorArgument) and spec.arg.name in names:
            spec.arg.name = names[spec.arg.name]


def splice(node: fx.Node, function: Callable[..., Sequence[Any]], operands: Sequence[fx.Node]) -> list[Any]:
    """Trace `function` over `operands` and insert its nodes before `node`, with the source position of `node`; return the result nodes.

    `function` takes one value for each operand (a tensor or a size), traced with the graph's metadata, in which sizes are symbolic.
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
