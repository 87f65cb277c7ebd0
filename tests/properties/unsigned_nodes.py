"""Every ONNX op that computes with unsigned integers, as nodes with their exact results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import TensorProto, helper

Array = np.ndarray
DTYPES = ("uint8", "uint16", "uint32", "uint64")
FLOATS = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "float16": TensorProto.FLOAT16}
INTEGERS = {name: helper.np_dtype_to_tensor_dtype(np.dtype(name)) for name in (*DTYPES, "int8", "int16", "int32", "int64")}


def numbers(dtype: str, copies: int = 1) -> dict[str, Array]:
    """x and y [3, 6 * copies], d without zeros, shift counts n: numbers on both sides of the signed maximum; f: floats."""
    top = int(np.iinfo(dtype).max)
    half = top // 2
    values = [
        0,
        1,
        2,
        3,
        half - 1,
        half,
        half + 1,
        half + 2,
        top - 1,
        top,
        7,
        top - half // 2,
        half + half // 3,
        half // 3,
        5,
        top,
        half,
        0,
    ]
    x = np.tile(np.array(values, dtype).reshape(3, 6), (1, copies))
    y = np.roll(x.reshape(-1), 5).reshape(x.shape)
    rows, columns = np.meshgrid(np.linspace(-1, 1, 3, dtype=np.float32), np.linspace(-1, 1, x.shape[1], dtype=np.float32), indexing="ij")
    return {
        "x": x,
        "y": y,
        "z": np.ascontiguousarray(y.T),
        "d": np.where(y == 0, top, y).astype(dtype),
        "n": (np.arange(x.size).reshape(x.shape) % (np.dtype(dtype).itemsize * 8)).astype(dtype),
        "u": x.reshape(-1)[[6, 9, 1, 0, 11]],
        "one": x.reshape(-1)[5:6],
        "f": np.array([0.0, 1.9, half * 0.7, half * 1.5, top * 0.99], np.float32),
        "x4": x[None, None],
        "image": x[:, :6].reshape(1, 18, 1),
        "m": x > y,
        "n2": (np.arange(2 * x.shape[1]).reshape(2, -1) % 5).astype(dtype),
        "ids": np.tile([[0, 2, 1, 0, 2, 1], [1, 1, 0, 2, 2, 2]], (1, copies)),
        "pairs": np.array([[0, 3], [2, 1], [0, 3], [1, 5], [2, 1]]),
        "grid": np.stack([columns, rows], -1)[None],
    }


@dataclass(frozen=True)
class Node:
    """One ONNX node. `exact`: its first output of object arrays of Python integers, before it wraps; `result`: the output's dtype."""

    op: str
    inputs: str
    exact: Callable[..., Any]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, Array] = field(default_factory=dict)
    result: str = ""


def scattered(combine: Callable[[int, int], int] | None) -> Callable[..., Array]:
    """ScatterElements along axis 0."""

    def run(x: Array, ids: Array, y: Array) -> Array:
        out = x.copy()
        for place in np.ndindex(ids.shape):
            at = (int(ids[place]), *place[1:])
            out[at] = combine(out[at], y[place]) if combine else y[place]
        return out

    return run


def scattered_pairs(combine: Callable[[int, int], int] | None) -> Callable[..., Array]:
    """ScatterND of single elements."""

    def run(x: Array, pairs: Array, u: Array) -> Array:
        out = x.copy()
        for pair, value in zip(pairs, u, strict=True):
            at = tuple(int(i) for i in pair)
            out[at] = combine(out[at], value) if combine else value
        return out

    return run


COMBINE: dict[str, Callable[[int, int], int] | None] = {
    "none": None,
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "max": max,
    "min": min,
}


def running(function: Callable[..., Array], unit: int, exclusive: bool) -> Callable[..., Array]:
    """CumSum or CumProd along axis 1; if `exclusive`, in reverse as well."""

    def run(x: Array) -> Array:
        if not exclusive:
            return function(x, axis=1)
        made = function(x[:, ::-1], axis=1)
        return np.concatenate([np.full((len(x), 1), unit, object), made[:, :-1]], 1)[:, ::-1]

    return run


