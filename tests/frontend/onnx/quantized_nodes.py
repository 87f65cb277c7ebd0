"""Models of one quantizing ONNX node over dtypes, granularities and axes, each with a first dimension that stays dynamic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

DTYPES: Mapping[str, Any] = {
    "int8": np.int8,
    "uint8": np.uint8,
    "int16": np.int16,
    "uint16": np.uint16,
    "int4": ml_dtypes.int4,
    "uint4": ml_dtypes.uint4,
}
RANGES = {
    "int32": (-1000, 1000),  # of bias-like inputs that are drawn
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-(2**15), 2**15 - 1),
    "uint16": (0, 2**16 - 1),
    "int4": (-8, 7),
    "uint4": (0, 15),
}


@dataclass(frozen=True)
class Case:
    """One node. `dims`: the input's shape, "n" for what is dynamic; the other inputs are constants, in order."""

    name: str
    op: str
    dims: tuple[int | str, ...]
    dtype: Any
    constants: Mapping[str, np.ndarray]
    attributes: Mapping[str, Any]
    order: tuple[str, ...] = ()
    domain: str = ""
    outputs: int = 1

    def input(self, n: int, seed: int = 0) -> np.ndarray:
        """Numbers at, between and beyond the steps of a scale of about 0.1."""
        rng = np.random.default_rng(seed)
        shape = [n if dim == "n" else int(dim) for dim in self.dims]
        if np.dtype(self.dtype).kind == "f":
            return (rng.integers(-400, 400, shape) / 20).astype(self.dtype)
        low, high = RANGES[np.dtype(self.dtype).name]
        return rng.integers(low, high + 1, shape).astype(self.dtype)

    def model(self) -> onnx.ModelProto:
        return model_of([self])


