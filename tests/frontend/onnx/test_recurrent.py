"""LSTM, GRU and RNN over a dynamic length: exported, and lowered to loops, against the ONNX model."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from llmos.compiler.frontend.onnx import OnnxProgram, export_onnx, import_onnx
from llmos.compiler.frontend.onnx.symbols import example_inputs
from tests.reference import run

HIDDEN, WIDTH = 5, 3
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
CASES = [
    (op, {**extra, "direction": d})
    for d in ("forward", "reverse", "bidirectional")
    for op, extra in (("LSTM", {}), ("GRU", {}), ("RNN", {}))
]
CASES += [("GRU", {"direction": "forward", "linear_before_reset": 1})]


def recurrent(op: str, attributes: dict[str, Any]) -> onnx.ModelProto:
    generator = np.random.default_rng(1)
    directions, gates = 2 if attributes["direction"] == "bidirectional" else 1, GATES[op] * HIDDEN
    shapes = {"w": (directions, gates, WIDTH), "r": (directions, gates, HIDDEN), "b": (directions, 2 * gates)}
    weights = [numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32) / 2, name) for name, shape in shapes.items()]
    outputs = ["y", "h", "c"][: 3 if op == "LSTM" else 2]
    node = helper.make_node(op, ["x", "w", "r", "b"], outputs, hidden_size=HIDDEN, **attributes)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["length", "batch", WIDTH])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    return helper.make_model(helper.make_graph([node], op, [x], values, weights), opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def inputs(program: OnnxProgram) -> np.ndarray:
    """At a length and a batch other than the traced ones."""
    (x,) = example_inputs(program.inputs, {"length": 6, "batch": 2}, seed=3)
    return x.numpy()


@pytest.mark.parametrize(("op", "attributes"), CASES)
def test_exported(op: str, attributes: dict[str, Any]) -> None:
    program = export_onnx(recurrent(op, attributes))
    x = inputs(program)
    for got, want in zip(program.program.module()(torch.from_numpy(x)), program.reference([x]), strict=True):
        assert np.abs(got.numpy() - want).max() < 1e-6


@pytest.mark.parametrize(("op", "attributes"), CASES)
def test_lowered(op: str, attributes: dict[str, Any]) -> None:
    model = recurrent(op, attributes)
    x = inputs(export_onnx(model))
    imported = import_onnx(model)
    assert imported.reference is not None
    for got, want in zip(run(imported, [x]), imported.reference([x]), strict=True):
        assert np.abs(got - want).max() < 1e-6
