"""An ONNX graph as an nn.Module whose forward runs it node by node as torch functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from llmos.compiler.frontend.onnx.dtypes import to_torch
from llmos.compiler.frontend.onnx.execution import Executor, is_fill
from llmos.compiler.frontend.onnx.graph import Graph
from llmos.compiler.frontend.onnx.low_precision import LowPrecisionTensor, codes_of, low_precision_type
from llmos.compiler.frontend.onnx.registry import Kind
from llmos.compiler.frontend.onnx.values import ConstantValue, Value
from llmos.compiler.frontend.onnx.watch import DimensionWatch
from llmos.runtime.errors import UnsupportedError


@dataclass(frozen=True)
class Result:
    """The module's form of a graph output: one tensor, `length` tensors (a sequence), or none (an empty optional)."""

    name: str
    length: int | None = None
    is_absent: bool = False

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Return the names of its tensors, "name.i" for item i of a sequence."""
        if self.is_absent:
            return ()
        return (self.name,) if self.length is None else tuple(f"{self.name}.{i}" for i in range(self.length))


@dataclass
class _Record:
    results: tuple[Result, ...] = ()
    limiting_nodes: Mapping[tuple[int, int], str] = field(default_factory=dict)


class OnnxModule(nn.Module):
    """`graph` as a module: constants used as tensors are buffers under their ONNX names.

    forward takes the graph's inputs and returns its outputs in order, with sequences flattened and low-precision types as codes. `results`
    describes how the tensors of the last run map to the outputs.
    """

    def __init__(self, graph: Graph, low_precision_inputs: Mapping[str, int] | None = None) -> None:
        """`low_precision_inputs`: ONNX element types of the inputs that are given as codes (low_precision.py)."""
        super().__init__()
        self.low_precision_inputs = dict(low_precision_inputs or {})
        # In a separate object: torch.export reverts assignments to the module.
        self._record = _Record()
        self._locations: dict[str, tuple[nn.Module, str]] = {}
        self.graph = self._hold_constants(graph)
        self._executor = Executor(self._buffer)

    @property
    def results(self) -> tuple[Result, ...]:
        """Return how the tensors of the last run map to the outputs of the graph."""
        return self._record.results

    @property
    def limiting_nodes(self) -> Mapping[tuple[int, int], str]:
        """Return the nodes that fixed or narrowed dimensions (input, axis) in the last traced run."""
        return self._record.limiting_nodes

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the graph on its inputs in order; return the tensors of its outputs. Raises as `Executor.run`."""
        watch = DimensionWatch(inputs)
        self._record.limiting_nodes = watch.nodes
        executor = Executor(self._buffer, watch.after)
        values = executor.run(self.graph, {name: self._input(name, x) for name, x in zip(self.graph.inputs, inputs, strict=True)})
        self._record.results = tuple(_result(name, value) for name, value in zip(self.graph.outputs, values, strict=True))
        return tuple(self._plain(item) for value in values for item in (value if isinstance(value, list) else [value]) if item is not None)

    def _input(self, name: str, x: torch.Tensor) -> Value:
        elem_type = self.low_precision_inputs.get(name)
        return x if elem_type is None else LowPrecisionTensor(x, elem_type)

    def _plain(self, value: Value) -> torch.Tensor:
        found = self._executor.any_tensor(value)
        return found.codes if isinstance(found, LowPrecisionTensor) else found

    def _buffer(self, key: str) -> torch.Tensor | None:
        location = self._locations.get(key)
        return None if location is None else getattr(*location)

    def _hold_constants(self, graph: Graph) -> Graph:
        """Put each constant that is used as a tensor into a buffer, also in subgraphs."""
        used = tensor_names(graph)
        constants: dict[str, ConstantValue] = {}
        for name, value in graph.constants.items():
            constants[name] = self._hold(name, value) if name in used and not is_fill(value.array) else value
        nodes = tuple(replace(node, attributes={k: self._hold_attribute(v) for k, v in node.attributes.items()}) for node in graph.nodes)
        return replace(graph, constants=constants, nodes=nodes)

    def _hold_attribute(self, attribute: object) -> object:
        return self._hold_constants(attribute) if isinstance(attribute, Graph) else attribute

    def _hold(self, name: str, value: ConstantValue) -> ConstantValue:
        key = name
        while key in self._locations:
            key += "_"
        try:
            tensor = to_torch(value.array if low_precision_type(value.dtype) is None else codes_of(value.array))
        except UnsupportedError as error:
            raise UnsupportedError(f"constant '{name}': {error}") from error
        self._locations[key] = self._register(key, tensor)
        return replace(value, key=key)

    def _register(self, name: str, tensor: torch.Tensor) -> tuple[nn.Module, str]:
        """Register a buffer in nested modules along the dots of its name, so that the state dict has the ONNX name."""
        *path, leaf = name.split(".")
        owner: nn.Module = self
        for part in path:
            child = getattr(owner, part, None) if part else None
            if not part or (child is not None and not isinstance(child, nn.Module)):
                return self._register(name.replace(".", "_"), tensor)
            if child is None:
                child = nn.Module()
                owner.add_module(part, child)
            owner = child
        if not leaf or hasattr(owner, leaf):
            return self._register(f"{name.replace('.', '_')}_onnx", tensor)
        owner.register_buffer(leaf, tensor)
        return owner, leaf


def _result(name: str, value: Value) -> Result:
    return Result(name, len(value) if isinstance(value, list) else None, value is None)


def tensor_names(graph: Graph) -> frozenset[str]:
    """Return the names of values that an op of the graph or of a subgraph takes as a tensor, and of graph outputs."""
    found = set(graph.outputs)
    for node in graph.nodes:
        for index, name in enumerate(node.inputs):
            if node.function.kind_of(index) in (Kind.TENSOR, Kind.ANY_TENSOR, Kind.OPERAND, Kind.VALUE):
                found.add(name)
        for attribute in node.attributes.values():
            if isinstance(attribute, Graph):
                found |= tensor_names(attribute)
    return frozenset(found)
