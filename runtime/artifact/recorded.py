"""The arrays of an accuracy report: small ones as bytes, larger ones as a recipe, each with a digest."""

from __future__ import annotations

import base64
import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmos.runtime.artifact.dtypes import DTYPES
from llmos.runtime.artifact.fields import Fields, fail

KINDS = ("integers", "mask", "normal")
_BLOCK = 1 << 15  # elements generated at a time
_FIELDS, _FIELD_BITS = 4, 16  # a normal number is the sum of four 16-bit uniform ones, which one raw 64-bit number gives
_EVERY_OTHER = np.uint64(0x0000FFFF0000FFFF)


@dataclass(frozen=True)
class RandomInput:
    """How to generate an array from raw bits of PCG64, whose stream is the same in every numpy version.

    "integers": uniform in [low, high]. "mask": ones, and zeros in the second half of the last row. "normal": `mean` and `std`
    (a sum of uniform numbers, within 3.5 std), clipped to [low, high].
    """

    kind: str
    seed: int
    low: float
    high: float
    mean: float = 0.0
    std: float = 1.0

    def make(self, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """Generate a dense array; bfloat16 as uint16."""
        storage = np.dtype(DTYPES[dtype].storage)
        if storage.kind == "c":
            pairs: np.ndarray = self.make("float32" if storage.itemsize == 8 else "float64", (*shape, 2)).view(storage)
            return pairs.reshape(shape)
        if self.kind == "mask":
            return _padded_mask(shape, storage)
        stream = np.random.PCG64(self.seed)
        made = np.empty(math.prod(shape), storage)
        for start in range(0, made.size, _BLOCK):  # blocks keep intermediates in cache
            block = made[start : start + _BLOCK]
            block[:] = self._from_bits(stream.random_raw(block.size).astype(np.uint64, copy=False), dtype)
        return made.reshape(shape)

    def _from_bits(self, raw: np.ndarray, dtype: str) -> np.ndarray:
        if self.kind == "integers":
            span = min(int(self.high) - int(self.low) + 1, 2**63)
            whole: np.ndarray = int(self.low) + (raw % np.uint64(span)).astype(np.int64)
            return whole
        unit = (_sum_of_fields(raw).astype(np.float64) / 2**_FIELD_BITS - _FIELDS / 2) * math.sqrt(12 / _FIELDS)
        values = np.clip(self.mean + self.std * unit, self.low, self.high)
        if dtype == "bfloat16":
            values = values.astype(np.float32).view(np.uint32) >> 16
        made: np.ndarray = values
        return made

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "seed": self.seed, "low": self.low, "high": self.high, "mean": self.mean, "std": self.std}

    @classmethod
    def parse(cls, fields: Fields) -> RandomInput:
        kind = fields.string("kind")
        if kind not in KINDS:
            raise fail(f"{fields.path}.kind: {kind!r} is no recipe that this llmos knows: install a newer llmos")
        return cls(kind, fields.integer("seed"), *(fields.number(key) for key in ("low", "high", "mean", "std")))


def _sum_of_fields(raw: np.ndarray) -> np.ndarray:
    """Sum the four 16-bit fields of each number, two at a time in 32-bit halves."""
    pairs = (raw & _EVERY_OTHER) + ((raw >> np.uint64(_FIELD_BITS)) & _EVERY_OTHER)
    total: np.ndarray = (pairs & np.uint64(2**32 - 1)) + (pairs >> np.uint64(32))
    return total


def _padded_mask(shape: tuple[int, ...], storage: np.dtype[Any]) -> np.ndarray:
    mask = np.ones(shape, storage)
    if mask.ndim and mask.shape[-1] > 1:
        mask.reshape(-1, mask.shape[-1])[-1:, mask.shape[-1] // 2 :] = 0
    return mask


@dataclass(frozen=True)
class RecordedArray:
    """One array: `data` (little-endian bytes, row-major) or a recipe; `sha256` of its bytes in both cases.

    `dtype` is a name of DTYPES.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str
    data: bytes | None = None
    random_input: RandomInput | None = None

    @classmethod
    def of(cls, name: str, dtype: str, array: np.ndarray, random_input: RandomInput | None = None) -> RecordedArray:
        """Record an array, as bytes unless `random_input` generates it."""
        return cls(name, dtype, tuple(array.shape), _digest(array), None if random_input else dense_bytes(array), random_input)

    def load(self) -> np.ndarray:
        """Return the array; bfloat16 as uint16. Raises ArtifactError if it doesn't match the recorded digest."""
        if self.random_input is not None:
            array = self.random_input.make(self.dtype, self.shape)
        else:
            storage = np.dtype(DTYPES[self.dtype].storage).newbyteorder("<")
            assert self.data is not None
            if len(self.data) != math.prod(self.shape) * storage.itemsize:
                raise fail(f"accuracy report: {self.name!r} holds {len(self.data)} bytes, which its shape doesn't take")
            array = np.frombuffer(self.data, storage).reshape(self.shape)
        if _digest(array) != self.sha256:
            raise fail(f"accuracy report: {self.name!r} can't be made again as it was recorded")
        return array

    def to_json(self) -> dict[str, Any]:
        source = {"recipe": self.random_input.to_json()} if self.random_input else {"data": base64.b64encode(self.data or b"").decode()}
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape), "sha256": self.sha256, **source}

    @classmethod
    def parse(cls, fields: Fields) -> RecordedArray:
        dtype = fields.string("dtype")
        if dtype not in DTYPES:
            raise fail(f"{fields.path}.dtype: unknown dtype {dtype!r}")
        random_input = RandomInput.parse(fields.record("recipe")) if "recipe" in fields.value else None
        data = None if random_input else _decoded(fields)
        return cls(fields.string("name"), dtype, fields.integers("shape"), fields.string("sha256"), data, random_input)


def _decoded(fields: Fields) -> bytes:
    try:
        return base64.b64decode(fields.string("data"), validate=True)
    except ValueError:
        raise fail(f"{fields.path}.data: not base64") from None


def dense_bytes(array: np.ndarray) -> bytes:
    """Return row-major little-endian bytes."""
    return _dense(array).tobytes()


def _digest(array: np.ndarray) -> str:
    """Hash the `dense_bytes` without a copy."""
    return hashlib.sha256(_dense(array).reshape(-1).view(np.uint8).data).hexdigest()


def _dense(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def sample_rows(array: np.ndarray, limit: int) -> np.ndarray:
    """Return evenly spaced rows of the last dimension, at most `limit` elements, [rows, width]; single elements if a row exceeds it."""
    width = array.shape[-1] if array.ndim and 0 < array.shape[-1] <= limit else 1
    rows = array.reshape(-1, width)
    count = min(len(rows), limit // width)
    return rows[np.arange(count) * len(rows) // max(1, count)]
