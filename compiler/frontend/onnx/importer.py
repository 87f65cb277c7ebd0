"""Import of ONNX: run the graph as torch functions, export it by torch.export, and import the result as a torch program."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.export import Dim, ExportedProgram

from llmos.compiler.frontend.loading import QuietTorch, first_line
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.frontend.onnx.compile_time import compile_time_inputs as _compile_time_inputs
from llmos.compiler.frontend.onnx.dtypes import to_numpy, to_torch
from llmos.compiler.frontend.onnx.execution import fold_graph
from llmos.compiler.frontend.onnx.exporting import export_module
from llmos.compiler.frontend.onnx.functions import expand_functions
from llmos.compiler.frontend.onnx.graph import Problem, find_problems, parse_graph
from llmos.compiler.frontend.onnx.loading import LoadedModel, Source, load_model
from llmos.compiler.frontend.onnx.low_precision import FORMATS, codes_of
from llmos.compiler.frontend.onnx.module import OnnxModule
from llmos.compiler.frontend.onnx.reference import OnnxReference
from llmos.compiler.frontend.onnx.symbols import (
    InputSpec,
    Range,
    candidate_sizes,
    check_names,
    dynamic_shapes,
    example_inputs,
    input_specs,
    renamed,
    symbols_of,
    with_static,
)
from llmos.compiler.frontend.onnx.trial import ZerosForMissingKernels
from llmos.compiler.frontend.onnx.values import ConstantValue
from llmos.runtime.errors import LlmosError, UnsupportedError, UserError

Dynamic = Mapping[str, Range | int] | Sequence[str] | None


@dataclass(frozen=True)
class OnnxProgram:
    """An ONNX model as a module and as an exported program, with its example inputs."""

    model: LoadedModel
    module: OnnxModule
    program: ExportedProgram
    inputs: tuple[InputSpec, ...]
    output_names: tuple[str, ...]
    examples: tuple[torch.Tensor, ...]
    bound: Mapping[str, np.ndarray]
    notes: tuple[str, ...]
    ranges: Mapping[str, Range]

    @property
    def dynamic_shapes(self) -> tuple[tuple[dict[int, Dim] | None, ...]] | None:
        """Return torch.export's dynamic shapes by the names of the dimensions; the module takes *args, which are one entry."""
        shapes = dynamic_shapes(self.inputs, self.ranges)
        return (shapes,) if shapes is not None else None

    @property
    def reference(self) -> OnnxReference:
        """Return the reference of the accuracy report: the unmodified model, run on arrays."""
        return OnnxReference(self.model, self.inputs, self.bound, self.module)


def import_onnx(
    source: Source,
    *,
    dynamic: Dynamic = None,
    bind: Mapping[str, np.ndarray | int | float] | None = None,
    example_args: Sequence[np.ndarray] | None = None,
    name: str | None = None,
    random: str = "",
) -> ImportedModel:
    """Import an .onnx file (or ModelProto) as linalg on tensors, with its weights stored separately.

    `dynamic` configures the dynamic dimensions: None keeps the file's names; a mapping gives a dimension a range (min, max) or fixes it
    to a size; a sequence of names renames them in order. `bind` fixes inputs to constants and removes them from the inputs.
    `example_args` are inputs to trace with, in order, if random ones don't work. `random` as in import_torch; the ops' `seed`
    attributes are ignored then.

    Raises UserError for a file that isn't ONNX, UnsupportedError for unknown ops (all of them at once).
    """
    from llmos.compiler.frontend.torch import import_torch

    exported = export_onnx(source, dynamic=dynamic, bind=bind, example_args=example_args)
    return import_torch(
        exported.program,
        exported.examples,
        exported.dynamic_shapes,
        input_names=[spec.name for spec in exported.inputs],
        output_names=list(exported.output_names),
        name=name or exported.model.name,
        metadata=_metadata(exported),
        reference=exported.reference,
        random=random,
    )


def _metadata(exported: OnnxProgram) -> dict[str, Any]:
    """Return the manifest's metadata: notes, and the sequences and empty optionals among the outputs."""
    found: dict[str, Any] = {"notes": list(exported.notes)} if exported.notes else {}
    results = exported.module.results
    if any(result.tensor_names != (result.name,) for result in results):
        found["onnx_outputs"] = [{"name": result.name, "length": result.length, "absent": result.is_absent} for result in results]
    return found


def export_onnx(
    source: Source,
    *,
    dynamic: Dynamic = None,
    bind: Mapping[str, np.ndarray | int | float] | None = None,
    example_args: Sequence[np.ndarray] | None = None,
) -> OnnxProgram:
    """Export the model by torch.export; arguments and errors as in `import_onnx`."""
    original = load_model(source)
    with QuietTorch(), one_line_errors(original.name):
        return _export_loaded(original, dynamic, bind or {}, example_args)


def _export_loaded(
    original: LoadedModel,
    dynamic: Dynamic,
    bind: Mapping[str, np.ndarray | int | float],
    example_args: Sequence[np.ndarray] | None,
) -> OnnxProgram:
    bound = _bound_arrays(original, bind)
    module = build_module(original, bound)
    specs = tuple(spec for spec in input_specs(original.proto.graph) if spec.name not in bound)
    specs, ranges = _apply_dynamic(specs, dynamic)
    examples = _examples(module, specs, ranges, example_args)
    exported = export_module(module, specs, ranges, examples)
    names = tuple(name for result in module.results for name in result.tensor_names)
    return OnnxProgram(original, module, exported.program, exported.inputs, names, examples, bound, exported.notes, ranges)


@contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Convert errors of numpy and torch to an UnsupportedError that names the node."""
    try:
        yield
    except LlmosError:
        raise
    except Exception as error:
        node = next((note for note in getattr(error, "__notes__", ()) if note.startswith("in ONNX node")), "")
        refusal = UnsupportedError(f"'{name}' can't run{f': {node}' if node else ''}: {first_line(error)[:300]}")
        if node:
            refusal.add_note(node)
        raise refusal from error


def unsupported_ops(source: Source) -> list[Problem]:
    """Return every node without a torch function, or with an attribute or input that its function doesn't take."""
    loaded = load_model(source)
    with one_line_errors(loaded.name):
        model = expand_functions(loaded)
        return find_problems(model.proto.graph, model.versions, model.reader)


def compile_time_inputs(source: Source, conditions: bool = False) -> frozenset[str]:
    """Return the inputs that must be bound to constants to compile the model: shapes, axes, trip counts (compile_time.py)."""
    return _compile_time_inputs(build_module(load_model(source), {}).graph, conditions)


def build_module(original: LoadedModel, bound: Mapping[str, np.ndarray]) -> OnnxModule:
    """Build a module, with bound inputs as constants. Raises UnsupportedError that names every node that can't be compiled."""
    model = expand_functions(original)
    problems = find_problems(model.proto.graph, model.versions, model.reader)
    if problems:
        raise UnsupportedError(_describe(model.name, problems))
    parsed = parse_graph(model.proto.graph, model.versions, model.reader)
    constants = dict(parsed.constants) | {name: ConstantValue(array, array.dtype) for name, array in bound.items()}
    inputs = tuple(name for name in parsed.inputs if name not in bound)
    types = {value.name: value.type.tensor_type.elem_type for value in original.proto.graph.input}
    low_precision = {name: types[name] for name in inputs if types.get(name) in FORMATS}
    return OnnxModule(fold_graph(replace(parsed, inputs=inputs, constants=constants)), low_precision).eval()


def _describe(name: str, problems: Sequence[Problem]) -> str:
    by_op: dict[str, list[Problem]] = {}
    for problem in problems:
        by_op.setdefault(problem.op, []).append(problem)
    parts = [f"{op} ({len(found)} node{'s' if len(found) > 1 else ''}, e.g. '{found[0].node}')" for op, found in by_op.items()]
    return f"'{name}' uses ops that can't be compiled yet: {', '.join(parts)}; `llmos check` lists each node. First: {problems[0].reason}"


def _bound_arrays(model: LoadedModel, bind: Mapping[str, np.ndarray | int | float]) -> dict[str, np.ndarray]:
    specs = {spec.name: spec for spec in input_specs(model.proto.graph)}
    bound = {}
    for name, value in bind.items():
        if name not in specs:
            raise UserError(f"the model has no input '{name}' to bind; it has: {', '.join(specs)}.")
        if specs[name].low_precision:
            bound[name] = np.asarray(value)
            continue
        tensor = to_torch(value) if isinstance(value, np.ndarray) else torch.as_tensor(value)
        bound[name] = to_numpy(tensor.to(specs[name].dtype))
    return bound


def _apply_dynamic(specs: tuple[InputSpec, ...], dynamic: Dynamic) -> tuple[tuple[InputSpec, ...], dict[str, Range]]:
    if dynamic is None:
        return specs, {}
    if not isinstance(dynamic, Mapping):
        return renamed(specs, tuple(dynamic)), {}
    check_names(dynamic, specs)
    specs = with_static(specs, {name: value for name, value in dynamic.items() if isinstance(value, int)})
    return specs, {name: value for name, value in dynamic.items() if not isinstance(value, int)}


def _examples(
    module: OnnxModule, specs: Sequence[InputSpec], ranges: Mapping[str, Range], given: Sequence[np.ndarray] | None
) -> tuple[torch.Tensor, ...]:
    """Return example inputs: the given ones, or random ones of the first sizes that the model accepts."""
    if given is not None:
        if len(given) != len(specs):
            raise UserError(f"{len(given)} example inputs for the model's {len(specs)}: give one for each of {[s.name for s in specs]}.")
        arrays = [
            codes_of(np.asarray(value)) if spec.low_precision else np.asarray(value) for value, spec in zip(given, specs, strict=True)
        ]
        return tuple(to_torch(array).to(spec.dtype) for array, spec in zip(arrays, specs, strict=True))
    if not symbols_of(specs):
        return example_inputs(specs, {})
    failure: Exception | None = None
    for sizes, small in itertools.product(candidate_sizes(specs, ranges), (False, True)):
        inputs = example_inputs(specs, sizes, small=small)
        try:
            with torch.no_grad(), ZerosForMissingKernels():  # type: ignore[no-untyped-call]
                module(*inputs)
        except UserError:
            raise
        except (RuntimeError, ValueError, IndexError, ZeroDivisionError) as error:
            failure = error
            continue
        return inputs
    place = "; ".join(getattr(failure, "__notes__", []))
    raise UserError(
        f"the model runs at none of the sizes that were tried for {', '.join(symbols_of(specs)) or 'its inputs'} ({failure}; {place}): "
        "give example inputs, or fix dimensions with dynamic={name: size} (--dynamic name=size)."
    )
