"""ONNX's own backend tests through `LlmosBackend`: one node a case ("onnx-node"), and small models ("onnx-model").

The data is compared with the tolerances that ONNX gives each case; random outputs, which follow from a seed here, by shape and type only.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from llmos.compiler.integrations.onnx_backend import LlmosBackend, LlmosModel
from llmos.runtime.errors import UserError
from tests.conformance.outcome import CheckAnswer, Outcome, judge

# Outputs that are random by definition.
RANDOM = ("bernoulli", "randomuniform", "randomnormal", "multinomial")
RANDOM_DROPOUT = (
    "test_training_dropout",
    "test_training_dropout_default",
    "test_training_dropout_default_mask",
    "test_training_dropout_mask",
)
SEED = 7
# Two units in the last place of float16 and of bfloat16, relative.
HALF_RTOL, BFLOAT16_RTOL = 2e-3, 16e-3


@dataclass(frozen=True)
class OnnxSuite:
    """The cases of some kinds of `load_model_tests`, of the ai.onnx domain."""

    name: str
    title: str
    kinds: tuple[str, ...]

    def cases(self) -> Sequence[str]:
        return sorted(_loaded(self.kinds))

    def run(self, case: str) -> Outcome:
        found = _loaded(self.kinds)[case]
        return judge(case, lambda: _difference(found), _checked(found))


def onnx_suites() -> tuple[OnnxSuite, ...]:
    return (
        OnnxSuite("onnx-node", "ONNX 1.23 node tests", ("node",)),
        OnnxSuite("onnx-model", "ONNX 1.23 simple and pytorch models", ("simple", "pytorch-converted", "pytorch-operator")),
    )


@cache
def _loaded(kinds: tuple[str, ...]) -> Mapping[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [case for kind in kinds for case in load_model_tests(kind=kind)]
    return {case.name: case for case in found if not _foreign(_model(case))}


def _foreign(model: onnx.ModelProto) -> bool:
    return any(node.domain not in ("", "ai.onnx") for node in model.graph.node)


@cache
def _read(folder: str) -> onnx.ModelProto:
    return onnx.load(Path(folder) / "model.onnx")


def _model(case: Any) -> onnx.ModelProto:
    return case.model if case.model is not None else _read(case.model_dir)


def _data_sets(case: Any) -> list[tuple[list[Any], list[Any]]]:
    if case.data_sets is not None:
        return [(list(inputs), list(outputs)) for inputs, outputs in case.data_sets]
    graph = _model(case).graph
    folders = sorted(Path(case.model_dir).glob("test_data_set_*"))
    return [(_values(folder, "input", graph.input), _values(folder, "output", graph.output)) for folder in folders]


def _values(folder: Path, role: str, infos: Sequence[onnx.ValueInfoProto]) -> list[Any]:
    """The .pb files of one data set, by the kind that the graph gives each."""
    readers = {
        "tensor_type": (onnx.TensorProto, numpy_helper.to_array),
        "sequence_type": (onnx.SequenceProto, numpy_helper.to_list),
        "optional_type": (onnx.OptionalProto, numpy_helper.to_optional),
    }
    found = []
    for index in range(len(list(folder.glob(f"{role}_*.pb")))):
        proto, read = readers[infos[index].type.WhichOneof("value")]
        message = proto()
        message.ParseFromString((folder / f"{role}_{index}.pb").read_bytes())
        found.append(read(message))
    return found


def _difference(case: Any) -> str:
    prepared = LlmosBackend.prepare(_model(case), seed=SEED)
    for inputs, expected in _data_sets(case):
        outputs = prepared.run([_array(value) for value in inputs])
        for want, got in zip(expected, outputs, strict=True):
            if found := compare(case, _array(want), got):
                return found
    return ""


def _checked(case: Any) -> CheckAnswer:
    """What `llmos check` says of the case with its first inputs; it is given no seed, so nothing where the case draws random numbers."""
    if _is_random(case):
        return ""
    inputs, _ = _data_sets(case)[0]
    try:
        return "refused" if LlmosModel(_model(case)).problems([_array(value) for value in inputs]) else "compiles"
    except UserError:
        return "refused"
    except Exception:
        return "crashed"


def _is_random(case: Any) -> bool:
    return case.name in RANDOM_DROPOUT or any(word in case.name for word in RANDOM)


def _array(value: Any) -> Any:
    """Some cases give their data as TensorProto."""
    if isinstance(value, list):
        return [_array(item) for item in value]
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def compare(case: Any, want: Any, got: Any) -> str:
    """What differs, by ONNX's tolerances for the case; "" for nothing."""
    if isinstance(want, list) or want is None:
        if not isinstance(got, list) or want is None or len(got) != len(want):
            return "" if want is got is None else f"{type(got).__name__} where {type(want).__name__} is right"
        return next((found for w, g in zip(want, got, strict=True) if (found := compare(case, w, g))), "")
    want, got = np.asarray(want), np.asarray(got)
    if want.shape != got.shape or want.dtype != got.dtype:
        return f"{got.dtype}{list(got.shape)} where {want.dtype}{list(want.shape)} is right"
    if _is_random(case):
        return ""
    return _numbers_differ(case, want, got)


def _numbers_differ(case: Any, want: np.ndarray, got: np.ndarray) -> str:
    if want.dtype.kind in "biu":
        return "" if np.array_equal(want, got) else f"{int((want != got).sum())} of {want.size} integers differ"
    wide = np.complex128 if want.dtype.kind == "c" else np.float64
    halves = {"float16": HALF_RTOL, "bfloat16": BFLOAT16_RTOL}
    rtol = max(case.rtol, halves.get(want.dtype.name, 0))
    if np.allclose(got.astype(wide), want.astype(wide), rtol=rtol, atol=max(case.atol, 1e-6), equal_nan=True):
        return ""
    return f"off by {np.nanmax(np.abs(got.astype(wide) - want.astype(wide)))}"
