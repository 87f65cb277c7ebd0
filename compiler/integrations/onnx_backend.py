"""llmos as a backend of ONNX (onnx.backend.base): a model is compiled to an artifact for this machine's processor, loaded, and run.

    from llmos.compiler.integrations.onnx_backend import LlmosBackend
    outputs = LlmosBackend.prepare(onnx.load("m.onnx")).run([x])

ONNX's own standard suite, as a unittest module:

    import onnx.backend.test
    from llmos.compiler.integrations.onnx_backend import LlmosBackend
    backend_test = onnx.backend.test.BackendTest(LlmosBackend, __name__)
    globals().update(backend_test.enable_report().test_cases)
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.backend.base import Backend, BackendRep, Device, DeviceType, namedtupledict

from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver import compile
from llmos.compiler.frontend.coverage import Row, check_onnx
from llmos.compiler.frontend.onnx import compile_time_inputs, import_onnx
from llmos.compiler.frontend.onnx.containers import with_plain_inputs
from llmos.compiler.frontend.onnx.dtypes import from_storage, to_storage
from llmos.runtime.artifact.manifest import TensorSpec
from llmos.runtime.errors import InputError, UnsupportedError
from llmos.runtime.program import Program, load

Key: TypeAlias = tuple[Any, ...]

# Code for one machine that lives as long as the process, whose numbers the caller compares; a refused model leaves nothing behind.
NATIVE = CompileOptions(target="native", jobs=1, cache=False, repro=None, accuracy_report=False)
SEED = "llmos_seed"  # the input that a model gets where it draws random numbers


class LlmosBackend(Backend):  # type: ignore[misc]
    """Compiles ONNX models and runs them on the CPU."""

    @classmethod
    def supports_device(cls, device: str) -> bool:
        return bool(Device(device).type == DeviceType.CPU)

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether every op of the model can be compiled."""
        from llmos.compiler.frontend.onnx import unsupported_ops

        return cls.supports_device(device) and not unsupported_ops(model)

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> LlmosModel:
        """The model, checked; it is compiled at its first run. `options`: CompileOptions in place of this machine's. `seed`: an int64 that
        the model's random numbers follow from; without it a model that draws any is refused at its first run.

        Raises UnsupportedError for what can't be compiled, UserError for a model that isn't valid.
        """
        if not cls.supports_device(device):
            raise UnsupportedError(f"device {device} isn't supported; llmos compiles for CPU")
        prepared = LlmosModel(model, kwargs.get("options", NATIVE), kwargs.get("seed"))
        prepared.check()
        return prepared

    @classmethod
    def run_node(cls, node: onnx.NodeProto, inputs: Any, device: str = "CPU", outputs_info: Any = None, **kwargs: Any) -> tuple[Any, ...]:
        """One op on its inputs, in order; `opset_version` says which version of it (default the newest)."""
        version = kwargs.get("opset_version", onnx.defs.onnx_opset_version())
        return tuple(cls.prepare(_model_of(node, [np.asarray(value) for value in inputs], version), device).run(inputs))


@dataclass
class LlmosModel(BackendRep):  # type: ignore[misc]
    """A prepared model. Sequences are lists of arrays, an empty optional is None.

    Inputs that some op needs before any kernel runs (the shape of Reshape, the axes of a reduction) are compiled in: there is one program
    for each of their values that is met, and for each length of a sequence.
    """

    model: onnx.ModelProto
    options: CompileOptions = NATIVE
    seed: int | None = None
    _programs: dict[Key, _Compiled] = field(default_factory=dict)

    @property
    def input_names(self) -> tuple[str, ...]:
        held = {tensor.name for tensor in self.model.graph.initializer}
        return tuple(value.name for value in self.model.graph.input if value.name not in held)

    def check(self) -> None:
        """Raises UnsupportedError if an op of the model has no meaning here."""
        compile_time_inputs(self.model)

    def problems(self, inputs: Any) -> list[Row]:
        """What `llmos check` says of the model with these inputs: every op that doesn't compile, none where all do."""
        model, arrays = with_plain_inputs(self.model, self._named(inputs))
        found: list[Row] = []
        for bound in _bindings(model):
            examples = [array for name, array in arrays.items() if name not in bound]
            rows = check_onnx(model, {name: arrays[name] for name in bound}, examples)
            found = [row for row in rows if not row.supported]
            if not found:
                break
        return found

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Outputs in the model's order, as a named tuple, for inputs in its order or by name; arrays of numpy's and ml_dtypes' types."""
        model, arrays = with_plain_inputs(self.model, self._named(inputs))
        outputs = self._program_for(model, arrays).run(arrays)
        return tuple(namedtupledict("Outputs", [value.name for value in self.model.graph.output])(*outputs))

    def _named(self, inputs: Any) -> dict[str, Any]:
        names = self.input_names
        feed = dict(inputs) if isinstance(inputs, Mapping) else dict(zip(names, inputs, strict=False))
        if set(feed) != set(names):
            raise InputError(f"the model takes {len(names)} inputs ({', '.join(names)}), not {len(feed)}")
        return {name: feed[name] for name in names}

    def _program_for(self, model: onnx.ModelProto, arrays: Mapping[str, np.ndarray]) -> _Compiled:
        *first, last = _bindings(model)
        for bound in first:
            try:
                return self._compiled(model, arrays, bound)
            except UnsupportedError:
                continue
        return self._compiled(model, arrays, last)

    def _compiled(self, model: onnx.ModelProto, feed: Mapping[str, np.ndarray], bound: frozenset[str]) -> _Compiled:
        values = {name: feed[name] for name in sorted(bound)}
        key: Key = (tuple(feed), *((name, value.dtype.str, value.shape, value.tobytes()) for name, value in values.items()))
        if key not in self._programs:
            self._programs[key] = _compile(model, feed, values, self.options, self.seed)
        return self._programs[key]