def model_of(cases: Sequence[Case]) -> onnx.ModelProto:
    """One model with a node a case, and an input for each."""
    nodes, infos, outputs, weights = [], [], [], []
    for number, case in enumerate(cases):
        names = [f"y{number}_{i}" for i in range(case.outputs)]
        inputs = [f"{name}{number}" for name in (case.order or ("x", *case.constants))]
        nodes.append(helper.make_node(case.op, inputs, names, domain=case.domain, **case.attributes))
        infos.append(helper.make_tensor_value_info(f"x{number}", helper.np_dtype_to_tensor_dtype(np.dtype(case.dtype)), case.dims))
        outputs += [helper.make_empty_tensor_value_info(name) for name in names]
        weights += [numpy_helper.from_array(array, f"{name}{number}") for name, array in case.constants.items()]
    graph = helper.make_graph(nodes, "quantized", infos, outputs, weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def scales(shape: Sequence[int], dtype: Any = np.float32) -> np.ndarray:
    return (0.05 + 0.01 * np.arange(int(np.prod(shape)))).reshape(shape).astype(dtype)


def zeros(shape: Sequence[int], kind: str) -> np.ndarray:
    """Zero points in the middle of the range and around it."""
    low, high = RANGES[kind]
    return ((low + high) // 2 + np.arange(int(np.prod(shape))) % 3).reshape(shape).astype(DTYPES[kind])


GRANULARITIES: Mapping[str, tuple[tuple[int | str, ...], tuple[int, ...], Mapping[str, int]]] = {
    "per-tensor": (("n", 6), (), {}),
    "per-channel": (("n", 3, 4), (3,), {"axis": 1}),
    "last-axis": (("n", 3, 4), (4,), {"axis": -1}),
    "one-channel": (("n", 1, 4), (1,), {"axis": 1}),
    "per-block": (("n", 8), (0, 2), {"axis": 1, "block_size": 4}),
    "short-block": ((7, 6), (3, 6), {"axis": 0, "block_size": 3}),
}


def linear_cases() -> Iterator[Case]:
    """QuantizeLinear and DequantizeLinear, with and without zero points."""
    for (kind, dtype), (granularity, (dims, shape, attributes)) in product(DTYPES.items(), GRANULARITIES.items()):
        if kind in ("int8", "uint4") or granularity in ("per-tensor", "last-axis", "per-block"):
            dims = (5, *dims[1:]) if granularity == "per-block" else dims
            shape = tuple(5 if size == 0 else size for size in shape)
            constants = {"scale": scales(shape), "zero": zeros(shape, kind)}
            yield Case(f"quantize-{kind}-{granularity}", "QuantizeLinear", dims, np.float32, constants, attributes)
            yield Case(f"dequantize-{kind}-{granularity}", "DequantizeLinear", dims, dtype, constants, attributes)
    per_tensor = {"scale": scales(())}
    yield Case("quantize-default", "QuantizeLinear", ("n", 6), np.float32, per_tensor, {})
    yield Case("quantize-output-dtype", "QuantizeLinear", ("n", 6), np.float32, per_tensor, {"output_dtype": onnx.TensorProto.INT8})
    yield Case("dequantize-no-zero", "DequantizeLinear", ("n", 6), np.int8, per_tensor, {})
    yield Case("dequantize-int32", "DequantizeLinear", ("n", 6), np.int32, per_tensor, {})
    half = {"scale": scales((3,), np.float16), "zero": zeros((3,), "uint8")}
    yield Case("quantize-half", "QuantizeLinear", ("n", 3), np.float16, half, {"axis": 1})
    yield Case("dequantize-half", "DequantizeLinear", ("n", 3), np.uint8, half, {"axis": 1})


def fused_cases() -> Iterator[Case]:
    """Ops that compute on quantized tensors, and DynamicQuantizeLinear."""
    rng = np.random.default_rng(1)
    yield Case("dynamic", "DynamicQuantizeLinear", ("n", 6), np.float32, {}, {}, outputs=3)
    for left, right in (("uint8", "int8"), ("int8", "int8"), ("uint8", "uint8")):
        a, b = zeros((), left), zeros((4,), right)
        w = rng.integers(*RANGES[right], (6, 4), endpoint=True).astype(DTYPES[right])
        parameters = {"w": w, "a": a, "b": b[:1].reshape(())}
        for name, constants in {"": parameters, "-columns": {**parameters, "b": b}, "-no-zero": {"w": w}}.items():
            yield Case(f"matmul-integer-{left}-{right}{name}", "MatMulInteger", ("n", 6), DTYPES[left], constants, {})
        yield _qlinear_matmul(left, right, w, a, b)
        image = rng.integers(*RANGES[right], (4, 2, 3, 3), endpoint=True).astype(DTYPES[right])
        constants = {**parameters, "w": image}
        yield Case(f"conv-integer-{left}-{right}", "ConvInteger", ("n", 2, 5, 5), DTYPES[left], constants, {"pads": [1] * 4})
        yield _qlinear_conv(left, right, image, a, b)
    yield from (_qlinear_binary(op) for op in ("QLinearAdd", "QLinearMul"))
    yield from _qoperator_cases()
    per_channel = {"scale": scales((3,)), "zero": zeros((3,), "int8")}
    yield Case("quantize-microsoft", "QuantizeLinear", ("n", 3), np.float32, per_channel, {"axis": 1}, domain="com.microsoft")
    yield Case("dequantize-microsoft", "DequantizeLinear", ("n", 3), np.int8, per_channel, {"axis": 1}, domain="com.microsoft")


def _qlinear_matmul(left: str, right: str, w: np.ndarray, a: np.ndarray, b: np.ndarray) -> Case:
    order = ("x", "a_scale", "a", "w", "b_scale", "b", "y_scale", "y")
    constants = {"a_scale": scales(()), "a": a, "w": w, "b_scale": scales((4,)), "b": b, **_output(left)}
    return Case(f"qlinear-matmul-{left}-{right}", "QLinearMatMul", ("n", 6), DTYPES[left], constants, {}, order)


def _qlinear_conv(left: str, right: str, w: np.ndarray, a: np.ndarray, b: np.ndarray) -> Case:
    order = ("x", "x_scale", "a", "w", "w_scale", "b", "y_scale", "y", "bias")
    bias = np.arange(4).astype(np.int32)
    constants = {"x_scale": scales(()), "a": a, "w": w, "w_scale": scales((4,)), "b": b, **_output(left), "bias": bias}
    return Case(f"qlinear-conv-{left}-{right}", "QLinearConv", ("n", 2, 5, 5), DTYPES[left], constants, {"strides": [2, 2]}, order)


def _qlinear_binary(op: str) -> Case:
    order = ("x", "a_scale", "a", "b", "b_scale", "b_zero", "y_scale", "y")
    b = {"b": np.arange(6, dtype=np.uint8), "b_scale": np.float32(0.1).reshape(()), "b_zero": np.uint8(3).reshape(())}
    constants = {"a_scale": scales(()), "a": zeros((), "uint8"), **b, **_output("uint8")}
    return Case(op.lower(), op, ("n", 6), np.uint8, constants, {}, order, domain="com.microsoft")


def _qoperator_cases() -> Iterator[Case]:
    """Ops of com.microsoft that onnxruntime's quantizer writes with QuantFormat.QOperator."""
    rng = np.random.default_rng(2)
    order = ("x", "x_scale", "a", "y_scale", "y")
    for kind in ("uint8", "int8"):
        x = {"x_scale": scales(()), "a": zeros((), kind)}
        y = {"y_scale": np.float32(0.045).reshape(()), "y": zeros((), kind)}
        unit = {"y_scale": np.float32(1 / 256).reshape(()), "y": np.asarray(RANGES[kind][0], DTYPES[kind])}
        pool = {"kernel_shape": [2, 3], "strides": [2, 1], "pads": [0, 1, 1, 0]}
        for name, op, dims, result, attributes in (
            ("sigmoid", "QLinearSigmoid", ("n", 6), unit, {}),
            ("leaky-relu", "QLinearLeakyRelu", ("n", 6), y, {"alpha": 0.1}),
            ("softmax", "QLinearSoftmax", ("n", 6), unit, {"axis": -1, "opset": 13}),
            ("softmax-of-rows", "QLinearSoftmax", ("n", 2, 3), unit, {"axis": 1, "opset": 12}),
            ("average-pool", "QLinearAveragePool", ("n", 3, 5, 6), y, pool),
            ("average-pool-counted", "QLinearAveragePool", ("n", 3, 5, 6), y, {**pool, "count_include_pad": 1}),
            ("average-pool-last", "QLinearAveragePool", ("n", 5, 6, 3), y, {**pool, "channels_last": 1}),
            ("global-average-pool", "QLinearGlobalAveragePool", ("n", 3, 5, 6), y, {}),
            ("global-average-pool-last", "QLinearGlobalAveragePool", ("n", 5, 6, 3), y, {"channels_last": 1}),
        ):
            yield Case(f"qlinear-{name}-{kind}", op, dims, DTYPES[kind], {**x, **result}, attributes, order, domain="com.microsoft")
        b = {"b": rng.integers(*RANGES[kind], (1, 2), endpoint=True).astype(DTYPES[kind]), "b_scale": scales(()), "b_zero": zeros((), kind)}
        concat = ("y_scale", "y", "x", "x_scale", "a", "x", "b_scale", "b_zero")
        yield Case(f"qlinear-concat-{kind}", "QLinearConcat", ("n", 2), DTYPES[kind], {**x, **b, **y}, {"axis": 1}, concat, "com.microsoft")
        where = ("condition", "x", "x_scale", "a", "b", "b_scale", "b_zero", "y_scale", "y")
        chosen = {"condition": np.array([[True, False]]), **x, **b, **y}
        yield Case(f"qlinear-where-{kind}", "QLinearWhere", ("n", 2), DTYPES[kind], chosen, {}, where, "com.microsoft")
    for right, columns, extra in (("int8", (4,), {"transB": 1}), ("uint8", (), {"alpha": 0.5}), ("int8", (), {})):
        w = rng.integers(*RANGES[right], (4, 6) if "transB" in extra else (6, 4), endpoint=True).astype(DTYPES[right])
        b = {"w": w, "b_scale": scales(columns), "b": zeros(columns, right), "c": rng.integers(-900, 900, 4).astype(np.int32)}
        a = {"a_scale": scales(()), "a": zeros((), "uint8"), **b}
        order = ("x", "a_scale", "a", "w", "b_scale", "b", "c")
        made = {**a, **_output("uint8")}
        name = f"qgemm-{right}-{'-'.join(map(str, (*columns, *extra)))}"
        yield Case(name, "QGemm", ("n", 6), np.uint8, made, extra, (*order, "y_scale", "y"), "com.microsoft")
        if columns:
            yield Case(f"{name}-float", "QGemm", ("n", 6), np.uint8, a, extra, order, "com.microsoft")


def _output(kind: str) -> dict[str, np.ndarray]:
    return {"y_scale": np.float32(1.5).reshape(()), "y": zeros((), kind)}
