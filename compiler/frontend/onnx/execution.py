"""Execution of a graph node by node: each function gets its inputs in the form that its signature declares."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils._python_dispatch import _disable_current_modes

from llmos.compiler.frontend.onnx.dtypes import dtype_of, to_numpy, to_torch
from llmos.compiler.frontend.onnx.graph import Graph, Node
from llmos.compiler.frontend.onnx.low_precision import LowPrecisionTensor, array_of, codes_of, low_precision_type
from llmos.compiler.frontend.onnx.registry import Kind, OpFunction
from llmos.compiler.frontend.onnx.values import ConstantValue, Value, constant_value, scalar_of
from llmos.runtime.errors import UnsupportedError, UserError

Environment = MutableMapping[str, Value]

MAX_FOLDED_ELEMENTS = 65536
MAX_READ = 8  # most numbers that an op reads from data as sizes
# Data movement ops, which work on codes as on numbers.
MOVES = frozenset(
    {"Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Reshape", "Slice", "Split", "Squeeze", "Tile"}
    | {"Transpose", "Unsqueeze", "DepthToSpace", "SpaceToDepth", "ReverseSequence", "Where"}
)
# Integer weights stay integers for the quantization passes; random numbers are drawn at each run.
NEVER_FOLDED = frozenset(
    {"DequantizeLinear", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)


@dataclass(frozen=True)
class Executor:
    """Runs graphs; `buffer` returns the tensor of a constant that the module holds, `after` is called after each node."""

    buffer: Callable[[str], torch.Tensor | None] = lambda key: None
    after: Callable[[Node], None] = lambda node: None

    def run(self, graph: Graph, inputs: Mapping[str, Value], outer: Mapping[str, Value] | None = None) -> list[Value]:
        """Run the graph; return the values of its outputs. A subgraph also sees the names of `outer`.

        Raises UnsupportedError, naming the node, for a value from data where a constant is needed.
        """
        scopes: list[Any] = [{}, inputs, graph.constants] + ([outer] if outer is not None else [])
        env: Environment = ChainMap(*scopes)
        for node in graph.nodes:
            self.run_node(node, env)
            self.after(node)
        return [env[name] for name in graph.outputs]

    def run_node(self, node: Node, env: Environment) -> None:
        """Run one node and put its outputs into `env`."""
        values = [env[name] if name else None for name in node.inputs]
        folded = fold_node(node, values)
        if folded is not None:
            env.update((name, value) for name, value in zip(node.outputs, folded, strict=False) if name)
            return
        on_host = node.on_host is not None and any(isinstance(v, ConstantValue) for v in values) and not any(_on_device(v) for v in values)
        function = node.on_host if on_host and node.on_host is not None else node.function
        try:
            results = self._call(function, node, values, env)
        except GuardOnDataDependentSymNode as error:
            raise UnsupportedError(
                f"node {node}: its result depends on sizes that are computed from the data of the model's inputs in a way that can't be "
                "compiled; bind the input they come from to a constant, or simplify the model before the export."
            ) from error
        except Exception as error:
            error.add_note(f"in ONNX node {node}")
            raise
        for name, result in zip(node.outputs, results, strict=False):
            if name:
                env[name] = result

    def any_tensor(self, value: Value) -> torch.Tensor | LowPrecisionTensor:
        """Return the tensor of a value: a buffer of the module, a filled tensor, or a tensor of sizes.

        Raises UnsupportedError for a sequence or an empty optional.
        """
        if isinstance(value, torch.Tensor | LowPrecisionTensor):
            return value
        if not isinstance(value, ConstantValue):
            raise UnsupportedError("a sequence or an empty optional stands where a tensor is needed.")
        held = self.buffer(value.key) if value.key is not None else None
        elem_type = low_precision_type(value.dtype)
        if elem_type is not None:
            return LowPrecisionTensor(held if held is not None else to_torch(codes_of(value.array)), elem_type)
        if held is not None:
            return held
        return _symbols_to_tensor(value) if value.is_symbolic else _constant_to_tensor(value.array)

    def tensor(self, value: Value) -> torch.Tensor:
        """As `any_tensor`; also raises UnsupportedError for low-precision types, which have no arithmetic."""
        found = self.any_tensor(value)
        if isinstance(found, LowPrecisionTensor):
            raise UnsupportedError(f"elements of type {found.format.name} can only be moved and cast; cast them to float first.")
        return found

    def _call(self, function: OpFunction, node: Node, values: Sequence[Value], env: Environment) -> Sequence[Value]:
        rank = max((_rank(value) for value in values if not isinstance(value, ConstantValue) or value.array.size != 1), default=-1)
        args = [self._convert(function.kind_of(i), value, node, i, rank) for i, value in enumerate(values)]
        if function.variadic is None:
            args += [None] * (function.num_required - len(args))
        attributes = {name: self._bind(value, env) for name, value in node.attributes.items() if name in function.attributes}
        if function.wants_num_outputs:
            attributes["num_outputs_"] = len(node.outputs)
        if function.variadic is None:
            while args and args[-1] is None and len(args) > function.num_required:
                args.pop()
        result = _moved(function, args, attributes) if node.op in MOVES else function.call(*args, **attributes)
        return result if isinstance(result, tuple) else (result,)

    def _bind(self, attribute: Any, env: Environment) -> Any:
        return partial(self._run_subgraph, attribute, env) if isinstance(attribute, Graph) else attribute

    def _run_subgraph(self, graph: Graph, env: Environment, *inputs: Value) -> list[Value]:
        if len(inputs) != len(graph.inputs):
            raise UserError(f"a body takes {len(graph.inputs)} inputs and is given {len(inputs)}: check the model with onnx.checker.")
        return self.run(graph, dict(zip(graph.inputs, inputs, strict=True)), outer=env)

    def _convert(self, kind: Kind | None, value: Value, node: Node, index: int, rank: int) -> Any:
        if value is None or kind in (Kind.VALUE, Kind.KNOWN):
            return value
        if kind is Kind.ANY_TENSOR or (kind is Kind.TENSOR and node.op in MOVES):
            return self.any_tensor(value)
        if kind is Kind.TENSOR:
            return self.tensor(value)
        if kind is Kind.OPERAND:
            return self._operand(value, rank)
        if kind is Kind.SIZES and isinstance(value, torch.Tensor) and _is_short(value):
            return tuple(value.reshape(-1).tolist())
        if not isinstance(value, ConstantValue):
            raise UnsupportedError(
                f"node {node}: input '{node.inputs[index]}' is computed from the data of the model's inputs, "
                "and this op needs it as a constant; bind the input it comes from to a constant, or simplify the model before the export."
            )
        if kind is Kind.ARRAY:
            return value
        items = tuple(item.item() if isinstance(item, np.generic) else item for item in value.array.reshape(-1))
        return tuple(float(item) for item in items) if kind is Kind.FLOATS else items

    def _operand(self, value: Value, rank: int) -> Any:
        """Return a one-element constant as a Python number, which stays visible in the graph; else a tensor.

        `rank` is the largest among the node's other inputs: a constant of a higher rank would add dims to the result.
        """
        if (
            isinstance(value, ConstantValue)
            and value.array.size == 1
            and value.array.ndim <= rank
            and value.dtype.kind in "fiu"
            and not value.is_symbolic
        ):
            return scalar_of(value)
        return self.tensor(value)


def _is_short(value: torch.Tensor) -> bool:
    """Whether a tensor can be a list of sizes, by its type and length."""
    return value.dtype in (torch.int32, torch.int64) and value.ndim <= 1 and all(isinstance(n, int) and n <= MAX_READ for n in value.shape)


def fold_node(node: Node, values: Sequence[Value]) -> list[Value] | None:
    """Constant-fold a node whose inputs are all constants, outside of tracing; return its outputs, or None if it can't be folded.

    Ops on whole weights stay in the graph: the passes fold them, knowing the weights' names and bytes.
    """
    known = [value for value in values if isinstance(value, ConstantValue) and not value.is_symbolic]
    has_body = any(isinstance(attribute, Graph) for attribute in node.attributes.values())
    if len(known) != sum(value is not None for value in values) or has_body or node.op in NEVER_FOLDED:
        return None
    if sum(value.array.size for value in known) > MAX_FOLDED_ELEMENTS:
        return None
    bare = replace(node, on_host=None)
    env: Environment = {name: value for name, value in zip(node.inputs, values, strict=True) if name}
    # Not under no_grad: torch.export would split the graph at each use, and nothing here requires gradients.
    with _disable_current_modes():
        plain = [ConstantValue(value.array, value.dtype) if isinstance(value, ConstantValue) else None for value in values]
        results = Executor()._call(bare.function, bare, plain, env)
        if any(isinstance(r, list) or (isinstance(r, torch.Tensor) and r.numel() > MAX_FOLDED_ELEMENTS) for r in results):
            return None
        return [_to_constant(result) for result in results]


def _to_constant(value: Value) -> Value:
    if isinstance(value, LowPrecisionTensor):
        return constant_value(array_of(to_numpy(value.codes), value.elem_type))
    return constant_value(to_numpy(value)) if isinstance(value, torch.Tensor) else value


def _moved(function: OpFunction, args: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
    """Call a data movement function with codes in place of low-precision tensors."""
    elem_type = next((arg.elem_type for arg in args if isinstance(arg, LowPrecisionTensor)), None)
    result = function.call(*[arg.codes if isinstance(arg, LowPrecisionTensor) else arg for arg in args], **attributes)
    if elem_type is None:
        return result
    return (
        tuple(LowPrecisionTensor(part, elem_type) for part in result)
        if isinstance(result, tuple)
        else LowPrecisionTensor(result, elem_type)
    )


def fold_graph(graph: Graph, outer: Mapping[str, ConstantValue] | None = None) -> Graph:
    """Fold every foldable node to a constant, also in subgraphs."""
    known = dict(outer or {}) | dict(graph.constants)
    constants = dict(graph.constants)
    nodes: list[Node] = []
    for node in graph.nodes:
        values = [known.get(name) if name else None for name in node.inputs]
        is_known = all(value is not None or not name for value, name in zip(values, node.inputs, strict=True))
        results = _fold_if_valid(node, values) if is_known else None
        if results is None or not all(isinstance(value, ConstantValue) for value in results):
            nodes.append(_fold_bodies(node, known))
            continue
        made = {name: value for name, value in zip(node.outputs, results, strict=False) if name and isinstance(value, ConstantValue)}
        known |= made
        constants |= made
    return replace(graph, nodes=tuple(nodes), constants=constants)


def _fold_if_valid(node: Node, values: Sequence[ConstantValue | None]) -> list[Value] | None:
    """As `fold_node`; a node that raises is kept, since it may be in a branch that is never taken."""
    try:
        return fold_node(node, list(values))
    except (RuntimeError, ValueError, IndexError, TypeError, UserError):
        return None


def _fold_bodies(node: Node, known: Mapping[str, ConstantValue]) -> Node:
    attributes = {name: fold_graph(a, known) if isinstance(a, Graph) else a for name, a in node.attributes.items()}
    return replace(node, attributes=attributes)


def is_fill(array: np.ndarray) -> bool:
    """Whether a constant is stored as a fill instead of a buffer: one number, or a small splat."""
    if array.dtype.kind not in "fiub" or array.size == 0 or array.size > 4096:
        return False
    return array.size == 1 or (array.dtype.kind != "f" and bool((array == array.flat[0]).all()))


def _rank(value: Value) -> int:
    if isinstance(value, ConstantValue):
        return value.array.ndim
    if isinstance(value, LowPrecisionTensor):
        return value.codes.ndim
    return value.ndim if isinstance(value, torch.Tensor) else -1


def _on_device(value: Value) -> bool:
    return value is not None and not isinstance(value, ConstantValue)


def _constant_to_tensor(array: np.ndarray) -> torch.Tensor:
    if is_fill(array):
        return torch.full(array.shape, array.flat[0].item(), dtype=dtype_of(array.dtype))
    return to_torch(array)


def _symbols_to_tensor(value: ConstantValue) -> torch.Tensor:
    dtype = dtype_of(value.dtype)
    items = [torch.scalar_tensor(item, dtype=dtype) for item in value.array.reshape(-1)]
    if value.array.ndim == 0:
        return items[0]
    return torch.stack(items).reshape(value.array.shape) if items else torch.empty(value.array.shape, dtype=dtype)