@dataclass(frozen=True)
class _Compiled:
    """A loaded program, the names of the inputs that it takes, the element types of the tensors that it gives, and what its seed is."""

    program: Program
    inputs: tuple[str, ...]
    elem_types: Mapping[str, int]
    seed: int | None

    def run(self, feed: Mapping[str, np.ndarray]) -> list[Any]:
        arrays_in = [to_storage(feed[name]) for name in self.inputs]
        draws = len(self.program["main"].inputs) > len(self.inputs)
        answer = self.program(*arrays_in, *([np.asarray(self.seed, np.int64)] if draws else []))
        arrays = answer if isinstance(answer, tuple) else (answer,)
        found = [self._typed(array, spec) for array, spec in zip(arrays, self.program["main"].outputs, strict=True)]
        outputs = self.program.manifest.metadata.get("onnx_outputs")
        return found if outputs is None else _gathered(found, outputs)

    def _typed(self, array: np.ndarray, spec: TensorSpec) -> np.ndarray:
        elem_type = onnx.TensorProto.BFLOAT16 if spec.dtype == "bfloat16" else self.elem_types.get(spec.name, 0)
        return from_storage(array, elem_type)


def _gathered(arrays: Sequence[np.ndarray], outputs: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The outputs of the model from the tensors of the program: sequences as lists, an empty optional as None."""
    queue = iter(arrays)
    found: list[Any] = []
    for output in outputs:
        length = output.get("length")
        found.append(None if output.get("absent") else next(queue) if length is None else [next(queue) for _ in range(length)])
    return found


def _bindings(model: onnx.ModelProto) -> list[frozenset[str]]:
    """Inputs to compile in: those that must be known, then those as well that decide which branches are taken."""
    return list(dict.fromkeys((compile_time_inputs(model), compile_time_inputs(model, conditions=True))))


def _compile(
    model: onnx.ModelProto, feed: Mapping[str, np.ndarray], bound: Mapping[str, np.ndarray], options: CompileOptions, seed: int | None
) -> _Compiled:
    held = {tensor.name for tensor in model.graph.initializer}
    names = tuple(value.name for value in model.graph.input if value.name not in held and value.name not in bound)
    imported = import_onnx(model, bind=bound, example_args=[feed[name] for name in names], random="" if seed is None else SEED)
    artifact = compile(imported, options=options)
    with tempfile.TemporaryDirectory(prefix="llmos-backend-") as folder:
        path = Path(folder) / "model.llmos"
        artifact.save(path)
        # The file stays mapped after its name is gone.
        return _Compiled(load(path), names, _elem_types(model.graph.output), seed)


def _elem_types(outputs: Sequence[onnx.ValueInfoProto]) -> dict[str, int]:
    return {value.name: value.type.tensor_type.elem_type for value in outputs if value.type.HasField("tensor_type")}


def _model_of(node: onnx.NodeProto, inputs: Sequence[np.ndarray], version: int) -> onnx.ModelProto:
    """A model of one node; output types as shape inference finds them."""
    names = [name for name in node.input if name]
    values = [
        helper.make_tensor_value_info(name, numpy_helper.from_array(array).data_type, array.shape)
        for name, array in zip(names, inputs, strict=True)
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
    graph = helper.make_graph([node], node.op_type, values, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(node.domain, version)])


prepare = LlmosBackend.prepare
run_model = LlmosBackend.run_model
run_node = LlmosBackend.run_node
supports_device = LlmosBackend.supports_device
