"""Imports torch models: an nn.Module with example inputs, an ExportedProgram, or a .pt2 file, as the linalg stage (docs/frontend.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from llmos.compiler.frontend.bounds import require_bounds
from llmos.compiler.frontend.builder import Builder, Iota, Meta, Splat, Tensor
from llmos.compiler.frontend.cleanup import clean
from llmos.compiler.frontend.dims import ComputedSize, IndexValues, Shape, Sizes, plain_text
from llmos.compiler.frontend.exporting import (
    ProgramInput,
    Source,
    check_outputs,
    export,
    mutated_inputs,
    outputs_in_order,
    over_real_numbers,
    program_inputs,
)
from llmos.compiler.frontend.fallback_subgraphs import FallbackSubgraphs
from llmos.compiler.frontend.graph import GraphLowering
from llmos.compiler.frontend.guards import find_conditions
from llmos.compiler.frontend.model import ImportedModel, Reference, with_quantization
from llmos.compiler.frontend.references import reference_of, seeded_reference, to_numpy
from llmos.compiler.frontend.results import as_result, complex_outputs, dtype_name, output_names, output_nodes
from llmos.compiler.frontend.seeding import draws
from llmos.compiler.frontend.symbols import find_symbols
from llmos.compiler.ir.attributes import COMPUTED, GUARDS, INPUT, STATE, SYMBOLS, UPDATES, WEIGHT, ranges_attribute, tensor_attributes
from llmos.compiler.ir.bindings import arith, context, func, ir, tensor
from llmos.compiler.ir.weights import Weight
from llmos.runtime.errors import InputError

SMALL_BUFFER_BYTES = 1 << 20  # integer buffers up to this size are inspected for ranges and constants


def import_torch(
    source: Source,
    example_args: Sequence[torch.Tensor] | None = None,
    dynamic_shapes: Any = None,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    name: str = "model",
    assets: Mapping[str, bytes] | None = None,
    metadata: Mapping[str, Any] | None = None,
    weights: Mapping[str, Weight] | None = None,
    reference: Reference | None = None,
    ir_context: ir.Context | None = None,
    random: str = "",
) -> ImportedModel:
    """Import a torch model as linalg on tensors, with its weights stored separately.

    `dynamic_shapes` is torch.export's; the names of its `Dim`s become the program's symbols, unnamed ones s0, s1, ... in input order.
    `weights` replaces the values of parameters and buffers by name (for weights that stay mmapped in their file).
    `random` names the seed input, int64 [], added if the model draws random numbers (seeding.py); "" rejects such a model.
    `reference` replaces the eager run of the module. Raises UnsupportedError, naming op and line, InputError for missing or unfit inputs.
    """
    exported = export(source, example_args, dynamic_shapes, random)
    is_seeded = draws(exported)
    given_args = _given_args(exported, example_args, is_seeded)
    check_outputs(exported)
    program = over_real_numbers(exported)
    arguments = program_inputs(program)
    states = [a for a in arguments if a.kind == "state"]
    names = [*input_names, random] if input_names is not None and is_seeded else input_names
    inputs = _renamed([a for a in arguments if a.kind == "input"], names, "input_names") + states
    given = dict(weights or {})
    sizes = find_symbols(program, [each.node for each in inputs], dynamic_shapes, len(states) + is_seeded)
    conditions, unread = find_conditions(exported, sizes)
    notes = tuple(f"a condition on the sizes of inputs isn't checked at calls: {text}" for text in unread)
    lowering = _Function(program, inputs, [a for a in arguments if a.kind == "weight"], sizes, output_names, conditions)
    module, used = lowering.build(ir_context or context())
    return ImportedModel(
        name=name,
        module=module,
        weights={w.name: given.get(w.name) or _weight(w) for w in [*used, *states]},
        reference=seeded_reference(exported) if is_seeded else reference or reference_of(source, exported, program_inputs(exported)),
        examples=_examples(given_args, inputs),
        assets=dict(assets or {}),
        metadata=with_quantization(_with_notes(metadata or {}, notes), module),
    )


def _with_notes(metadata: Mapping[str, Any], notes: Sequence[str]) -> dict[str, Any]:
    return {**metadata, "notes": [*metadata.get("notes", ()), *notes]} if notes else dict(metadata)


def _given_args(program: ExportedProgram, example_args: Sequence[Any] | None, is_seeded: bool) -> Sequence[Any] | None:
    """Return example values of the inputs, including the seed; by default those that the program was exported with."""
    if example_args is None:
        return program.example_inputs[0] if program.example_inputs else None
    return (*example_args, torch.tensor(0)) if is_seeded else example_args


def _weight(argument: ProgramInput) -> Weight:
    return torch_weight(_given_value(argument) if argument.kind == "state" else _tensor_of(argument))


def _given_value(argument: ProgramInput) -> torch.Tensor:
    """Return a weight's or a state's value as the caller sees it."""
    value = _tensor_of(argument)
    return torch.view_as_complex(value.detach()) if argument.is_complex else value


def torch_weight(value: torch.Tensor) -> Weight:
    """Return a Weight that reads a torch tensor on load, without a copy if it is dense; bfloat16 as uint16."""
    return Weight(
        dtype_name(value.real.dtype if value.is_complex() else value.dtype, value.is_complex()), tuple(value.shape), lambda: to_numpy(value)
    )


def _tensor_of(weight: ProgramInput) -> torch.Tensor:
    assert weight.tensor is not None
    return weight.tensor


def _renamed(inputs: list[ProgramInput], names: Sequence[str] | None, what: str) -> list[ProgramInput]:
    if names is None:
        return inputs
    if len(names) != len(inputs):
        raise InputError(f"{what} has {len(names)} names ({', '.join(names)}), the model has {len(inputs)} tensors there")
    return [replace(each, name=name) for each, name in zip(inputs, names, strict=True)]


def _examples(args: Sequence[torch.Tensor] | None, inputs: Sequence[ProgramInput]) -> tuple[tuple[np.ndarray, ...], ...]:
    if args is None:
        return ()
    count = len(inputs)
    tensors = [arg for arg in torch.utils._pytree.tree_leaves(tuple(args)) if isinstance(arg, torch.Tensor)]
    tensors += [_given_value(each) for each in inputs if each.kind == "state"]
    return (tuple(to_numpy(each).copy() for each in tensors),) if len(tensors) == count and not any(t.is_meta for t in tensors) else ()


@dataclass(frozen=True)
class _Function:
    """The one public function `main` of a program."""

    program: ExportedProgram
    inputs: Sequence[ProgramInput]
    weights: Sequence[ProgramInput]
    sizes: Sizes
    output_names: Sequence[str] | None
    conditions: Sequence[str] = ()

    def build(self, ctx: ir.Context) -> tuple[ir.Module, list[ProgramInput]]:
        """Build the module; return it and the weights that its function takes, in order."""
        distinct = _distinct(self.weights)
        with ctx, ir.Location.unknown():
            module, fallback_subgraphs = ir.Module.create(), FallbackSubgraphs()
            kinds = [Builder(self.sizes, _no_indices()).type(*self._meta(each)) for each in [*self.inputs, *distinct.values()]]
            with ir.InsertionPoint(module.body):
                function = func.FuncOp("main", (kinds, []))
            results = self._fill(function, list(distinct.values()), distinct, fallback_subgraphs)
            function.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(kinds, [each.value.type for each in results]))
            fallback_subgraphs.inline_into(module)
            used = clean(module, len(self.inputs), list(distinct.values()))
            self._annotate(module, used, results)
        return module, used

    @property
    def _states(self) -> list[ProgramInput]:
        return [each for each in self.inputs if each.kind == "state"]

    def _meta(self, each: ProgramInput) -> tuple[Shape, torch.dtype]:
        value = each.node.meta["val"]
        return self.sizes.shape(value.shape), value.dtype

    def _fill(
        self,
        function: func.FuncOp,
        weights: Sequence[ProgramInput],
        distinct: Mapping[str, ProgramInput],
        fallback_subgraphs: FallbackSubgraphs,
    ) -> list[Tensor]:
        block = function.add_entry_block()
        with ir.InsertionPoint(block):
            values = dict(zip([each.name for each in self.inputs], block.arguments, strict=False))
            dims = {s.expr: tensor.dim(block.arguments[s.argument], _index_constant(s.axis)) for s in self.sizes.symbols}
            anchor = arith.ConstantOp(ir.IndexType.get(), 0)
            builder = Builder(self.sizes, IndexValues(anchor.operation, dims))
            lowering = GraphLowering(builder, self.sizes, fallback_subgraphs)
            values |= dict(zip([f"weight {each.name}" for each in weights], list(block.arguments)[len(self.inputs) :], strict=True))
            for each in self.inputs:
                lowering.bind(each.node, builder.dense_tensor(values[each.name], *self._meta(each)))
            for each in self.weights:
                kept = distinct[each.name]
                lowering.bind(each.node, self._weight_tensor(builder, kept, values[f"weight {kept.name}"]))
            results = [as_result(builder, each) for each in self._returned(lowering.run(self.program.graph))]
            require_bounds(self.sizes, [dim for each in results for dim in each.shape])
            func.ReturnOp([each.value for each in results])
        return results

    def _returned(self, values: Sequence[Any]) -> list[Any]:
        """Reorder the graph's outputs to the function's results: outputs, new states, new values of inputs."""
        outputs, states, updates = outputs_in_order(self.program, list(zip(values, output_nodes(self.program), strict=True)))
        return [value for value, node in (*outputs, *states, *updates) if node is not None]

    def _weight_tensor(self, builder: Builder, weight: ProgramInput, value: ir.Value) -> Tensor:
        shape, dtype = self._meta(weight)
        tensor_value = _tensor_of(weight)
        plain = builder.dense_tensor(value, shape, dtype)
        if dtype not in (torch.int64, torch.int32, torch.bool) or tensor_value.is_meta or tensor_value.nbytes > SMALL_BUFFER_BYTES:
            return plain
        return _recognised(builder, plain, tensor_value)

    def _annotate(self, module: ir.Module, weights: Sequence[ProgramInput], results: Sequence[Tensor]) -> None:
        function = next(op for op in module.body.operations if isinstance(op, func.FuncOp))
        arguments = [*self.inputs, *weights]
        function.arg_attrs = ir.ArrayAttr.get([self._argument_attributes(each) for each in arguments])
        function.attributes["res_attrs"] = ir.ArrayAttr.get(self._result_attributes(results))
        module.operation.attributes[SYMBOLS] = ranges_attribute({s.name: (s.min, s.max) for s in self.sizes.symbols})
        if self.conditions:
            module.operation.attributes[GUARDS] = ir.ArrayAttr.get([ir.StringAttr.get(text) for text in self.conditions])
        if self.sizes.computed:
            module.operation.attributes[COMPUTED] = ir.DictAttr.get({each.size.name: _computed(each) for each in self.sizes.computed})

    def _result_attributes(self, results: Sequence[Tensor]) -> list[ir.DictAttr]:
        states = [each.name for each in self._states]
        updates = [self._input_names[name] for name in mutated_inputs(self.program)]
        count = len(results) - len(states) - len(updates)
        names = self.output_names or output_names(self.program, outputs_in_order(self.program, output_nodes(self.program))[0])
        if len(names) != count:
            raise InputError(f"output_names has {len(names)} names, the model has {count} outputs")
        flags = self._returned(complex_outputs(self.program))
        dtypes = iter([dtype_name(each.dtype, flag) for each, flag in zip(results, flags, strict=True)])
        named = [tensor_attributes(name, next(dtypes)) for name in names]
        named += [tensor_attributes(state_name(name), next(dtypes), marks={STATE: name}) for name in states]
        return named + [tensor_attributes(updated_name(name), next(dtypes), marks={UPDATES: name}) for name in updates]

    @property
    def _input_names(self) -> dict[str, str]:
        """Map the placeholders' names to the inputs' names."""
        return {each.node.name: each.name for each in self.inputs}

    def _argument_attributes(self, each: ProgramInput) -> ir.DictAttr:
        shape, dtype = self._meta(each)
        is_state = each.kind == "state"
        is_weight = each.kind == WEIGHT
        return tensor_attributes(
            state_name(each.name) if is_state else each.name,
            dtype_name(dtype, each.is_complex and not is_weight),
            kind=WEIGHT if is_weight else INPUT,
            shape=None if is_weight else [d if isinstance(d, int) else str(d) for d in shape],
            marks={STATE: each.name} if is_state else {},
        )


def _computed(each: ComputedSize) -> ir.DictAttr:
    """Return the attribute that describes a computed size to the passes (compiler/ir/sizes.py)."""
    limits = ir.DenseI64ArrayAttr.get([each.size.min, each.size.max])
    texts = {"bound": plain_text(each.bound), "equals": "" if each.equals is None else plain_text(each.equals)}
    return ir.DictAttr.get({"range": limits, **{key: ir.StringAttr.get(text) for key, text in texts.items()}})


def _no_indices() -> Any:
    return None


def _index_constant(value: int) -> ir.Value:
    return arith.ConstantOp(ir.IndexType.get(), value).result


def state_name(buffer: str) -> str:
    """Return the name of a state's input and output, distinct from the model's own."""
    return f"state.{buffer}"


def updated_name(name: str) -> str:
    """Return the name of an input's new value in accuracy reports."""
    return f"updated.{name}"


