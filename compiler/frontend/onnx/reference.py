"""Reference outputs for the accuracy report: by onnxruntime if installed, else onnx's reference evaluator, else eager torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator

from llmos.compiler.frontend.onnx.dtypes import from_storage, to_numpy, to_torch
from llmos.compiler.frontend.onnx.loading import LoadedModel
from llmos.compiler.frontend.onnx.low_precision import codes_of, low_precision_type
from llmos.compiler.frontend.onnx.symbols import InputSpec

# onnxruntime's own log level for errors; its warnings are about its optimizer.
_ORT_ERRORS_ONLY = 3
# Without VNNI, onnxruntime by default multiplies unsigned by signed bytes with sums that saturate at 16 bits.
_ORT_EXACT_INT8 = ("session.x64quantprecision", "1")


@dataclass(frozen=True)
class OnnxReference:
    """Runs the unmodified ONNX model: takes inputs and returns outputs in order. `bound` are inputs fixed at import."""

    model: LoadedModel
    inputs: tuple[InputSpec, ...]
    bound: Mapping[str, np.ndarray]
    eager: torch.nn.Module = field(repr=False)

    def __call__(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        arrays = {spec.name: from_storage(np.asarray(x), spec.low_precision or 0) for spec, x in zip(self.inputs, inputs, strict=True)}
        feed = arrays | dict(self.bound)
        if self._session is not None:
            return _plain(self._session.run(None, feed))
        try:
            return _plain(self._evaluator.run(None, feed))
        except Exception:
            # Ops that onnx's evaluator lacks or implements incompletely.
            return self._run_eager(inputs)

    @property
    def engine(self) -> str:
        """Return the name of the reference implementation."""
        return "onnx.reference" if self._session is None else "onnxruntime"

    @cached_property
    def _session(self) -> Any:
        if importlib.util.find_spec("onnxruntime") is None:
            return None
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ORT_ERRORS_ONLY
        options.add_session_config_entry(*_ORT_EXACT_INT8)
        source = self.model.path if self.model.path is not None else self.model.proto.SerializeToString()
        try:
            return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception:
            # An op or a type that onnxruntime lacks: use the next reference.
            return None

    @cached_property
    def _evaluator(self) -> ReferenceEvaluator:
        if self.model.path is not None:
            return ReferenceEvaluator(onnx.load(self.model.path))
        return ReferenceEvaluator(self.model.proto)

    def _run_eager(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        with torch.no_grad():
            return [to_numpy(value) for value in self.eager(*(to_torch(value) for value in inputs))]


def _plain(outputs: Sequence[Any]) -> list[np.ndarray]:
    """Convert outputs to the form of a compiled model: sequences flattened, empty optionals removed, low-precision types as codes."""
    items = [item for value in outputs for item in (value if isinstance(value, list) else [value]) if item is not None]
    return [codes_of(array) if low_precision_type(array.dtype) else array for array in map(np.asarray, items)]
