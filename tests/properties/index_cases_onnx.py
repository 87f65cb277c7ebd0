"""The ops of ONNX that read or write where data says, as cases of one node each."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from .index_cases import Case, Draw, Given, Limit, size_of, zero

OPSET = 24
PROTO = {
    torch.float32: TensorProto.FLOAT,
    torch.float64: TensorProto.DOUBLE,
    torch.float16: TensorProto.FLOAT16,
    torch.int64: TensorProto.INT64,
    torch.int32: TensorProto.INT32,
    torch.uint8: TensorProto.UINT8,
    torch.int8: TensorProto.INT8,
    torch.bool: TensorProto.BOOL,
}
Function = Callable[..., np.ndarray]
KINDS = (torch.float32, torch.float64, torch.int64, torch.int32)


def _node(d: Draw, op: str, *inputs: Given, expected: Function | None = None, outputs: int = 1, **attributes: Any) -> Case:
    made = d.case(op, expected or _reference(op, outputs, inputs, attributes), *inputs)
    node = {"op": op, "outputs": outputs, "attributes": attributes}
    return Case(made.name, made.function, made.inputs, made.traced, made.dynamic, "onnx", node)


def _reference(op: str, outputs: int, inputs: tuple[Given, ...], attributes: dict[str, Any]) -> Function:
    names = [f"x{i}" for i in range(len(inputs))]
    values = [helper.make_tensor_value_info(name, PROTO[each.dtype], None) for name, each in zip(names, inputs, strict=True)]
    node = helper.make_node(op, names, [f"y{i}" for i in range(outputs)], **attributes)
    result = helper.make_tensor_value_info("y0", TensorProto.UNDEFINED, None)
    graph = helper.make_graph([node], "one", values, [result])
    evaluator = ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)]))
    return lambda *arrays: evaluator.run(["y0"], dict(zip(names, arrays, strict=True)))[0]  # type: ignore[no-any-return]


def _gather(d: Draw) -> Case:
    index = d.index(d.rng.choice((("n",), ("n", "m"), ())), size_of(d.at), True, (torch.int64, torch.int32))
    return _node(d, "Gather", Given(d.dims, d.rng.choice(KINDS)), index, axis=d.signed)


def _gather_elements(d: Draw) -> Case:
    axis, index = d.signed, d.index(d.along("n"), size_of(d.at), True)
    expected = lambda x, i: np.take_along_axis(x, i, axis)  # noqa: E731
    return _node(d, "GatherElements", Given(d.dims, d.rng.choice(KINDS)), index, expected=expected, axis=axis)


def _shortest(dims: tuple[str, ...]) -> Limit:
    return lambda sizes: min(sizes[name] for name in dims)


def _gather_nd(d: Draw) -> Case:
    depth = d.rng.randint(1, d.rank)
    return _node(d, "GatherND", Given(d.dims, d.rng.choice(KINDS)), d.index(("n", depth), _shortest(d.dims[:depth]), True))


JOINED: dict[str, Callable[[Any, Any], Any]] = {
    "none": lambda old, new: new,
    "add": np.add,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
}


def _written(x: np.ndarray, places: np.ndarray, updates: np.ndarray, reduction: str) -> np.ndarray:
    """`updates` [n, rest] joined one after the other to x[place] of places [n, depth]."""
    made = x.copy()
    for place, update in zip(places.tolist(), updates, strict=True):
        made[tuple(place)] = JOINED[reduction](made[tuple(place)], update)
    return made


def _scatter_elements(d: Draw) -> Case:
    kind, reduction, axis = d.rng.choice(KINDS), d.rng.choice(tuple(JOINED)), d.signed

    def expected(x: np.ndarray, index: np.ndarray, updates: np.ndarray) -> np.ndarray:
        places = np.stack([index if i == axis % x.ndim else each for i, each in enumerate(np.indices(index.shape))], -1)
        return _written(x, places.reshape(-1, x.ndim), updates.reshape(-1), reduction)

    index, updates = d.index(d.along("n"), size_of(d.at), True), Given(d.along("n"), kind)
    return _node(d, "ScatterElements", Given(d.dims, kind), index, updates, expected=expected, axis=axis, reduction=reduction)


def _scatter_nd(d: Draw) -> Case:
    depth, kind, reduction = d.rng.randint(1, d.rank), d.rng.choice(KINDS), d.rng.choice(tuple(JOINED))

    def expected(x: np.ndarray, index: np.ndarray, updates: np.ndarray) -> np.ndarray:
        return _written(x, index.reshape(-1, depth), updates.reshape(-1, *x.shape[depth:]), reduction)

    index = d.index(("n", "m", depth), _shortest(d.dims[:depth]), True)
    updates = Given(("n", "m", *d.dims[depth:]), kind)
    return _node(d, "ScatterND", Given(d.dims, kind), index, updates, expected=expected, reduction=reduction)


def _tensor_scatter(d: Draw) -> Case:
    write = Given((2,), torch.int64, zero, lambda _: 3)
    return _node(d, "TensorScatter", Given((2, 3, 5, 4)), Given((2, 3, 3, 4)), write, axis=d.rng.choice((2, -2)))


def _unpool(d: Draw) -> Case:
    index = Given((2, 3, 2, 3), torch.int64, zero, lambda _: 2 * 3 * 4 * 6)
    return _node(d, "MaxUnpool", Given((2, 3, 2, 3)), index, kernel_shape=[2, 2], strides=[2, 2])


def _rois(d: Draw) -> Case:
    return _node(
        d, "RoiAlign", Given((2, 3, 6, 6)), Given(("n", 4), loose=True), Given(("n",), torch.int64, loose=True),
        output_height=2, output_width=2, sampling_ratio=2,
    )  # fmt: skip


def _loss(d: Draw) -> Case:
    op = d.rng.choice(("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"))
    return _node(d, op, Given(("n", 5)), d.index(("n",), lambda _: 5, True))


def _reverse(d: Draw) -> Case:
    return _node(d, "ReverseSequence", Given((4, 3, 2)), Given((3,), torch.int64, loose=True), batch_axis=1, time_axis=0)


def _grid(d: Draw) -> Case:
    mode = d.rng.choice(("linear", "nearest", "cubic"))
    padding = d.rng.choice(("zeros", "border", "reflection"))
    return _node(d, "GridSample", Given((2, 3, 4, 5)), Given((2, 3, 2, 2), loose=True), mode=mode, padding_mode=padding)


def _lengths(d: Draw) -> Case:
    shapes: tuple[tuple[int, ...], ...] = ((4, 2, 3), (1, 20, 3), (1, 20, 5), (1, 40))
    return _node(d, "LSTM", *[Given(shape) for shape in shapes], Given((2,), torch.int32, loose=True), hidden_size=5)


def _rotary(d: Draw) -> Case:
    positions = Given((2, 3), torch.int64, lambda _: -5, lambda _: 5)
    return _node(d, "RotaryEmbedding", Given((2, 3, 8)), Given((5, 2)), Given((5, 2)), positions, num_heads=2)


def _moved_taps(d: Draw) -> Case:
    return _node(d, "DeformConv", Given((1, 2, 4, 4)), Given((3, 2, 2, 2)), Given((1, 8, 3, 3), loose=True), kernel_shape=[2, 2])


FAMILIES: tuple[Callable[[Draw], Case], ...] = (
    _gather, _gather, _gather_elements, _gather_nd, _scatter_elements, _scatter_elements, _scatter_nd, _scatter_nd, _tensor_scatter,
    _unpool, _rotary, _rois, _loss, _reverse, _grid, _lengths, _moved_taps,
)  # fmt: skip


def onnx_case(rng: random.Random) -> Case:
    return rng.choice(FAMILIES)(Draw(rng))
