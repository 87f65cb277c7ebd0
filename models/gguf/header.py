"""The header of a GGUF file (ggml's docs/gguf.md, versions 2 and 3): metadata, and where each tensor lies.

    "GGUF"  version u32  tensors u64  entries u64
    entry:  key string, type u32, value        string: length u64, bytes        array: type u32, length u64, values
    tensor: name string, rank u32, dims u64 each (the row's length first), type u32, offset u64 from the start of the data

All little-endian. The data starts at the next multiple of `general.alignment` (32 without it) after the header. Every count is held against
the bytes that are left before it is followed, so that a damaged file costs no more than its own size.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from llmos.runtime.errors import UnsupportedError, UserError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT_KEY, DEFAULT_ALIGNMENT = "general.alignment", 32
MAX_RANK = 4

Value = bool | int | float | str | np.ndarray | list[str]

_STRING, _ARRAY, _BOOL = 8, 9, 7
_NUMBERS: Mapping[int, np.dtype[Any]] = MappingProxyType(
    {code: np.dtype(name) for code, name in ((0, "u1"), (1, "i1"), (2, "<u2"), (3, "<i2"), (4, "<u4"), (5, "<i4"), (6, "<f4"), (7, "u1"),
                                             (10, "<u8"), (11, "<i8"), (12, "<f8"))}
)  # fmt: skip
_SHORTEST_ENTRY = 8 + 4 + 1  # bytes
_SHORTEST_TENSOR = 8 + 4 + 8 + 4 + 8


@dataclass(frozen=True)
class TensorEntry:
    """A tensor as the header says. shape: the row's length last, as numpy has it. offset: bytes from the start of the data."""

    name: str
    shape: tuple[int, ...]
    type_code: int
    offset: int


@dataclass(frozen=True)
class Header:
    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[TensorEntry, ...]
    alignment: int
    data_start: int  # bytes from the start of the file


def quoted(name: str) -> str:
    """A name for a line of text, however long and of whatever characters."""
    return repr(name if len(name) <= 80 else name[:80] + "...")


def read_header(data: memoryview) -> Header:
    """Raises UserError for a file that is damaged or of another format, UnsupportedError for a version that isn't read."""
    cursor = Cursor(data)
    if bytes(cursor.take(min(4, len(data)), "magic")) != MAGIC:
        raise UserError("not a GGUF file")
    version = _version(cursor)
    num_tensors, num_entries = cursor.u64("number of tensors"), cursor.u64("number of entries")
    cursor.require(num_entries, _SHORTEST_ENTRY, "entries of metadata")
    metadata: dict[str, Value] = {}
    for _ in range(num_entries):
        key = cursor.name("key")
        if key in metadata:
            raise UserError(f"the metadata has {quoted(key)} twice; copy the file again")
        metadata[key] = _value(cursor, quoted(key))
    alignment = _alignment(metadata)
    cursor.require(num_tensors, _SHORTEST_TENSOR, "tensors")
    tensors = tuple(_tensor(cursor) for _ in range(num_tensors))
    return Header(version, metadata, tensors, alignment, -(-cursor.position // alignment) * alignment)


@dataclass
class Cursor:
    """Reads forward through the bytes of a file. Raises UserError at its end."""

    data: memoryview
    position: int = 0

    def take(self, size: int, what: str) -> memoryview:
        if size > len(self.data) - self.position:
            raise UserError(f"the file is cut short or damaged, at byte {self.position} ({what}); copy it again")
        self.position += size
        return self.data[self.position - size : self.position]

    def require(self, count: int, size: int, what: str) -> None:
        """That `count` things of at least `size` bytes can follow."""
        if count * size > len(self.data) - self.position:
            raise UserError(f"the header counts {count:,} {what}, and {len(self.data) - self.position:,} bytes follow; copy the file again")

    def u32(self, what: str) -> int:
        return int(struct.unpack("<I", self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(struct.unpack("<Q", self.take(8, what))[0])

    def string(self, what: str) -> bytes:
        return bytes(self.take(self.u64(what), what))

    def name(self, what: str) -> str:
        """Text that must be UTF-8."""
        at = self.position
        try:
            return self.string(what).decode()
        except UnicodeDecodeError:
            raise UserError(f"the {what} at byte {at} is no UTF-8 text; copy the file again") from None


def _version(cursor: Cursor) -> int:
    version = cursor.u32("version")
    if version not in VERSIONS:
        if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
            raise UnsupportedError("the file is big-endian, which isn't supported; convert it to little-endian")
        raise UnsupportedError(f"GGUF version {version} isn't supported; {' and '.join(map(str, VERSIONS))} are")
    return version


def _value(cursor: Cursor, key: str) -> Value:
    code = cursor.u32(key)
    if code == _ARRAY:
        return _array(cursor, key)
    if code == _STRING:
        return _text(cursor.string(key))
    found: Value = _numbers(cursor, code, 1, key)[0].item()
    return found


def _array(cursor: Cursor, key: str) -> Value:
    """Numbers as a numpy array (a copy), strings as a list."""
    code, count = cursor.u32(key), cursor.u64(key)
    if code == _ARRAY:
        raise UnsupportedError(f"{key}: arrays of arrays aren't supported")
    if code != _STRING:
        return _numbers(cursor, code, count, key)
    cursor.require(count, 8, f"strings of {key}")
    return [_text(cursor.string(key)) for _ in range(count)]


def _numbers(cursor: Cursor, code: int, count: int, key: str) -> np.ndarray:
    if code not in _NUMBERS:
        raise UserError(f"{key} is of the unknown type {code}; copy the file again, or update llmos")
    kind = _NUMBERS[code]
    found = np.frombuffer(cursor.take(count * kind.itemsize, key), kind).copy()
    if code != _BOOL:
        return found
    if (found > 1).any():
        raise UserError(f"{key} is a bool of the value {int(found.max())}; copy the file again")
    return found.astype(np.bool_)


def _text(data: bytes) -> str:
    """Bytes that are no UTF-8, as single tokens may be, stay what they are: as surrogates."""
    return data.decode(errors="surrogateescape")


def _alignment(metadata: Mapping[str, Value]) -> int:
    found = metadata.get(ALIGNMENT_KEY, DEFAULT_ALIGNMENT)
    if isinstance(found, bool) or not isinstance(found, int) or found < 1 or found & (found - 1):
        raise UserError(f"{ALIGNMENT_KEY} is {str(found)[:40]}, not a power of two; copy the file again")
    return found


def _tensor(cursor: Cursor) -> TensorEntry:
    name = cursor.name("name of a tensor")
    said = quoted(name)
    rank = cursor.u32(said)
    if not 1 <= rank <= MAX_RANK:
        raise UserError(f"the tensor {said} has {rank} dimensions, and 1 to {MAX_RANK} are allowed; copy the file again")
    dims = [cursor.u64(said) for _ in range(rank)]
    return TensorEntry(name, tuple(reversed(dims)), cursor.u32(said), cursor.u64(said))
