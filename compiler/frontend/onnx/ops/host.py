"""Ops on constant values (constants and sizes), in numpy over numbers or symbols, so that shapes stay symbolic."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnx import helper

from llmos.compiler.frontend.float_sizes import single
from llmos.compiler.frontend.onnx import conditions
from llmos.compiler.frontend.onnx.registry import Array, Ints, NumOutputs, op
from llmos.compiler.frontend.onnx.values import ConstantValue, constant_value
from llmos.runtime.errors import UnsupportedError

Binary = Callable[[Any, Any], Any]


def _each(function: Binary, a: ConstantValue, b: ConstantValue, dtype: Any = None) -> ConstantValue:
    result = np.frompyfunc(function, 2, 1)(a.array.astype(object), b.array.astype(object))
    return _rounded(np.asarray(result, dtype=object), dtype if dtype is not None else a.dtype)


def _rounded(array: np.ndarray, dtype: Any) -> ConstantValue:
    """Floats that follow from sizes are those of their type: float32 ones are rounded to it after each operation."""
    if dtype != np.float32:
        return constant_value(array, dtype)
    rounded = np.frompyfunc(lambda item: single(item) if isinstance(item, torch.SymFloat) else item, 1, 1)
    return constant_value(np.asarray(rounded(array), dtype=object), dtype)


def _elementwise(name: str, function: Binary, dtype: Any = None) -> Callable[..., ConstantValue]:
    @op(name, on_host=True)
    def compute(a: Array, b: Array) -> ConstantValue:
        return _each(function, a, b, dtype)

    return compute


BINARY = (
    _elementwise("Add", operator.add),
    _elementwise("Sub", operator.sub),
    _elementwise("Mul", operator.mul),
    _elementwise("Div", conditions.divide),
    _elementwise("Mod", operator.mod),
    _elementwise("Equal", conditions.equal, np.bool_),
    _elementwise("Greater", lambda a, b: conditions.less(b, a), np.bool_),
    _elementwise("GreaterOrEqual", lambda a, b: conditions.less_or_equal(b, a), np.bool_),
    _elementwise("Less", conditions.less, np.bool_),
    _elementwise("LessOrEqual", conditions.less_or_equal, np.bool_),
    _elementwise("And", conditions.logical_and, np.bool_),
    _elementwise("Or", conditions.logical_or, np.bool_),
    _elementwise("Xor", conditions.logical_xor, np.bool_),
)


def _fold(function: Binary, items: tuple[ConstantValue, ...]) -> ConstantValue:
    result = items[0]
    for item in items[1:]:
        result = _each(function, result, item)
    return result


@op("Max", on_host=True)
def maximum(*items: Array) -> ConstantValue:
    """Evaluate Max of sizes."""
    return _fold(torch.sym_max, items)


@op("Min", on_host=True)
def minimum(*items: Array) -> ConstantValue:
    """Evaluate Min of sizes."""
    return _fold(torch.sym_min, items)


@op("Not", on_host=True)
def logical_not(x: Array) -> ConstantValue:
    """Evaluate Not, of truth values that follow from sizes."""
    return _map(conditions.logical_not, x, np.bool_)


@op("Neg", on_host=True)
def negative(x: Array) -> ConstantValue:
    """Evaluate Neg of sizes."""
    return _map(operator.neg, x)


@op("Floor", on_host=True)
def floor(x: Array) -> ConstantValue:
    """Evaluate Floor to a whole number."""
    return _map(math.floor, x)


@op("Ceil", on_host=True)
def ceil(x: Array) -> ConstantValue:
    """Evaluate Ceil to a whole number."""
    return _map(math.ceil, x)


@op("Where", on_host=True)
def where(condition: Array, a: Array, b: Array) -> ConstantValue:
    """Evaluate Where, as `conditions.choose` for each element."""
    choice = np.frompyfunc(conditions.choose, 3, 1)
    picked = choice(condition.array.astype(object), a.array.astype(object), b.array.astype(object))
    return constant_value(np.asarray(picked, dtype=object), a.dtype)


@op("Identity", on_host=True)
def identity(x: Array) -> ConstantValue:
    """Evaluate Identity of a constant value."""
    return x


@op("Shape", on_host=True)
def shape(x: Array, *, start: int = 0, end: int | None = None) -> ConstantValue:
    """Evaluate Shape of a constant value, from `start` to `end`."""
    return constant_value(np.array(x.array.shape[start:end], dtype=np.int64))


@op("Size", on_host=True)
def size(x: Array) -> ConstantValue:
    """Evaluate Size of a constant value."""
    return constant_value(x.array.size, np.int64)


@op("Cast", on_host=True)
def cast(x: Array, *, to: int, saturate: int = 1, round_mode: str = "up") -> ConstantValue:
    """Evaluate Cast; a size to float, integer or bool. Raises UnsupportedError for a size to any other type."""
    dtype = helper.tensor_dtype_to_np_dtype(to)
    if not x.is_symbolic:
        return constant_value(x.array.astype(dtype), dtype)
    converters: dict[str, Callable[[Any], Any]] = {
        "f": torch.sym_float,
        "i": torch.sym_int,
        "u": torch.sym_int,
        "b": lambda item: conditions.logical_not(conditions.equal(item, 0)),
    }
    if dtype.kind not in converters:
        raise UnsupportedError(f"Cast of a size to {dtype} isn't supported.")
    return _map(converters[dtype.kind], x, dtype)


@op("Gather", on_host=True)
def gather(x: Array, indices: Array, *, axis: int = 0) -> ConstantValue:
    """Evaluate Gather. Raises UnsupportedError for an index that is itself a size."""
    if indices.is_symbolic:
        raise UnsupportedError("Gather from sizes at an index that is itself a size isn't supported.")
    return constant_value(np.take(x.array, indices.array, axis=axis), x.dtype)


@op("Slice", since=10, on_host=True)
def slice_by_inputs(x: Array, starts: Ints, ends: Ints, axes: Ints | None = None, steps: Ints | None = None) -> ConstantValue:
    """Evaluate Slice from opset 10, with starts, ends, axes and steps as inputs."""
    index = [slice(None)] * x.array.ndim
    strides = steps if steps is not None else (1,) * len(starts)
    for axis, start, end, step in zip(axes if axes is not None else range(len(starts)), starts, ends, strides, strict=True):
        # A backward slice to the front is written with the smallest integer as its end.
        index[axis] = slice(int(start), None if step < 0 and end < -x.array.shape[axis] else int(end), int(step))
    return constant_value(x.array[tuple(index)], x.dtype)


@op("Slice", on_host=True)
def slice_by_attributes(x: Array, *, starts: tuple[int, ...], ends: tuple[int, ...], axes: tuple[int, ...] | None = None) -> ConstantValue:
    """Evaluate Slice before opset 10, with starts, ends and axes as attributes."""
    return slice_by_inputs(x, starts, ends, axes)


@op("Concat", on_host=True)
def concat(*items: Array, axis: int) -> ConstantValue:
    """Evaluate Concat; the result has the dtype of the first item."""
    return constant_value(
        np.concatenate([item.array.astype(object) if item.is_symbolic else item.array for item in items], axis), items[0].dtype
    )


@op("Split", since=13, on_host=True)
def split_by_input(x: Array, split: Ints | None = None, *, num_outputs_: NumOutputs, axis: int = 0, num_outputs: int | None = None) -> Any:
    """Evaluate Split from opset 13, with lengths as an input; without them into `num_outputs_` parts, the last one smaller."""
    if split is None:
        each = -(-x.array.shape[axis] // num_outputs_)
        return tuple(constant_value(part, x.dtype) for part in np.split(x.array, [each * (i + 1) for i in range(num_outputs_ - 1)], axis))
    return tuple(constant_value(part, x.dtype) for part in np.split(x.array, np.cumsum(split)[:-1], axis))


@op("Split", on_host=True)
def split_by_attribute(x: Array, *, num_outputs_: NumOutputs, axis: int = 0, split: tuple[int, ...] | None = None) -> Any:
    """Evaluate Split before opset 13, with lengths as an attribute."""
    return split_by_input(x, split, num_outputs_=num_outputs_, axis=axis)


@op("Squeeze", since=13, on_host=True)
def squeeze(x: Array, axes: Ints | None = None) -> ConstantValue:
    """Evaluate Squeeze from opset 13, with axes as an input."""
    return constant_value(np.squeeze(x.array, tuple(axes) if axes is not None else None), x.dtype)


@op("Squeeze", on_host=True)
def squeeze_by_attribute(x: Array, *, axes: tuple[int, ...] | None = None) -> ConstantValue:
    """Evaluate Squeeze before opset 13, with axes as an attribute."""
    return squeeze(x, axes)


@op("Unsqueeze", since=13, on_host=True)
def unsqueeze(x: Array, axes: Ints) -> ConstantValue:
    """Evaluate Unsqueeze from opset 13, with axes as an input."""
    return constant_value(np.expand_dims(x.array, tuple(axes)), x.dtype)


@op("Unsqueeze", on_host=True)
def unsqueeze_by_attribute(x: Array, *, axes: tuple[int, ...]) -> ConstantValue:
    """Evaluate Unsqueeze before opset 13, with axes as an attribute."""
    return unsqueeze(x, axes)


@op("Reshape", since=5, on_host=True)
def reshape(x: Array, shape: Ints, *, allowzero: int = 0) -> ConstantValue:
    """Evaluate Reshape; 0 copies the dim at that position unless `allowzero`, -1 infers the dim."""
    dims = [x.array.shape[i] if dim == 0 and not allowzero else int(dim) for i, dim in enumerate(shape)]
    return constant_value(x.array.reshape(dims), x.dtype)


@op("Transpose", on_host=True)
def transpose(x: Array, *, perm: tuple[int, ...] | None = None) -> ConstantValue:
    """Evaluate Transpose; without `perm` the dims are reversed."""
    return constant_value(x.array.transpose(perm), x.dtype)


def _map(function: Callable[[Any], Any], x: ConstantValue, dtype: Any = None) -> ConstantValue:
    result = np.frompyfunc(function, 1, 1)(x.array.astype(object))
    return _rounded(np.asarray(result, dtype=object), dtype if dtype is not None else x.dtype)


def _reduction(name: str, function: Binary, since: int) -> Callable[..., ConstantValue]:
    def reduce_all(x: ConstantValue, keepdims: int) -> ConstantValue:
        items = list(x.array.reshape(-1))
        total = items[0].item() if isinstance(items[0], np.generic) else items[0]
        for item in items[1:]:
            total = function(total, item.item() if isinstance(item, np.generic) else item)
        return constant_value(np.array(total, dtype=object).reshape([1] * x.array.ndim if keepdims else []), x.dtype)

    @op(name, since=since, on_host=True)
    def by_input(x: Array, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> ConstantValue:
        _require_vector(x)
        return x if noop_with_empty_axes and not axes else reduce_all(x, keepdims)

    @op(name, on_host=True)
    def by_attribute(x: Array, *, axes: tuple[int, ...] = (), keepdims: int = 1) -> ConstantValue:
        _require_vector(x)
        return reduce_all(x, keepdims)

    return by_input if since > 1 else by_attribute


def _require_vector(x: ConstantValue) -> None:
    if x.array.ndim != 1 or x.array.size == 0:
        raise UnsupportedError("a reduction over sizes is supported for a non-empty list of them.")


REDUCTIONS = (
    _reduction("ReduceProd", operator.mul, 18),
    _reduction("ReduceProd", operator.mul, 1),
    _reduction("ReduceSum", operator.add, 13),
    _reduction("ReduceSum", operator.add, 1),
    _reduction("ReduceMax", torch.sym_max, 18),
    _reduction("ReduceMax", torch.sym_max, 1),
    _reduction("ReduceMin", torch.sym_min, 18),
    _reduction("ReduceMin", torch.sym_min, 1),
)
