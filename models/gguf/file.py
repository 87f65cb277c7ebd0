"""A GGUF file, mapped: its metadata, and its tensors as bytes, floats, or integers with scales."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from llmos.models.gguf.blocks import BlockIntegers, dequantized, unpacked
from llmos.models.gguf.header import Header, TensorEntry, Value, quoted, read_header
from llmos.models.gguf.types import OTHERS, TYPES, BlockType
from llmos.runtime.errors import UnsupportedError, UserError


@dataclass(frozen=True)
class GgufTensor:
    """shape: the row's length last. data: uint8 [bytes], in the file; blocks follow each other row by row."""

    name: str
    type: BlockType
    shape: tuple[int, ...]
    data: np.ndarray

    def dequantized(self) -> np.ndarray:
        """float32 of `shape`, which is what ggml gives. Raises UserError for blocks whose scale is NaN or infinite."""
        try:
            return dequantized(self.data, self.type).reshape(self.shape)
        except UserError as error:
            raise UserError(f"the tensor {quoted(self.name)} {error}") from None

    def unpacked(self) -> BlockIntegers | None:
        """The blocks as integers, without rounding anew; None for a tensor of plain floats. Raises UserError as `dequantized`."""
        if not self.type.is_quantized:
            return None
        try:
            return unpacked(self.data, self.type, self.shape)
        except UserError as error:
            raise UserError(f"the tensor {quoted(self.name)} {error}") from None


@dataclass(frozen=True)
class GgufFile:
    """metadata: numbers, text, lists of text, and numpy arrays of numbers; bytes that are no UTF-8 are surrogates in text."""

    path: Path
    version: int
    metadata: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]

    @classmethod
    def open(cls, path: str | Path) -> GgufFile:
        """Maps a file; no tensor is read. Raises UserError for one that is damaged, UnsupportedError for types that aren't read."""
        file = Path(path)
        try:
            data = np.memmap(file, np.uint8, "r")
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: can't be read ({error})") from None
        try:
            header = read_header(data.data)
            return cls(file, header.version, header.metadata, _tensors(header, data))
        except UserError as error:
            raise type(error)(f"{file}: {error}") from None


def _tensors(header: Header, data: np.ndarray) -> dict[str, GgufTensor]:
    found: dict[str, GgufTensor] = {}
    ends: list[tuple[int, int, str]] = []
    for entry in header.tensors:
        if entry.name in found:
            raise UserError(f"the tensor {quoted(entry.name)} is there twice; copy the file again")
        kind = _type(entry)
        start, size = header.data_start + entry.offset, _size(entry, kind)
        if entry.offset % header.alignment:
            raise UserError(
                f"the tensor {quoted(entry.name)} lies at {entry.offset}, no multiple of {header.alignment}; copy the file again"
            )
        if start + size > len(data):
            raise UserError(f"the tensor {quoted(entry.name)} ends at byte {start + size:,}, and the file at {len(data):,}; copy it again")
        found[entry.name] = GgufTensor(entry.name, kind, entry.shape, data[start : start + size])
        ends.append((start, start + size, entry.name))
    _require_apart(sorted(ends))
    return found


def _type(entry: TensorEntry) -> BlockType:
    kind = TYPES.get(entry.type_code)
    if kind is None:
        name = OTHERS.get(entry.type_code, f"of the unknown type {entry.type_code}")
        raise UnsupportedError(
            f"the tensor {quoted(entry.name)} is {name}; supported are {', '.join(each.name for each in TYPES.values())}"
        )
    return kind


def _size(entry: TensorEntry, kind: BlockType) -> int:
    """Bytes of a tensor. Raises UserError for a dimension of 0, or rows that aren't whole blocks."""
    if not all(entry.shape):
        raise UserError(f"the tensor {quoted(entry.name)} has the shape {list(entry.shape)}, without elements; copy the file again")
    if entry.shape[-1] % kind.elements:
        raise UserError(f"the tensor {quoted(entry.name)} has rows of {entry.shape[-1]}, which blocks of {kind.elements} don't divide")
    return math.prod(entry.shape) // kind.elements * kind.num_bytes


def _require_apart(ends: Sequence[tuple[int, int, str]]) -> None:
    for (_, end, name), (start, _, following) in pairwise(ends):
        if start < end:
            raise UserError(f"the tensors {quoted(name)} and {quoted(following)} overlap; copy the file again")
