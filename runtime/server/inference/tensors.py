"""Tensors of the Open Inference Protocol: datatypes, JSON data and binary data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from llmos.runtime.artifact.bfloat16 import from_bfloat16, to_bfloat16
from llmos.runtime.artifact.dtypes import DTYPES
from llmos.runtime.artifact.manifest import TensorSpec
from llmos.runtime.engine.model import Array, Model
from llmos.runtime.errors import UserError
from llmos.runtime.native.abi import MAX_NDIM
from llmos.runtime.server.core.errors import HttpError
from llmos.runtime.server.core.json import array_pieces

DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
}
_NUMPY_NAMES = {datatype: name for name, datatype in DATATYPES.items()}
MAX_ELEMENTS = 1 << 40


def require_datatypes(model: Model) -> None:
    """Raise UserError if an input or output has a dtype that the protocol lacks."""
    for spec in (*model.signature.inputs, *model.signature.outputs):
        if spec.dtype not in DATATYPES:
            raise UserError(f"model '{model.name}' can't be served: '{spec.name}' is {spec.dtype}, which the protocol has no datatype for")


def wire_dtype(datatype: str) -> np.dtype[Any]:
    """Return the little-endian numpy dtype of a datatype; BF16 is sent as uint16 bits. Raises HttpError 400 for an unknown one."""
    name = _NUMPY_NAMES.get(datatype)
    if name is None:
        raise HttpError(400, f"datatype '{datatype}' isn't supported: use one of {', '.join(_NUMPY_NAMES)}")
    return np.dtype(DTYPES[name].storage).newbyteorder("<")


def check_shape(name: str, shape: object) -> tuple[int, ...]:
    """Validate a tensor's shape from JSON. Raises HttpError 400."""
    if not isinstance(shape, list) or any(type(size) is not int or size < 0 for size in shape):
        raise HttpError(400, f"input '{name}': 'shape' must be an array of integers that are not negative")
    if len(shape) > MAX_NDIM or math.prod(size or 1 for size in shape) > MAX_ELEMENTS:  # numpy counts so, too
        raise HttpError(400, f"input '{name}': its shape is too large")
    return tuple(shape)


def from_binary(name: str, datatype: str, shape: tuple[int, ...], data: memoryview) -> Array:
    """Copy a tensor's bytes to an array, since they may be unaligned in the body.

    Raises HttpError 400 for a wrong number of bytes, or a BOOL other than 0 and 1.
    """
    dtype = wire_dtype(datatype)
    wanted = math.prod(shape) * dtype.itemsize
    if len(data) != wanted:
        raise HttpError(400, f"input '{name}': shape {list(shape)} of {datatype} takes {wanted} bytes, got {len(data)}")
    if datatype == "BOOL" and len(data) and np.frombuffer(data, np.uint8).max() > 1:
        raise HttpError(400, f"input '{name}': a BOOL byte must be 0 or 1")
    return np.frombuffer(data, dtype=dtype).astype(dtype.newbyteorder("=")).reshape(shape)


def from_json(name: str, datatype: str, shape: tuple[int, ...], data: object) -> Array:
    """Build a tensor from flat or nested JSON arrays. Raises HttpError 400 for elements that don't match the datatype or the shape."""
    if not isinstance(data, list):
        raise HttpError(400, f"input '{name}': 'data' must be an array")
    dtype = wire_dtype(datatype)
    flat, found = _flatten(name, data)
    if len(flat) != math.prod(shape) or (len(found) != 1 and found != shape):
        raise HttpError(400, f"input '{name}': shape {list(shape)} takes {math.prod(shape)} elements, got {list(found)}")
    # Check types first: numpy would accept strings, and allocate an array as wide as the longest of them.
    if not set(map(type, flat)) <= _ELEMENT_TYPES.get(datatype, {int}):
        raise HttpError(400, f"input '{name}': an element of 'data' is no {datatype}")
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            if datatype == "BF16":
                bits = to_bfloat16(np.array(flat, np.float64).astype(np.float32)).reshape(shape)
                return _in_range(bits, from_bfloat16(bits))
            if datatype == "BOOL" and not set(flat) <= {0, 1}:
                raise OverflowError
            array = np.array(flat, dtype).reshape(shape)
            return _in_range(array, array)
    except OverflowError as error:
        raise HttpError(400, f"input '{name}': an element of 'data' is out of range for {datatype}") from error


def _in_range(array: Array, values: Array) -> Array:
    """Return an array whose values are finite, as JSON's numbers are. Raises OverflowError."""
    if values.dtype.kind == "f" and bool(np.isinf(values).any()):
        raise OverflowError
    return array


_ELEMENT_TYPES: dict[str, set[type]] = {name: {int, float} for name in ("FP16", "BF16", "FP32", "FP64")} | {"BOOL": {bool, int}}


def _flatten(name: str, data: list[Any]) -> tuple[list[Any], tuple[int, ...]]:
    """Return the elements of nested lists in row-major order, and their shape."""
    shape = [len(data)]
    while data and type(data[0]) is list:
        size = len(data[0])
        if len(shape) == MAX_NDIM or any(type(row) is not list or len(row) != size for row in data):
            raise HttpError(400, f"input '{name}': the arrays in 'data' must be nested evenly, {MAX_NDIM} levels at most")
        data = list(itertools.chain.from_iterable(data))
        shape.append(size)
    return data, tuple(shape)


def to_json(spec: TensorSpec, array: Array) -> Iterator[bytes]:
    """Write the flat elements as JSON, in pieces. NaN becomes null, which clients read as NaN. Raises HttpError 400 for an infinity."""
    values = from_bfloat16(array) if spec.dtype == "bfloat16" else array
    flat = values.reshape(-1)
    if flat.dtype.kind == "f" and bool(np.isinf(flat).any()):
        raise HttpError(400, f"output '{spec.name}' holds Infinity, which JSON has no form for: ask for binary data ('binary_data': true)")
    return array_pieces(flat)


def to_binary(array: Array) -> bytes:
    """Return row-major little-endian bytes."""
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
