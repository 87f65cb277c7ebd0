"""llmos as a backend of ONNX (onnx.backend.base): a model is compiled to an artifact for this machine's processor, loaded, and run.

    from llmos.compiler.onnx_backend import LlmosBackend
    outputs = LlmosBackend.prepare(onnx.load("m.onnx")).run([x])

ONNX's own standard suite, as a unittest module:

    import onnx.backend.test
    from llmos.compiler.onnx_backend import LlmosBackend
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

from llmos.compiler.driver import compile
from llmos.compiler.frontend.onnx import early_inputs, import_onnx
from llmos.compiler.frontend.onnx.dtypes import from_storage, to_storage
from llmos.compiler.options import CompileOptions
from llmos.runtime.errors import InputError, UnsupportedError
from llmos.runtime.program import Program, load

Key: TypeAlias = tuple[Any, ...]

# Code for one machine that lives as long as the process; a refused model leaves nothing behind.
NATIVE = CompileOptions(target="native", jobs=1, cache=False, repro=None)


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
        """The model, checked; it is compiled at its first run. `options`: CompileOptions in place of this machine's.

        Raises UnsupportedError for what can't be compiled, UserError for a model that isn't valid.
        """
        if not cls.supports_device(device):
            raise UnsupportedError(f"device {device} isn't supported; llmos compiles for CPU")
        prepared = LlmosModel(model, kwargs.get("options", NATIVE))
        prepared.check()
        return prepared

    @classmethod
    def run_node(cls, node: onnx.NodeProto, inputs: Any, device: str = "CPU", outputs_info: Any = None, **kwargs: Any) -> tuple[Any, ...]:
        """One op on its inputs, in order; `opset_version` says which version of it (default the newest)."""
        version = kwargs.get("opset_version", onnx.defs.onnx_opset_version())
        return tuple(cls.prepare(_model_of(node, [np.asarray(value) for value in inputs], version), device).run(inputs))


@dataclass
class LlmosModel(BackendRep):  # type: ignore[misc]
    """A prepared model.

    Inputs that some op needs before any kernel runs (the shape of Reshape, the axes of a reduction) are compiled in: there is one program
    for each of their values that is met, and for each signature of shapes where the model leaves ranks open.
    """

    model: onnx.ModelProto
    options: CompileOptions = NATIVE
    _programs: dict[Key, _Compiled] = field(default_factory=dict)

    @property
    def input_names(self) -> tuple[str, ...]:
        held = {tensor.name for tensor in self.model.graph.initializer}
        return tuple(value.name for value in self.model.graph.input if value.name not in held)

    def check(self) -> None:
        """Raises UnsupportedError if an op of the model has no meaning here."""
        early_inputs(self.model)

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Outputs in the model's order, as a named tuple, for inputs in its order or by name; arrays of numpy's and ml_dtypes' types."""
        names = self.input_names
        feed = dict(inputs) if isinstance(inputs, Mapping) else dict(zip(names, inputs, strict=False))
        if len(feed) != len(names):
            raise InputError(f"the model takes {len(names)} inputs ({', '.join(names)}), not {len(feed)}")
        outputs = self._program_for(feed).run(feed)
        return tuple(namedtupledict("Outputs", [value.name for value in self.model.graph.output])(*outputs))

    def _program_for(self, feed: Mapping[str, Any]) -> _Compiled:
        early = early_inputs(self.model)
        try:
            return self._compiled(feed, early)
        except UnsupportedError:
            conditions = early_inputs(self.model, conditions=True)
            if conditions == early:
                raise
            return self._compiled(feed, conditions)

    def _compiled(self, feed: Mapping[str, Any], bound: frozenset[str]) -> _Compiled:
        values = {name: np.asarray(feed[name]) for name in sorted(bound)}
        key: Key = tuple((name, value.dtype.str, value.shape, value.tobytes()) for name, value in values.items())
        if key not in self._programs:
            self._programs[key] = _compile(self.model, feed, values, self.options)
        return self._programs[key]


@dataclass(frozen=True)
class _Compiled:
    """A loaded program, and the names of the inputs that it takes."""

    program: Program
    inputs: tuple[str, ...]

    def run(self, feed: Mapping[str, Any]) -> list[np.ndarray]:
        answer = self.program(*(to_storage(np.asarray(feed[name])) for name in self.inputs))
        arrays = answer if isinstance(answer, tuple) else (answer,)
        entry = self.program["main"]
        return [from_storage(array, spec.dtype) for array, spec in zip(arrays, entry.outputs, strict=True)]


def _compile(model: onnx.ModelProto, feed: Mapping[str, Any], bound: Mapping[str, np.ndarray], options: CompileOptions) -> _Compiled:
    held = {tensor.name for tensor in model.graph.initializer}
    names = tuple(value.name for value in model.graph.input if value.name not in held and value.name not in bound)
    imported = import_onnx(model, bind=bound, example_args=[np.asarray(feed[name]) for name in names])
    artifact = compile(imported, options=options)
    with tempfile.TemporaryDirectory(prefix="llmos-backend-") as folder:
        path = Path(folder) / "model.llmos"
        artifact.save(path)
        # The file stays mapped after its name is gone.
        return _Compiled(load(path), names)


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
