"""Files that onnxruntime's own quantizer makes, in all its forms: compiled, they give onnxruntime's numbers, and bytes lie between ops."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

import llmos
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.backends.planning import form_dispatches
from llmos.compiler.backends.registry import backend_of
from llmos.compiler.frontend.onnx import import_onnx
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import dispatch_functions

pytestmark = pytest.mark.slow  # tests/frontend/onnx/test_quantization.py has each op alone
OPTIONS = CompileOptions(target="native", repro=None)
Array = np.ndarray
TYPES = {"u8": QuantType.QUInt8, "s8": QuantType.QInt8}


def weights(*names_and_shapes: tuple[str, tuple[int, ...]]) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {name: (rng.standard_normal(shape) * 0.2).astype(np.float32) for name, shape in names_and_shapes}


def model(nodes: Sequence[onnx.NodeProto], constants: Mapping[str, Any], x: Sequence[Any], y: Sequence[Any]) -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in (("x", x), ("y", y))]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def small() -> onnx.ModelProto:
    """A convolution of two branches that are joined, averaged and classified."""
    node = helper.make_node
    constants = weights(("w0", (16, 8, 3, 3)), ("b0", (16,)), ("w1", (24, 16, 1, 1)), ("b1", (24,)), ("w2", (40, 32)), ("b2", (32,)))
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["c0"], pads=[1] * 4),
        node("Relu", ["c0"], ["r0"]),
        node("Conv", ["r0", "w1", "b1"], ["c1"]),
        node("Concat", ["r0", "c1"], ["joined"], axis=1),
        node("AveragePool", ["joined"], ["averaged"], kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", ["averaged"], ["global"]),
        node("Flatten", ["global"], ["flat"]),
        node("Gemm", ["flat", "w2", "b2"], ["y"]),
    ]
    return model(nodes, constants, ["batch", 8, 8, 8], ["batch", 32])


def network() -> onnx.ModelProto:
    """Convolutions (a depthwise one, too), activations, a sum, a product, and every kind of pool."""
    node = helper.make_node
    sizes = (("w0", (16, 3, 3, 3)), ("w1", (16, 16, 3, 3)), ("w2", (24, 16, 1, 1)), ("wd", (40, 1, 3, 3)), ("w3", (40, 40, 1, 1)))
    biases = (("b0", (16,)), ("b1", (16,)), ("b2", (24,)), ("bd", (40,)), ("b3", (40,)), ("wg", (40, 32)), ("bg", (32,)))
    constants: dict[str, Any] = {**weights(*sizes, *biases), "zero": np.float32(0), "six": np.float32(6)}
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["c0"], pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["c0"], ["r0"]),
        node("Conv", ["r0", "w1", "b1"], ["c1"], pads=[1] * 4),
        node("Sigmoid", ["c1"], ["gate"]),
        node("Mul", ["c1", "gate"], ["silu"]),
        node("Conv", ["r0", "w2", "b2"], ["c2"]),
        node("LeakyRelu", ["c2"], ["leaky"], alpha=0.1),
        node("Concat", ["silu", "leaky"], ["joined"], axis=1),
        node("AveragePool", ["joined"], ["averaged"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
        node("Conv", ["averaged", "wd", "bd"], ["depthwise"], group=40, pads=[1] * 4),
        node("Clip", ["depthwise", "zero", "six"], ["clipped"]),
        node("Conv", ["clipped", "w3", "b3"], ["c3"]),
        node("Add", ["c3", "averaged"], ["added"]),
        node("MaxPool", ["added"], ["largest"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
        node("GlobalAveragePool", ["largest"], ["global"]),
        node("Flatten", ["global"], ["flat"]),
        node("Gemm", ["flat", "wg", "bg"], ["y"]),
    ]
    return model(nodes, constants, ["batch", 3, 32, 32], ["batch", 32])


def transformer_block() -> onnx.ModelProto:
    """Attention of four heads and a feed-forward net with GELU, each behind a layer norm."""
    node, d = helper.make_node, 64
    squares = [(f"w{name}", (d, d)) for name in "qkvo"] + [("w1", (d, 4 * d)), ("w2", (4 * d, d))]
    vectors = [(f"b{name}", (d,)) for name in "qkvo2"] + [
        ("b1", (4 * d,)),
        ("gain0", (d,)),
        ("shift0", (d,)),
        ("gain1", (d,)),
        ("shift1", (d,)),
    ]
    numbers = {"quarter": np.float32(0.25), "half": np.float32(0.5), "one": np.float32(1), "root": np.float32(2**0.5)}
    shapes = {"heads": np.array([0, -1, 4, 16]), "flat": np.array([0, -1, d])}
    nodes = [node("LayerNormalization", ["x", "gain0", "shift0"], ["n0"], axis=-1)]
    for name in "qkv":
        nodes += [
            node("MatMul", ["n0", f"w{name}"], [f"{name}0"]),
            node("Add", [f"{name}0", f"b{name}"], [f"{name}1"]),
            node("Reshape", [f"{name}1", "heads"], [f"{name}2"]),
            node("Transpose", [f"{name}2"], [f"{name}3"], perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]),
        ]
    nodes += [
        node("MatMul", ["q3", "k3"], ["scores"]),
        node("Mul", ["scores", "quarter"], ["scaled"]),
        node("Softmax", ["scaled"], ["p"], axis=-1),
        node("MatMul", ["p", "v3"], ["o0"]),
        node("Transpose", ["o0"], ["o1"], perm=[0, 2, 1, 3]),
        node("Reshape", ["o1", "flat"], ["o2"]),
        node("MatMul", ["o2", "wo"], ["o3"]),
        node("Add", ["o3", "bo"], ["o4"]),
        node("Add", ["o4", "x"], ["h"]),
        node("LayerNormalization", ["h", "gain1", "shift1"], ["n1"], axis=-1),
        node("MatMul", ["n1", "w1"], ["f0"]),
        node("Add", ["f0", "b1"], ["f1"]),
        node("Div", ["f1", "root"], ["f2"]),
        node("Erf", ["f2"], ["f3"]),
        node("Add", ["f3", "one"], ["f4"]),
        node("Mul", ["f1", "f4"], ["f5"]),
        node("Mul", ["f5", "half"], ["f6"]),
        node("MatMul", ["f6", "w2"], ["f7"]),
        node("Add", ["f7", "b2"], ["f8"]),
        node("Add", ["f8", "h"], ["y"]),
    ]
    return model(nodes, {**weights(*squares, *vectors), **numbers, **shapes}, ["batch", "tokens", d], ["batch", "tokens", d])


def arrays(proto: onnx.ModelProto, count: int = 6) -> list[Array]:
    """Inputs of two rows, and of seven tokens where their number is dynamic."""
    dims = [each.dim_value or 7 for each in proto.graph.input[0].type.tensor_type.shape.dim]
    rng = np.random.default_rng(1)
    return [rng.standard_normal([2, *dims[1:]]).astype(np.float32) for _ in range(count)]


class Calls(CalibrationDataReader):  # type: ignore[misc]
    """Arrays for quantize_static."""

    def __init__(self, calls: Sequence[Array]) -> None:
        self.pending: Iterator[Array] = iter(calls)

    def get_next(self) -> dict[str, Array] | None:
        x = next(self.pending, None)
        return None if x is None else {"x": x}


def quantized(proto: onnx.ModelProto, form: str, folder: Path) -> Path:
    """A file of one form: "QOperator-u8", "QDQ-s8-channels", "dynamic", "dynamic-channels" or "nbits"."""
    source, path = folder / "float.onnx", folder / "quantized.onnx"
    onnx.save(proto, source)
    logging.disable(logging.WARNING)  # of the quantizer, which advises to preprocess
    kind, *options = form.split("-")
    per_channel = "channels" in options
    if kind == "nbits":
        quantizer = MatMulNBitsQuantizer(onnx.load(source), block_size=32, is_symmetric=False)
        quantizer.process()
        quantizer.model.save_model_to_file(str(path))
    elif kind == "dynamic":
        quantize_dynamic(source, path, per_channel=per_channel, weight_type=QuantType.QInt8)
    else:
        settings = {"per_channel": per_channel, "activation_type": TYPES[options[0]], "weight_type": QuantType.QInt8}
        quantize_static(source, path, Calls(arrays(proto)), quant_format=getattr(QuantFormat, kind), **settings)
    logging.disable(logging.NOTSET)
    return path


def expected(path: Path, calls: Sequence[Array], optimized: bool = True) -> list[Array]:
    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")  # bytes multiplied exactly, without VNNI as well
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [session.run(None, {"x": x})[0] for x in calls]


def compiled(path: Path, calls: Sequence[Array]) -> list[Array]:
    llmos.compile(path, options=OPTIONS).save(path.with_suffix(".llmos"))
    program = llmos.load(path.with_suffix(".llmos"), poison_arena=True)
    return [np.asarray(program(x)) for x in calls]


def last_step(path: Path) -> float:
    """The scale of the quantized output."""
    graph = onnx.load(path).graph
    [last] = [node for node in graph.node if "y" in node.output]
    [scale] = [numpy_helper.to_array(each) for each in graph.initializer if each.name == last.input[1]]
    return float(scale)


def floats_between(path: Path) -> int:
    """How many tensors of floats, of activations in more than a row, are stored between dispatches."""
    planned = form_dispatches(import_onnx(path), OPTIONS, backend_of(OPTIONS))
    functions = dispatch_functions(planned.module)
    made = [kind for function in functions[:-1] for kind in ir.FunctionType(function.attributes["function_type"].value).results]
    return sum(str(kind.element_type) == "f32" and not kind.has_static_shape for kind in made)


def test_a_small_network_in_integers(tmp_path: Path) -> None:
    path = quantized(small(), "QOperator-u8-channels", tmp_path)
    calls = arrays(small(), 3)
    for found, wanted in zip(compiled(path, calls), expected(path, calls), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert floats_between(path) == 0


STATIC = [f"{kind}-{each}" for kind in ("QOperator-u8", "QDQ-u8", "QDQ-s8") for each in ("tensors", "channels")]


@pytest.mark.parametrize("form", STATIC)
@pytest.mark.parametrize("make", [network, transformer_block])
def test_static(make: Any, form: str, tmp_path: Path) -> None:
    """QOperator: onnxruntime's bits. QDQ: within a step of what the file says; onnxruntime's optimizer rounds elsewhere, on the way."""
    path, calls = quantized(make(), form, tmp_path), arrays(make())
    for found, wanted in zip(compiled(path, calls), expected(path, calls, optimized=form.startswith("QOperator")), strict=True):
        if form.startswith("QOperator"):
            np.testing.assert_array_equal(found, wanted)
        else:
            assert np.abs(found - wanted).max() < 1.01 * last_step(path)
    # the operands of the two products of attention, and its probabilities
    assert floats_between(path) == (0 if make is network else 4)


@pytest.mark.parametrize("form", ["dynamic-tensors", "dynamic-channels", "nbits"])
@pytest.mark.parametrize("make", [network, transformer_block])
def test_dynamic(make: Any, form: str, tmp_path: Path) -> None:
    path, calls = quantized(make(), form, tmp_path), arrays(make())
    for found, wanted in zip(compiled(path, calls), expected(path, calls), strict=True):
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