def largest_four(sign: int) -> Callable[[Array], Array]:
    return lambda x: np.array([sorted(row, key=lambda v: sign * v)[:4] for row in x], object)


def compared(relation: Callable[[Any, Any], Any]) -> Callable[..., Array]:
    return lambda x, y: np.asarray(relation(x, y)).astype(bool)


def place_of(choose: Callable[[Any], Any]) -> Callable[[Array], Array]:
    return lambda x: np.array([[list(row).index(choose(row))] for row in x])


def elementwise(dtype: str) -> list[Node]:
    top = int(np.iinfo(dtype).max)
    low, high = top // 2 - 1, top - 1
    bounds = {"low": np.array(low, dtype), "high": np.array(high, dtype)}
    return [
        Node("Pow", "ids n2", lambda ids, n: ids**n, result="int64"),
        Node("Abs", "x", lambda x: x),
        Node("Sign", "x", lambda x: (x > 0).astype(object)),
        Node("Add", "x y", lambda x, y: x + y),
        Node("Sub", "x y", lambda x, y: x - y),
        Node("Mul", "x y", lambda x, y: x * y),
        Node("Div", "x d", lambda x, d: x // d),
        Node("Mod", "x d", lambda x, d: x % d),
        Node("Mod", "x d", lambda x, d: x % d, {"fmod": 1}),
        Node("Max", "x y", np.maximum),
        Node("Min", "x y", np.minimum),
        Node("BitwiseAnd", "x y", lambda x, y: x & y),
        Node("BitwiseOr", "x y", lambda x, y: x | y),
        Node("BitwiseXor", "x y", lambda x, y: x ^ y),
        Node("BitwiseNot", "x", lambda x: top - x),
        Node("BitShift", "x n", lambda x, n: x << n, {"direction": "LEFT"}),
        Node("BitShift", "x n", lambda x, n: x >> n, {"direction": "RIGHT"}),
        Node("Equal", "x y", compared(lambda x, y: x == y), result="bool"),
        Node("Greater", "x y", compared(lambda x, y: x > y), result="bool"),
        Node("GreaterOrEqual", "x y", compared(lambda x, y: x >= y), result="bool"),
        Node("Less", "x y", compared(lambda x, y: x < y), result="bool"),
        Node("LessOrEqual", "x y", compared(lambda x, y: x <= y), result="bool"),
        Node("Where", "m x y", lambda m, x, y: np.where(m, x, y)),
        Node("Clip", "x", lambda x: np.minimum(np.maximum(x, low), high), constants=bounds),
        Node("Clip", "x", lambda x: np.maximum(x, low), constants={"low": bounds["low"]}),
        Node("Clip", "x one", np.maximum),
        Node("PRelu", "x y", lambda x, y: x),
        Node("Shrink", "x", lambda x: np.where(x > 3, x - 2, 0), {"lambd": 3.0, "bias": 2.0}),
    ]


def reductions() -> list[Node]:
    found = [
        Node("TopK", "x", largest_four(-1), {"largest": 1}, {"k": np.array([4])}),
        Node("TopK", "x", largest_four(1), {"largest": 0}, {"k": np.array([4])}),
        Node("ArgMax", "x", place_of(max), {"axis": 1}, result="int64"),
        Node("ArgMin", "x", place_of(min), {"axis": 1}, result="int64"),
        Node("ArgMax", "x", lambda x: x.shape[1] - 1 - place_of(max)(x[:, ::-1]), {"axis": 1, "select_last_index": 1}, result="int64"),
        Node("Unique", "x", lambda x: np.array(sorted(set(x.reshape(-1))), object)),
        Node("NonZero", "x", lambda x: np.array(np.nonzero(x)), result="int64"),
        Node("MatMul", "x z", lambda x, z: x @ z),
        Node("Gemm", "x y", lambda x, y: x @ y.T, {"transB": 1}),
        Node("Einsum", "x y", lambda x, y: (x * y).sum(1), {"equation": "ij,ij->i"}),
    ]
    for axis in (0, 1):
        where = {"axes": np.array([axis])}
        found += [
            Node("ReduceMax", "x", lambda x, axis=axis: x.max(axis, keepdims=True), {}, where),
            Node("ReduceMin", "x", lambda x, axis=axis: x.min(axis, keepdims=True), {}, where),
            Node("ReduceSum", "x", lambda x, axis=axis: x.sum(axis, keepdims=True), {}, where),
            Node("ReduceL1", "x", lambda x, axis=axis: x.sum(axis, keepdims=True), {}, where),
            Node("ReduceProd", "x", lambda x, axis=axis: x.prod(axis, keepdims=True), {}, where),
            Node("ReduceSumSquare", "x", lambda x, axis=axis: (x * x).sum(axis, keepdims=True), {}, where),
        ]
    for exclusive in (0, 1):
        flags = {"exclusive": exclusive, "reverse": exclusive}
        found.append(Node("CumSum", "x", running(np.cumsum, 0, bool(exclusive)), flags, {"axis": np.array(1)}))
        found.append(Node("CumProd", "x", running(np.cumprod, 1, bool(exclusive)), flags, {"axis": np.array(1)}))
    return found


def moves(dtype: str) -> list[Node]:
    top = int(np.iinfo(dtype).max)
    values, fill = np.array([1, top - 1], dtype), np.array(top, dtype)
    found = [
        Node("Pad", "x", lambda x: np.pad(x, ((0, 1), (2, 0)), constant_values=top), {}, {"pads": np.array([0, 2, 1, 0]), "fill": fill}),
        Node("OneHot", "ids", lambda ids: np.where(ids[..., None] == np.arange(3), top - 1, 1), {}, {"n": np.array(3), "values": values}),
        Node("Trilu", "x", np.tril, {"upper": 0}),
        Node("GridSample", "x4 grid", lambda x, grid: x, {"mode": "nearest", "align_corners": 1}),
        Node("Resize", "x4", lambda x: x.repeat(2, 2).repeat(2, 3), {"mode": "nearest"}, {"": fill, "scales": np.float32([1, 1, 2, 2])}),
        Node("Col2Im", "image", lambda x: x.reshape(1, 1, 3, 6), {}, {"size": np.array([3, 6]), "block": np.array([3, 6])}),
        Node("Tile", "x", lambda x: np.tile(x, (2, 1)), {}, {"repeats": np.array([2, 1])}),
    ]
    for name, combine in COMBINE.items():
        found.append(Node("ScatterElements", "x ids y", scattered(combine), {"reduction": name}))
        found.append(Node("ScatterND", "x pairs u", scattered_pairs(combine), {"reduction": name}))
    return found


def conversions(dtype: str) -> list[Node]:
    """To every type; of floats within its range, and of bools, from it."""
    is_half = np.dtype(dtype).itemsize < 4  # numbers that float16 holds
    to = {name: code for name, code in (FLOATS | INTEGERS).items() if name != "float16" or is_half}
    return [
        *[Node("Cast", "x", lambda x: x, {"to": code}, result=name) for name, code in to.items()],
        Node("Cast", "x", lambda x: x != 0, {"to": TensorProto.BOOL}, result="bool"),
        Node("Cast", "f", lambda f: np.array([int(v) for v in f], object), {"to": INTEGERS[dtype]}),
        Node("Cast", "m", lambda m: m, {"to": INTEGERS[dtype]}),
    ]


def nodes(dtype: str) -> list[Node]:
    return [*elementwise(dtype), *reductions(), *moves(dtype), *conversions(dtype)]


def expected(node: Node, inputs: Mapping[str, Array], dtype: str) -> Array:
    """The node's first output: exact numbers, rounded once to a float type or wrapped to an integer one."""
    given = [each.astype(object) if each.dtype.kind in "iu" else each for each in (inputs[name] for name in node.inputs.split())]
    exact, result = np.asarray(node.exact(*given)), np.dtype(node.result or dtype)
    if result.kind in "bf":
        return exact.astype(result)
    bits = np.array([int(v) % 2 ** (result.itemsize * 8) for v in exact.reshape(-1)], np.uint64).reshape(exact.shape)
    return bits.astype(f"uint{result.itemsize * 8}").view(result)
