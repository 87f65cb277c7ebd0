"""Tracing a model of many equal layers at the cost of a few: the first ones are traced, the others are copies of their graph.

torch traces a layer in seconds, and all of them alike. A layer is a copy of an earlier one where both have the same modules with the same
settings and shapes. The graph of a copy reads the weights and cache of its own layer, if it has one, and the result of the layer before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, OutputKind, OutputSpec, TensorArgument

_SETTINGS = (bool, int, float, str, type(None))


class NotRepeatedError(Exception):
    """The graph isn't one of equal layers, one after the other; says why."""


@dataclass(frozen=True)
class Layers:
    """The layers of a model: the module that holds them, by which name, and their path in the traced module."""

    parent: nn.Module
    name: str
    path: str

    @property
    def all(self) -> nn.ModuleList:
        """Return the list of the layers."""
        found: nn.ModuleList = getattr(self.parent, self.name)
        return found

    def templates(self) -> list[int]:
        """Return, for each layer, an earlier one of the same kind, but not the first layer; its own number where there is none."""
        first: dict[Any, int] = {}
        found = []
        for number, layer in enumerate(self.all):
            kind = _kind(layer), self._settings_of(number)
            found.append(first.get(kind, number))
            if number > 0:  # what the first layer reads is no layer's result
                first.setdefault(kind, number)
        return found

    def _settings_of(self, number: int) -> tuple[tuple[str, str], ...]:
        """What the configuration says of each layer in a list, by which the modules around the layers may choose."""
        settings = vars(getattr(self.parent, "config", self)).items()
        listed = {key: value for key, value in settings if isinstance(value, list) and len(value) == len(self.all)}
        return tuple((key, repr(value[number])) for key, value in sorted(listed.items()))

    @contextmanager
    def cut(self, count: int) -> Iterator[None]:
        """Inside, the model has the first `count` layers alone."""
        layers = self.all
        setattr(self.parent, self.name, layers[:count])
        try:
            yield
        finally:
            setattr(self.parent, self.name, layers)


def find_layers(module: nn.Module, count: int) -> Layers | None:
    """The list of `count` modules in which attention has the numbers of their places."""
    for path, each in module.named_modules():
        if isinstance(each, nn.ModuleList) and len(each) == count and all(_number(layer) == i for i, layer in enumerate(each)):
            parent, _, name = path.rpartition(".")
            return Layers(module.get_submodule(parent), name, path)
    return None


def _number(layer: nn.Module) -> int | None:
    numbers = (getattr(each, "layer_idx", None) for each in layer.modules())
    return next((number for number in numbers if isinstance(number, int)), None)


def _kind(layer: nn.Module) -> Any:
    """Classes, settings and weights of a layer's modules, by their names in it."""
    modules = []
    for name, module in layer.named_modules():
        settings = {key: value for key, value in vars(module).items() if isinstance(value, _SETTINGS) and key != "layer_idx"}
        tensors = {**module._parameters, **module._buffers}
        shapes = {key: (tuple(value.shape), value.dtype) for key, value in tensors.items() if value is not None}
        modules.append((name, type(module), tuple(sorted(settings.items(), key=str)), tuple(sorted(shapes.items(), key=str))))
    return tuple(modules)


def with_copies(
    program: ExportedProgram, layers: Layers, templates: Sequence[int], traced: int, first_cache: int | None = None
) -> ExportedProgram:
    """A functional program of the first `traced` layers, with copies for the others behind them.

    templates: of each layer, the number of the one that it copies. first_cache: the user input that is the first layer's cache; those of
    the others follow it; None for layers without. Raises NotRepeatedError where the graph has another form.
    """
    graph = _Graph(program, layers.path, traced, first_cache)
    for number in range(traced, len(templates)):
        graph.add(number, templates[number], layers.all[number])
    return graph.finished()


