"""llmos as ONNX's own backend interface knows it."""

from __future__ import annotations

import unittest

import numpy as np
import onnx.backend.test
import pytest
from onnx import TensorProto, helper

from llmos.compiler.integrations.onnx_backend import LlmosBackend
from llmos.runtime.errors import InputError, UnsupportedError


def model(nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], output: onnx.ValueInfoProto) -> onnx.ModelProto:
    return helper.make_model(helper.make_graph(nodes, "m", inputs, [output]), opset_imports=[helper.make_opsetid("", 20)])


def tensor(name: str, kind: int = TensorProto.FLOAT, shape: list[int] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def test_standard_suite_runs_on_it() -> None:
    suite = onnx.backend.test.BackendTest(LlmosBackend, __name__)
    suite.include(r"^test_(add|softmax_axis_1|reshape_allowzero_reordered|cast_FLOAT_to_INT4)_cpu$")
    result = unittest.TestResult()
    suite.test_suite.run(result)
    assert result.failures == result.errors == []
    assert result.testsRun - len(result.skipped) == 4


def test_values_of_early_inputs_are_compiled_in() -> None:
    reshape = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    prepared = LlmosBackend.prepare(model(reshape, [tensor("x", shape=[2, 3]), tensor("shape", TensorProto.INT64, [2])], tensor("y")))
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for shape in ([3, 2], [6, 1], [3, 2]):
        (y,) = prepared.run([x, np.array(shape)])
        np.testing.assert_array_equal(y, x.reshape(shape))


def test_run_node() -> None:
    a, b = np.float32([1, 2]), np.float32([3, 5])
    assert LlmosBackend.run_node(helper.make_node("Mul", ["a", "b"], ["c"]), [a, b])[0].tolist() == [3, 10]


def test_devices() -> None:
    assert LlmosBackend.supports_device("CPU")
    assert not LlmosBackend.supports_device("CUDA")


def test_what_it_refuses() -> None:
    node = helper.make_node("MaxRoiPool", ["x", "x"], ["y"], pooled_shape=[2, 2])
    pooled = model([node], [tensor("x", shape=[3])], tensor("y"))
    assert not LlmosBackend.is_compatible(pooled)
    with pytest.raises(UnsupportedError, match="MaxRoiPool"):
        LlmosBackend.prepare(pooled)
    relu = LlmosBackend.prepare(model([helper.make_node("Relu", ["x"], ["y"])], [tensor("x", shape=[3])], tensor("y")))
    with pytest.raises(InputError, match="takes 1 inputs"):
        relu.run([])