def _distinct(weights: Sequence[ProgramInput]) -> dict[str, ProgramInput]:
    """Map each weight's name to the weight that is passed for it: tied weights share one argument."""
    first: dict[Any, ProgramInput] = {}
    chosen = {}
    for weight in weights:
        value = _tensor_of(weight)
        key = (
            weight.name
            if value.is_meta
            else (
                *(value.data_ptr(), tuple(value.shape), value.stride(), value.dtype, id(value) if value.numel() == 0 else 0),
                *(value.is_neg(), value.is_conj()),
            )
        )
        chosen[weight.name] = first.setdefault(key, weight)
    return chosen


def _recognised(builder: Builder, plain: Tensor, values: torch.Tensor) -> Tensor:
    """Record the fact of a buffer that holds 0, 1, 2, ... along its last dimension, or a splat."""
    if values.numel() == 0 or values.dim() == 0:
        return plain
    flat = values.reshape(-1, values.shape[-1])
    if bool((flat == flat[0, 0]).all()):
        return builder.full(plain.shape, plain.dtype, flat[0, 0].item())
    if flat.shape[1] < 2 or values.dtype == torch.bool:
        return plain
    step = int(flat[0, 1] - flat[0, 0])
    expected = flat[0, 0] + step * torch.arange(flat.shape[1], dtype=values.dtype)
    if step and bool((flat == expected).all()):
        return Tensor(plain.value, plain.shape, plain.dtype, plain.axes, Iota(values.dim() - 1, int(flat[0, 0]), step))
    return plain


__all__ = ["Meta", "Splat", "import_torch", "to_numpy", "torch_weight"]
