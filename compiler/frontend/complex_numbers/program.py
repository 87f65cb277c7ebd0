"""Rewrite an exported program over complex numbers to pairs of real numbers."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, TensorArgument
from torch.utils import _pytree as pytree

from llmos.compiler.frontend.complex_numbers import arithmetic, functions, movement, products, spectral
from llmos.compiler.frontend.complex_numbers.pair import Pair, Rule, Rules
from llmos.compiler.frontend.graph import op_name, source_line
from llmos.compiler.frontend.splicing import copied, rename_outputs, splice, updated
from llmos.runtime.errors import UnsupportedError, UserError

COMPLEX = "llmos.complex"  # metadata of a placeholder: it holds complex numbers as pairs; of the output: which of its tensors do

_CHECKS = ("aten._assert_tensor_metadata.default",)

Parts = tuple[fx.Node, fx.Node]


@cache
def rules() -> Mapping[Any, Rule]:
    """Return the rule of each op overload."""
    return {**arithmetic.RULES, **functions.RULES, **movement.RULES, **products.RULES, **spectral.RULES}


def has_complex(program: ExportedProgram) -> bool:
    """Whether a value of the program is a complex tensor."""
    return any(_is_complex(node.meta.get("val")) for node in program.graph.nodes)


def _is_complex(val: Any) -> bool:
    return any(isinstance(each, torch.Tensor) and each.dtype.is_complex for each in pytree.tree_leaves(val))


def as_pairs(program: ExportedProgram) -> ExportedProgram:
    """Return the program without complex tensors: complex inputs and outputs become real, [..., 2], with real and imaginary parts.

    Weights change in the same way. Raises UnsupportedError, naming the op, for an op without a rule.
    """
    module, signature = copied(program)
    rename_outputs(signature, _Rewriting(module.graph).run())
    module.graph.eliminate_dead_code()
    module.recompile()
    values = {"state_dict": dict(program.state_dict), "constants": dict(program.constants)}
    for spec in signature.input_specs:
        if isinstance(spec.arg, TensorArgument) and spec.kind != InputKind.USER_INPUT and spec.target is not None:
            for held in values.values():
                if spec.target in held:
                    held[spec.target] = _real_weight(held[spec.target])
    return updated(program, module, signature, **values)


def _real_weight(value: torch.Tensor) -> torch.Tensor:
    if not value.dtype.is_complex:
        return value
    real = torch.view_as_real(value.detach().resolve_conj())
    return torch.nn.Parameter(real, requires_grad=False) if isinstance(value, torch.nn.Parameter) else real


class _Rewriting:
    """Replaces each node of a graph that takes or returns complex tensors by nodes of their parts."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._parts: dict[fx.Node, Any] = {}  # by complex node: two nodes, or a list of results
        self._rules = dict(rules())

    def run(self) -> dict[str, str]:
        """Rewrite the graph; return the new names of renamed outputs."""
        nodes = list(self._graph.nodes)
        renamed: dict[str, str] = {}
        for node in nodes:
            if node.op == "placeholder" and _is_complex(node.meta.get("val")):
                self._split_input(node)
            elif node.op == "call_function" and (
                _is_complex(node.meta.get("val")) or any(each in self._parts for each in node.all_input_nodes)
            ):
                self._replace(node, renamed)
            elif node.op == "output":
                self._join_outputs(node, renamed)
        for node in reversed(nodes):
            if node in self._parts and node.op != "placeholder":
                self._graph.erase_node(node)
        return renamed

    def _split_input(self, node: fx.Node) -> None:
        val = node.meta["val"]
        _refuse_halves(val)
        with val.fake_mode:
            node.meta["val"] = torch.view_as_real(val.resolve_conj()).contiguous()
        node.meta[COMPLEX] = True
        following = node.next
        while following.op == "placeholder":
            following = following.next
        self._parts[node] = tuple(splice(following, lambda x: [x[..., 0], x[..., 1]], [node]))

    def _replace(self, node: fx.Node, renamed: dict[str, str]) -> None:
        if str(node.target) in _CHECKS:
            self._graph.erase_node(node)
        elif node.target is operator.getitem:
            found = self._parts[node.args[0]][node.args[1]]  # type: ignore[index]
            self._take(node, found, renamed)
        elif not any(isinstance(each, torch.Tensor) for each in pytree.tree_leaves(node.meta.get("val"))):
            node.args = fx.node.map_arg(node.args, lambda each: self._parts[each][0] if each in self._parts else each)  # a size
        else:
            self._take(node, self._computed(node), renamed)

    def _take(self, node: fx.Node, found: Any, renamed: dict[str, str]) -> None:
        """Record a node's replacement: parts for lookup, or a real node that replaces it in the graph."""
        if not isinstance(found, fx.Node):
            self._parts[node] = found
            return
        renamed[node.name] = found.name
        node.replace_all_uses_with(found)
        self._graph.erase_node(node)

    def _computed(self, node: fx.Node) -> Any:
        """Apply the op's rule to the parts of its operands; return a real node, two parts, or a list of these."""
        taken = node.all_input_nodes
        operands = [part for each in taken for part in self._parts.get(each, (each,))]
        shape: list[Any] = []

        def compute(*values: Any) -> list[Any]:
            queue = iter(values)
            known = {each: Pair(next(queue), next(queue)) if each in self._parts else next(queue) for each in taken}
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda each: known[each])
            with Rules(self._rules):
                answer = node.target(*args, **kwargs)  # type: ignore[operator]
            leaves, spec = pytree.tree_flatten(answer, is_leaf=lambda each: isinstance(each, Pair))
            shape.append((spec, [isinstance(each, Pair) for each in leaves]))
            return [part for each in leaves for part in ((each.re, each.im) if isinstance(each, Pair) else (each,))]

        try:
            queue = iter(splice(node, compute, operands))
        except UserError as error:
            text = str(error) if str(error).startswith(op_name(node)) else f"{op_name(node)}: {error}"
            raise type(error)(text + source_line(node)) from None
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UnsupportedError(f"{op_name(node)}: not supported for complex numbers ({reason}){source_line(node)}") from error
        spec, pairs = shape[0]
        return pytree.tree_unflatten([_PartsLeaf((next(queue), next(queue))) if pair else next(queue) for pair in pairs], spec)

    def _join_outputs(self, node: fx.Node, renamed: dict[str, str]) -> None:
        results: Any = node.args[0]
        joined: dict[Any, fx.Node] = {}
        for each in results:
            if each in self._parts and each not in joined:
                _refuse_halves(each.meta["val"])
                (joined[each],) = splice(node, lambda re, im: [torch.stack([re, im], -1)], list(self._parts[each]))
                renamed[each.name] = joined[each].name
        node.meta[COMPLEX] = [each in joined for each in results]
        node.args = (tuple(joined.get(each, each) for each in results),)


def _refuse_halves(val: torch.Tensor) -> None:
    if val.dtype == torch.complex32:
        raise UnsupportedError("inputs and outputs of torch.complex32 aren't supported, which numpy lacks: convert to torch.complex64")


class _PartsLeaf(tuple[fx.Node, ...]):
    """Two nodes that form one element of a list of results."""
