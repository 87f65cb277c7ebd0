"""What a format of quantized checkpoints says of itself, and reading its settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import torch

from llmos.models.quantized_checkpoints.weight import QuantizedWeight
from llmos.runtime.errors import UserError


class Scheme(Protocol):
    """A format, with the settings of one checkpoint.

    markers: suffixes of which a quantized layer has one. tensors: the suffixes that its unpacking reads.
    """

    markers: ClassVar[tuple[str, ...]]
    tensors: ClassVar[tuple[str, ...]]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the compiled model does otherwise than the format's library."""

    def unpack(self, layer: str, tensors: Mapping[str, torch.Tensor]) -> QuantizedWeight:
        """The weight of a layer; `tensors` has its own by suffix. Raises UserError where they contradict the settings."""


def integer(config: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    """The first of the settings that is there. Raises UserError where none is, or it isn't a whole number."""
    for name in names:
        value = config.get(name)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int):
                raise UserError(f"quantization_config: {name} is {value!r}, not a whole number")
            return value
    if default is None:
        raise UserError(f"quantization_config has no {names[0]}")
    return default


def flag(config: Mapping[str, Any], name: str, default: bool) -> bool:
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise UserError(f"quantization_config: {name} is {value!r}, not true or false")
    return value


def group_size(config: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    """The setting of columns a group, -1 for the whole row. Raises UserError for a number that is neither."""
    size = integer(config, *names, default=default)
    if size != -1 and size < 1:
        raise UserError(f"quantization_config: {names[0]} is {size}; it is -1 or at least 1")
    return size


def required(layer: str, tensors: Mapping[str, torch.Tensor], suffix: str) -> torch.Tensor:
    if suffix not in tensors:
        raise UserError(f"{layer} has no {suffix}, which a layer of its format needs; copy the files again")
    return tensors[suffix]
