"""Sequences and optionals, as Python lists and None, which exist only during tracing."""

from __future__ import annotations

from typing import Any

import torch

from llmos.compiler.frontend.onnx.dtypes import torch_dtype
from llmos.compiler.frontend.onnx.registry import Ints, Known, Value, op
from llmos.compiler.frontend.onnx.values import ConstantValue, constant_value
from llmos.runtime.errors import UnsupportedError


def _items(value: Value) -> list[Any]:
    if not isinstance(value, list):
        raise UnsupportedError("a sequence is needed here.")
    return value


@op("SequenceConstruct")
def sequence_construct(*items: Value) -> Any:
    return ([*items],)


@op("SequenceEmpty")
def sequence_empty(*, dtype: int = 1) -> Any:
    torch_dtype(dtype)
    return ([],)


@op("SequenceAt")
def sequence_at(sequence: Value, position: Ints) -> Any:
    return (_items(sequence)[position[0]],)


@op("SequenceInsert")
def sequence_insert(sequence: Value, tensor: Value, position: Ints | None = None) -> Any:
    items = [*_items(sequence)]
    items.insert(position[0] if position is not None else len(items), tensor)
    return (items,)


@op("SequenceErase")
def sequence_erase(sequence: Value, position: Ints | None = None) -> Any:
    items = [*_items(sequence)]
    items.pop(position[0] if position is not None else -1)
    return (items,)


@op("SequenceLength")
def sequence_length(sequence: Value) -> ConstantValue:
    return constant_value(len(_items(sequence)), "int64")


@op("SplitToSequence")
def split_to_sequence(x: torch.Tensor, split: Known = None, *, axis: int = 0, keepdims: int = 1) -> Any:
    if split is None:
        parts = torch.split(x, 1, axis)
        return ([part if keepdims else part.squeeze(axis) for part in parts],)
    if not isinstance(split, ConstantValue) or split.is_symbolic:
        raise UnsupportedError("SplitToSequence needs constant lengths.")
    lengths = split.array.tolist()
    return (list(torch.split(x, lengths, axis)),)


@op("ConcatFromSequence")
def concat_from_sequence(sequence: Value, *, axis: int, new_axis: int = 0) -> torch.Tensor:
    items = _items(sequence)
    if all(isinstance(item, torch.Tensor) for item in items):
        return torch.stack(items, axis) if new_axis else torch.cat(items, axis)
    raise UnsupportedError("ConcatFromSequence of sizes isn't supported.")


@op("Optional")
def optional(value: Value = None, *, type: Any = None) -> Any:
    return (value,)


@op("OptionalHasElement")
def optional_has_element(value: Value = None) -> ConstantValue:
    return constant_value(value is not None, "bool")


@op("OptionalGetElement")
def optional_get_element(value: Value) -> Any:
    if value is None:
        raise UnsupportedError("OptionalGetElement of an empty optional.")
    return (value,)
