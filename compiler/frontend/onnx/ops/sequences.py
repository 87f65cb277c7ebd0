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
    """Lower SequenceConstruct of any values."""
    return ([*items],)


@op("SequenceEmpty")
def sequence_empty(*, dtype: int = 1) -> Any:
    """Lower SequenceEmpty. Raises UnsupportedError for an element type without arithmetic."""
    torch_dtype(dtype)
    return ([],)


@op("SequenceAt")
def sequence_at(sequence: Value, position: Ints) -> Any:
    """Lower SequenceAt, at a constant position; a negative one counts from the end."""
    return (_items(sequence)[position[0]],)


@op("SequenceInsert")
def sequence_insert(sequence: Value, tensor: Value, position: Ints | None = None) -> Any:
    """Lower SequenceInsert, before a constant position or at the end."""
    items = [*_items(sequence)]
    items.insert(position[0] if position is not None else len(items), tensor)
    return (items,)


@op("SequenceErase")
def sequence_erase(sequence: Value, position: Ints | None = None) -> Any:
    """Lower SequenceErase, at a constant position or the end."""
    items = [*_items(sequence)]
    items.pop(position[0] if position is not None else -1)
    return (items,)


@op("SequenceLength")
def sequence_length(sequence: Value) -> ConstantValue:
    """Lower SequenceLength, an int64 constant."""
    return constant_value(len(_items(sequence)), "int64")


@op("SplitToSequence")
def split_to_sequence(x: torch.Tensor, split: Known = None, *, axis: int = 0, keepdims: int = 1) -> Any:
    """Lower SplitToSequence; without `split` into slices of length 1, squeezed unless `keepdims`.

    Raises UnsupportedError for lengths that aren't constant.
    """
    if split is None:
        parts = torch.split(x, 1, axis)
        return ([part if keepdims else part.squeeze(axis) for part in parts],)
    if not isinstance(split, ConstantValue) or split.is_symbolic:
        raise UnsupportedError("SplitToSequence needs constant lengths.")
    lengths = split.array.tolist()
    return (list(torch.split(x, lengths, axis)),)


@op("ConcatFromSequence")
def concat_from_sequence(sequence: Value, *, axis: int, new_axis: int = 0) -> torch.Tensor:
    """Lower ConcatFromSequence, along an axis or a new one. Raises UnsupportedError for a sequence of sizes."""
    items = _items(sequence)
    if all(isinstance(item, torch.Tensor) for item in items):
        return torch.stack(items, axis) if new_axis else torch.cat(items, axis)
    raise UnsupportedError("ConcatFromSequence of sizes isn't supported.")


@op("Optional")
def optional(value: Value = None, *, type: Any = None) -> Any:
    """Lower Optional, of a value or empty."""
    return (value,)


@op("OptionalHasElement")
def optional_has_element(value: Value = None) -> ConstantValue:
    """Lower OptionalHasElement, a bool constant."""
    return constant_value(value is not None, "bool")


@op("OptionalGetElement")
def optional_get_element(value: Value) -> Any:
    """Lower OptionalGetElement. Raises UnsupportedError for an empty optional."""
    if value is None:
        raise UnsupportedError("OptionalGetElement of an empty optional.")
    return (value,)