@dataclass
class _Graph:
    """A program under construction."""

    program: ExportedProgram
    path: str
    traced: int
    first_cache: int | None

    def __post_init__(self) -> None:
        signature = self.program.graph_signature
        self.graph = fx.Graph()
        mapping: dict[fx.Node, fx.Node] = {}
        self.graph.output(self.graph.graph_copy(self.program.graph, mapping))
        for node in list(self.graph.nodes):
            if node.target is torch.ops.aten.copy.default:  # of a new cache into the input, of the same shape and type
                node.replace_all_uses_with(node.args[1])
                self.graph.erase_node(node)
        nodes = {node.name: node for node in self.graph.nodes}
        self.output = next(iter(reversed(self.graph.nodes)))
        old_output = next(iter(reversed(self.program.graph.nodes)))
        self.output.meta = dict(old_output.meta)
        self.inputs = [(spec, nodes[str(spec.arg.name)]) for spec in signature.input_specs]
        self.outputs = list(zip(signature.output_specs, self.output.args[0], strict=True))
        self.nodes: dict[int, list[fx.Node]] = {number: [] for number in range(self.traced)}
        self.layer_of: dict[fx.Node, int] = {}
        self.place = self.output  # behind which copies go: the last node of a layer
        for old, node in mapping.items():
            number = self._number(old) if node.op == "call_function" and node.target is not torch.ops.aten.copy.default else None
            self.place = node if number == self.traced - 1 else self.place
            if number is not None:
                self.nodes[number].append(node)
                self.layer_of[node] = number
        self.results = [self._result(number) for number in range(self.traced)]
        self.state: dict[str, torch.Tensor] = dict(self.program.state_dict)
        self.constants: dict[str, Any] = dict(self.program.constants)

    def _number(self, node: fx.Node) -> int | None:
        """The layer whose module a node was traced in."""
        for path, _ in node.meta.get("nn_module_stack", {}).values():
            if f".{path}".startswith(f".{self.path}."):
                return int(path[len(self.path) + 1 :].split(".")[0])
        return None

    def _result(self, number: int) -> fx.Node:
        """The one value of a layer that the graph behind it reads."""
        own = set(self.nodes[number])
        found = {node for node in own for user in node.users if user not in own and user is not self.output}
        if len(found) != 1:
            raise NotRepeatedError(f"layer {number} has {len(found)} results")
        return found.pop()

    @property
    def weights(self) -> dict[str, fx.Node]:
        """Return the placeholders of weights, by the names of these."""
        return {str(spec.target): node for spec, node in self.inputs if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER)}

    @property
    def given(self) -> list[fx.Node]:
        """Return the placeholders of user inputs."""
        return [node for spec, node in self.inputs if spec.kind == InputKind.USER_INPUT]

    def add(self, number: int, template: int, layer: nn.Module) -> None:
        """Copy the nodes of a layer for another one, which is behind all that there are."""
        copies: dict[fx.Node, fx.Node] = {self.results[template - 1]: self.results[number - 1]}
        before = f"{self.path}.{template}."
        for name, node in self.weights.items():
            if name.startswith(before):
                own = f"{self.path}.{number}.{name[len(before) :]}"
                copies[node] = self._weight(own, node, _tensor(layer, name[len(before) :]))
        cache = None if self.first_cache is None else self.given[self.first_cache + template]
        if cache is not None:
            copies[cache] = self._cache(number, cache)
        made: list[fx.Node] = []
        place = self.place
        for node in self.nodes[template]:
            for needed in node.all_input_nodes:
                if needed not in copies and self.layer_of.get(needed) is not None:
                    raise NotRepeatedError(f"layer {template} reads another layer's {needed.name}")
            with self.graph.inserting_after(place):
                place = copies[node] = self.graph.node_copy(node, lambda each: copies.get(each, each))
            made.append(place)
        self.nodes[number], self.place = made, place
        self.layer_of.update(dict.fromkeys(made, number))
        self.results.append(copies[self.results[template]])
        if cache is not None:
            self._output(cache, copies)

    def _weight(self, name: str, like: fx.Node, value: torch.Tensor) -> fx.Node:
        weights = [index for index, (spec, _) in enumerate(self.inputs) if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER)]
        spec = next(spec for spec, node in self.inputs if node is like)
        node = self._placeholder(weights[-1], like, f"p_{name.replace('.', '_')}")
        self.inputs.insert(weights[-1] + 1, (InputSpec(spec.kind, TensorArgument(node.name), name, spec.persistent), node))
        (self.constants if spec.persistent is False else self.state)[name] = value
        return node

    def _cache(self, number: int, like: fx.Node) -> fx.Node:
        last = next(index for index, (_, node) in enumerate(self.inputs) if node is self.given[-1])
        node = self._placeholder(last, like, f"caches_{number}")
        self.inputs.insert(last + 1, (InputSpec(InputKind.USER_INPUT, TensorArgument(node.name), None), node))
        return node

    def _placeholder(self, behind: int, like: fx.Node, name: str) -> fx.Node:
        with self.graph.inserting_after(self.inputs[behind][1]):
            node = self.graph.placeholder(name)
        node.meta = dict(like.meta)
        return node

    def _output(self, cache: fx.Node, copies: Mapping[fx.Node, fx.Node]) -> None:
        """The new value of the copy's cache, behind those of the others."""
        places = [index for index, (spec, _) in enumerate(self.outputs) if spec.kind == OutputKind.USER_INPUT_MUTATION]
        value = next((value for spec, value in self.outputs if spec.target == cache.name), None)
        if value is None or value not in copies:
            raise NotRepeatedError(f"{cache.name} isn't updated in its layer")
        new = copies[value]
        spec = OutputSpec(OutputKind.USER_INPUT_MUTATION, TensorArgument(new.name), copies[cache].name)
        self.outputs.insert(places[-1] + 1, (spec, new))

    def finished(self) -> ExportedProgram:
        """The program: what read the last traced layer reads the last one."""
        last, end = self.results[self.traced - 1], self.results[-1]
        members = set(self.layer_of)
        last.replace_all_uses_with(end, delete_user_cb=lambda user: user not in members)
        values = [end if value is last else value for _, value in self.outputs]
        self.output.args = (tuple(values),)
        self.graph.lint()
        module = fx.GraphModule(self.program.graph_module, self.graph)
        module.meta = dict(self.program.graph_module.meta)
        specs = [spec for spec, _ in self.outputs]
        outputs = [OutputSpec(spec.kind, TensorArgument(value.name), spec.target) for spec, value in zip(specs, values, strict=True)]
        signature = ExportGraphSignature([spec for spec, _ in self.inputs], outputs)
        return ExportedProgram(
            root=module,
            graph=self.graph,
            graph_signature=signature,
            state_dict=self.state,
            range_constraints=self.program.range_constraints,
            module_call_graph=self.program.module_call_graph,
            example_inputs=None,
            constants=self.constants,
            verifiers=self.program.verifiers,
        )


def _tensor(layer: nn.Module, name: str) -> torch.Tensor:
    path, _, key = name.rpartition(".")
    found: torch.Tensor = getattr(layer.get_submodule(path), key)
    return found
