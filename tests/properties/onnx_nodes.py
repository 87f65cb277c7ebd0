"""Models of one ONNX node, and what onnxruntime and ONNX's own evaluator say of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

onnxruntime.set_default_logger_severity(4)


def one_node(
    op: str,
    inputs: Mapping[str, np.ndarray],
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    order: Sequence[str] | None = None,
    dims: Mapping[str, Sequence[Any]] | None = None,
    outputs: int = 1,
    opset: int = 22,
    **attributes: Any,
) -> onnx.ModelProto:
    """`order`: names of the node's inputs, "" for one left out. `dims`: declared shapes, with names for dynamic dimensions."""
    constants, dims = constants or {}, dims or {}
    names = [f"y{i}" for i in range(outputs)]
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), dims.get(name, array.shape))
        for name, array in inputs.items()
    ]
    graph = helper.make_graph(
        [helper.make_node(op, list(order or [*inputs, *constants]), names, **attributes)],
        "one",
        infos,
        [helper.make_empty_tensor_value_info(name) for name in names],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def by_onnxruntime(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray] | None:
    """Its outputs; None where it refuses the model, which it says in exceptions of many classes."""
    with suppress(Exception):
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return list(session.run(None, dict(inputs)))
    return None


def by_evaluator(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray] | None:
    """The outputs of ONNX's own evaluator; None where it fails."""
    with warnings.catch_warnings(), suppress(Exception):
        warnings.simplefilter("ignore")
        return list(ReferenceEvaluator(model).run(None, dict(inputs)))
    return None


def expected(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> list[list[np.ndarray]]:
    """What the two say, where they say something."""
    return [outputs for outputs in (by_onnxruntime(model, inputs), by_evaluator(model, inputs)) if outputs is not None]


def agree(got: np.ndarray, want: np.ndarray, tolerance: float = 1e-4) -> bool:
    if got.shape != want.shape or got.dtype != want.dtype:
        return False
    if got.dtype.kind in "biu":
        return bool(np.array_equal(got, want))
    return bool(np.allclose(got, want, rtol=tolerance, atol=tolerance, equal_nan=True))
