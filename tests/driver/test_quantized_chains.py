"""Chains of quantized ops: bytes lie in memory between dispatches, and onnxruntime's numbers come out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import llmos
from llmos.compiler.backends.cpu.backend import CpuBackend
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.backends.planning import run_passes
from llmos.compiler.frontend.onnx import import_onnx
from llmos.compiler.ir.functions import EntryFunc, public_functions

SIZE = 12


class Qdq:
    """A QDQ graph, node by node, as onnxruntime's quantize_static writes it: tensors in uint8, weights in int8 per channel."""

    def __init__(self, channels: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)
        self.input = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, SIZE, SIZE])

    def node(self, kind: str, *inputs: str, **attributes: object) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def tensor(self, value: object) -> str:
        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def quantized(self, x: str, scale: float, zero: int) -> str:
        parameters = self.tensor(np.float32(scale)), self.tensor(np.uint8(zero))
        return self.node("DequantizeLinear", self.node("QuantizeLinear", x, *parameters), *parameters)

    def conv(self, x: str, c: int, n: int, kernel: int, group: int = 1) -> str:
        w = self.rng.integers(-127, 128, (n, c // group, kernel, kernel)).astype(np.int8)
        scales = (self.rng.random(n) * 0.01 + 0.002).astype(np.float32)
        dequantized = self.node("DequantizeLinear", self.tensor(w), self.tensor(scales), self.tensor(np.zeros(n, np.int8)), axis=0)
        return self.node("Conv", x, dequantized, pads=[kernel // 2] * 4, group=group)

    def model(self, y: str) -> onnx.ModelProto:
        out = helper.make_tensor_value_info(y, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "g", [self.input], [out], self.tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def network() -> onnx.ModelProto:
    """Convolution, pool, residual add, depthwise and 1x1 convolutions, a concatenation that is shuffled and split, averages."""
    g = Qdq(3)
    x = g.quantized(g.conv(g.quantized("x", 0.03, 128), 3, 8, 3), 0.05, 120)
    x = g.quantized(g.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), 0.05, 120)
    y = g.quantized(g.node("Relu", g.conv(x, 8, 8, 3)), 0.04, 0)
    x = g.quantized(g.node("Relu", g.node("Add", x, g.conv(y, 8, 8, 3))), 0.06, 10)
    y = g.quantized(g.conv(x, 8, 8, 3, group=8), 0.05, 128)
    a, b = g.quantized(g.conv(y, 8, 8, 1), 0.07, 131), g.quantized(g.conv(x, 8, 8, 3), 0.02, 99)
    joined = g.node("Concat", a, b, axis=1)
    shuffled = g.node("Transpose", g.node("Reshape", joined, g.tensor(np.array([1, 2, 8, 6, 6]))), perm=[0, 2, 1, 3, 4])
    joined = g.node("Reshape", shuffled, g.tensor(np.array([1, 16, 6, 6])))
    ends = g.tensor(np.array([0])), g.tensor(np.array([8])), g.tensor(np.array([1]))
    x = g.quantized(g.conv(g.quantized(g.node("Slice", joined, *ends), 0.05, 120), 8, 8, 3), 0.05, 120)
    x = g.quantized(g.node("Concat", joined, x, axis=1), 0.06, 110)
    x = g.quantized(g.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]), 0.05, 120)
    return g.model(g.quantized(g.node("GlobalAveragePool", x), 0.02, 120))


def test_bytes_lie_between_dispatches() -> None:
    planned = run_passes(import_onnx(network()), CompileOptions(target="x86-64-v3"), CpuBackend())
    entry = EntryFunc(public_functions(planned.module)[0])
    calls = [op for op in entry.ops if op.name == "func.call"]
    floats = [r for op in calls for r in op.results if str(r.type.element_type) != "i8" and r not in entry.returned]
    assert len(calls) > 8
    assert not floats, [str(each.type) for each in floats]


@pytest.mark.slow
def test_a_network_has_the_numbers_of_onnxruntime(tmp_path: Path) -> None:
    proto = network()
    onnx.save(proto, tmp_path / "m.onnx")
    options = CompileOptions(target="native", cache=False, repro=None, accuracy_report=False)
    llmos.compile(tmp_path / "m.onnx", options=options).save(tmp_path / "m.llmos")
    program = llmos.load(tmp_path / "m.llmos", poison_arena=True)
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # its integer kernels saturate without VNNI
    session = onnxruntime.InferenceSession(proto.SerializeToString(), plain, providers=["CPUExecutionProvider"])
    for seed in range(8):
        x = np.random.default_rng(seed).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)
        got, want = np.asarray(program(x)), session.run(None, {"x": x})[0]
        assert np.ptp(want) > 0.2
        np.testing.assert_allclose(got, want, rtol=0, atol=0.021)  # a step: sums of floats round
