"""Weights beside a saved stage: a safetensors file, written one tensor at a time and read by mmap."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llmos.compiler.ir.weights import Weight
from llmos.runtime.artifact import safetensors
from llmos.runtime.artifact.dtypes import DTYPES
from llmos.runtime.errors import UserError

_BY_SAFETENSORS_NAME = {dtype.safetensors: dtype for dtype in DTYPES.values()}


def write_weights(file: BinaryIO, weights: Mapping[str, Weight]) -> None:
    """Writes all weights in order."""
    specs = safetensors.layout((name, weight.dtype, tuple(weight.shape)) for name, weight in weights.items())
    file.write(safetensors.header(specs))
    for spec in specs:
        file.write(np.ascontiguousarray(weights[spec.name].load()).reshape(-1).view(np.uint8).data)
        file.write(bytes(safetensors.aligned(spec.num_bytes) - spec.num_bytes))


def read_weights(path: Path) -> dict[str, Weight]:
    """The tensors of a safetensors file, in its order. Raises UserError where it isn't one or is cut short."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length < path.stat().st_size else None
    except OSError as error:
        raise UserError(f"can't read the weights {path}: {error.strerror}") from None
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise UserError(f"{path} is not a safetensors file")
    header.pop("__metadata__", None)
    return {
        name: _weight(path, 8 + length, name, entry) for name, entry in header.items() if not name.startswith(safetensors.PADDING_PREFIX)
    }


def _weight(path: Path, data_offset: int, name: str, entry: Mapping[str, Any]) -> Weight:
    try:
        dtype = _BY_SAFETENSORS_NAME[str(entry["dtype"])]
        shape = tuple(int(dim) for dim in entry["shape"])
        begin, end = map(int, entry["data_offsets"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: its entry for {name} can't be read") from None
    if data_offset + end > path.stat().st_size or end - begin != int(np.prod(shape, dtype=np.int64)) * dtype.num_bytes:
        raise UserError(f"{path} is cut short or damaged at {name}: save it again")
    return Weight(dtype.name, shape, _loader(path, np.dtype(dtype.storage), shape, data_offset + begin))


def _loader(path: Path, dtype: np.dtype, shape: tuple[int, ...], offset: int) -> Callable[[], np.ndarray]:
    if 0 in shape:
        return lambda: np.empty(shape, dtype)
    return functools.partial(np.memmap, path, dtype, "r", offset, shape)
