"""Quantized ONNX files run in integers: onnxruntime's bits from compiled code, and products in the kernels' form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import llmos
from llmos.compiler.analysis.contraction import contraction_of
from llmos.compiler.backends.common import common_passes
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.frontend.onnx import import_onnx
from llmos.passes import run_pipeline
from tests.passes.ir_tests import CONTEXT, QUIET

RNG = np.random.default_rng(0)
K, N = 64, 32
# 7 bits: onnxruntime adds two products in 16 bits, and saturates, on a processor without VNNI.
SIGNED = RNG.integers(-63, 64, (K, N)).astype(np.int8)
UNSIGNED = RNG.integers(0, 256, (K, N)).astype(np.uint8)
SCALES, BIAS = (RNG.random((2, N)) * 0.01).astype(np.float32)


def model(nodes: list[onnx.NodeProto], constants: Mapping[str, Any]) -> onnx.ModelProto:
    """x [batch, tokens, 64] to y [batch, tokens, 32], float32."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "tokens", size]) for name, size in (("x", K), ("y", N)))
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def dynamic() -> onnx.ModelProto:
    """As onnxruntime's quantize_dynamic leaves a matrix product."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "sx", "zx"]),
        helper.make_node("MatMulInteger", ["q", "w", "zx", "zw"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["sx", "sw"], ["scale"]),
        helper.make_node("Mul", ["float", "scale"], ["y"]),
    ]
    return model(nodes, {"w": UNSIGNED, "zw": np.uint8(120), "sw": np.float32(0.02)})


def qdq(zero: Any, weight_zeros: np.ndarray) -> onnx.ModelProto:
    """As onnxruntime's quantize_static leaves a matrix product and its bias."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "sx", "zx"], ["a"]),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["b"], axis=1),
        helper.make_node("MatMul", ["a", "b"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["sum"]),
        helper.make_node("QuantizeLinear", ["sum", "sy", "zy"], ["r"]),
        helper.make_node("DequantizeLinear", ["r", "sy", "zy"], ["y"]),
    ]
    scales = {"sx": np.float32(0.03), "sw": SCALES, "sy": np.float32(0.3)}
    return model(nodes, {**scales, "w": SIGNED, "zw": weight_zeros, "zx": zero, "zy": np.uint8(7), "bias": BIAS})


def qlinear() -> onnx.ModelProto:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["q"]),
        helper.make_node("QLinearMatMul", ["q", "sx", "zx", "w", "sw", "zw", "sy", "zy"], ["r"]),
        helper.make_node("DequantizeLinear", ["r", "sy", "zy"], ["y"]),
    ]
    scales = {"sx": np.float32(0.03), "sw": SCALES, "sy": np.float32(0.3)}
    return model(nodes, {**scales, "w": SIGNED, "zw": np.zeros(N, np.int8), "zx": np.uint8(117), "zy": np.uint8(7)})


SYMMETRIC, SHIFTED = np.zeros(N, np.int8), RNG.integers(-9, 9, N).astype(np.int8)


@pytest.mark.sample(0, 2, 4, 5)
@pytest.mark.parametrize(
    "proto",
    [dynamic(), *(qdq(zero, zeros) for zero in (np.uint8(117), np.int8(-5)) for zeros in (SYMMETRIC, SHIFTED)), qlinear()],
    ids=["dynamic", "qdq-u8", "qdq-u8-shifted", "qdq-s8", "qdq-s8-shifted", "qlinear"],
)
def test_a_product(proto: onnx.ModelProto, tmp_path: Path) -> None:
    imported = import_onnx(proto)
    run_pipeline(imported.module, common_passes(CompileOptions()), options=QUIET, context=CONTEXT)
    ops = imported.module.body.operations[0].operation.regions[0].blocks[0].operations
    [product] = [each for op in ops if (each := contraction_of(op.operation)) is not None]
    assert [str(kind) for kind in product.types] == ["i8", "i8", "i32"]
    assert (product.lhs_factor.is_unsigned, product.rhs_factor.is_unsigned) == (True, False)

    onnx.save(proto, tmp_path / "m.onnx")
    llmos.compile(tmp_path / "m.onnx", options=CompileOptions(target="native", repro=None)).save(tmp_path / "m.llmos")
    program = llmos.load(tmp_path / "m.llmos")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch, tokens in ((1, 1), (2, 9)):
        x = (RNG.standard_normal((batch, tokens, K)) * 3).astype(np.float32)
        np.testing.assert_array_equal(program(x), session.run(None, {"x": x})[0])


def convolution(zero: Any) -> onnx.ModelProto:
    """As onnxruntime's quantize_static leaves two 3x3 convolutions, the scales of the weights per channel and the bias in int32."""
    nodes, constants = [helper.make_node("QuantizeLinear", ["x", "s0", "z"], ["q0"])], {"s0": np.float32(0.03), "z": zero}
    for number, (c, n) in enumerate(((3, 16), (16, 24))):
        w, sw = RNG.integers(-63, 64, (n, c, 3, 3)).astype(np.int8), (RNG.random(n) * 0.004 + 0.001).astype(np.float32)
        sx, sy = np.float32(0.03 if number == 0 else 0.05), np.float32(0.05 if number == 0 else 0.2)
        parts = {"w": w, "sw": sw, "zw": np.zeros(n, np.int8), "b": RNG.integers(-999, 999, n).astype(np.int32), "sb": sx * sw}
        constants |= {f"{name}{number}": value for name, value in (parts | {"zb": np.zeros(n, np.int32)}).items()}
        constants[f"s{number + 1}"] = sy
        nodes += [
            helper.make_node("DequantizeLinear", [f"q{number}", f"s{number}", "z"], [f"a{number}"]),
            helper.make_node("DequantizeLinear", [f"w{number}", f"sw{number}", f"zw{number}"], [f"dw{number}"], axis=0),
            helper.make_node("DequantizeLinear", [f"b{number}", f"sb{number}", f"zb{number}"], [f"db{number}"], axis=0),
            helper.make_node("Conv", [f"a{number}", f"dw{number}", f"db{number}"], [f"sum{number}"], pads=[1] * 4, strides=[2, 2]),
            helper.make_node("QuantizeLinear", [f"sum{number}", f"s{number + 1}", "z"], [f"q{number + 1}"]),
        ]
    nodes.append(helper.make_node("DequantizeLinear", ["q2", "s2", "z"], ["y"]))
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", c, *hw]) for name, c, hw in (("x", 3, (33, 30)), ("y", 24, "hw"))
    )
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


@pytest.mark.sample(1)
@pytest.mark.parametrize("zero", [np.uint8(117), np.int8(-5)], ids=["u8", "s8"])
def test_convolutions(zero: Any, tmp_path: Path) -> None:
    """Two products of bytes, no float32 between them in memory; off by one step only where a value lies between two."""
    proto = convolution(zero)
    onnx.save(proto, tmp_path / "m.onnx")
    llmos.compile(tmp_path / "m.onnx", options=CompileOptions(target="native", repro=None)).save(tmp_path / "m.llmos")
    program = llmos.load(tmp_path / "m.llmos")
    packed = [each for each in program.manifest.weights if str(each.dtype) == "int8" and tuple(each.shape)[3:] == (4,)]
    assert len(packed) == 2 and {kernel.kind for kernel in program.manifest.kernels} <= {"contraction", "elementwise"}
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        x = RNG.standard_normal((batch, 3, 33, 30)).astype(np.float32)
        steps = np.abs(np.asarray(program(x)) - session.run(None, {"x": x})[0]) / 0.2
        assert steps.max() < 1.01 and np.mean(steps > 0.5) < 0.01
