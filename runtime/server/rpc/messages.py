"""Messages of the Open Inference Protocol over gRPC, as the documents of its REST form, which one place checks for both.

A message is split before it is parsed: `raw_input_contents`, which hold nearly all of a large one, stay where they arrived, and the rest is
parsed. In a large rest each of its bytes can become a hundred, so that it is parsed in a process of its own (`reduce_worker.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from google.protobuf.message import DecodeError

from llmos.runtime.engine.model import Array, Signature
from llmos.runtime.server.core.errors import HttpError
from llmos.runtime.server.inference.infer import InferRequest
from llmos.runtime.server.inference.tensors import DATATYPES, to_binary, wire_dtype
from llmos.runtime.server.rpc import open_inference_pb2

pb2: Any = open_inference_pb2  # whose classes are made when it is imported

_RAW_INPUTS, _RAW_OUTPUTS = 7, 6  # field numbers
_MAX_FIELDS = 4096  # of a message, beside those in its parts
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_CONTENTS: Mapping[str, tuple[str, Any]] = {
    "BOOL": ("bool_contents", np.bool_),
    "UINT8": ("uint_contents", np.uint32),
    "UINT16": ("uint_contents", np.uint32),
    "UINT32": ("uint_contents", np.uint32),
    "UINT64": ("uint64_contents", np.uint64),
    "INT8": ("int_contents", np.int32),
    "INT16": ("int_contents", np.int32),
    "INT32": ("int_contents", np.int32),
    "INT64": ("int64_contents", np.int64),
    "FP32": ("fp32_contents", np.float32),
    "FP64": ("fp64_contents", np.float64),
}


class Pieces:
    """The binary data of inputs, a piece for each. See BinaryData."""

    def __init__(self, pieces: Sequence[memoryview | bytes]) -> None:
        self._left = [memoryview(piece) for piece in reversed(pieces)]

    @property
    def num_left(self) -> int:
        return sum(map(len, self._left))

    def take(self, name: str, num_bytes: object) -> memoryview:
        return self._left.pop()


def parsed(kind: Any, message: bytes) -> Any:
    """Parse a message of a kind of `pb2`. Raises HttpError 400."""
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise HttpError(400, f"the request is no {kind.DESCRIPTOR.name}") from error


def split(message: bytes) -> tuple[bytes, list[memoryview]]:
    """Return a ModelInferRequest without its raw data, and that. Raises HttpError 400."""
    view, rest, raw = memoryview(message), [], []
    for number, begin, data, end in _fields(message):
        if number == _RAW_INPUTS:
            raw.append(view[data:end])
        else:
            rest.append(view[begin:end])
    return (b"".join(rest), raw) if raw else (message, raw)


def _fields(message: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield the number of each field, and where it, its data and what follows begin (https://protobuf.dev/programming-guides/encoding)."""
    position = 0
    for _ in range(_MAX_FIELDS):
        if position == len(message):
            return
        begin = position
        key, position = _read_varint(message, position)
        wire_type, data = key & 7, position
        if wire_type == _VARINT:
            _, position = _read_varint(message, position)
        elif wire_type == _BYTES:
            size, data = _read_varint(message, position)
            position = data + size
        elif wire_type in (_FIXED64, _FIXED32):
            position += 8 if wire_type == _FIXED64 else 4
        else:
            raise _damaged()
        if position > len(message):
            raise _damaged()
        yield key >> 3, begin, data, position
    raise HttpError(400, f"the request has more than {_MAX_FIELDS} inputs, outputs and parameters")


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            break
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _damaged()


def _damaged() -> HttpError:
    return HttpError(400, "the request is no ModelInferRequest")


def document_of(rest: bytes, raw: Sequence[memoryview]) -> tuple[dict[str, Any], list[memoryview | bytes]]:
    """Return a request as a REST document that announces binary data, and the data of each input. Raises HttpError 400."""
    request = parsed(pb2.ModelInferRequest, rest)
    if raw and len(raw) != len(request.inputs):
        raise HttpError(400, f"the request has {len(request.inputs)} inputs and {len(raw)} raw_input_contents: give one for each, or none")
    pieces: list[memoryview | bytes] = list(raw)
    if not raw:
        pieces = [_typed(tensor) for tensor in request.inputs]
    elif any(tensor.HasField("contents") for tensor in request.inputs):
        raise HttpError(400, "an input has contents beside raw_input_contents: give one or the other")
    document: dict[str, Any] = {
        "model_name": request.model_name,
        "model_version": request.model_version,
        "parameters": _parameters(request.parameters),
        "inputs": [_input(tensor, len(piece)) for tensor, piece in zip(request.inputs, pieces, strict=True)],
    }
    if request.id:
        document["id"] = request.id
    if request.outputs:
        document["outputs"] = [{"name": output.name, "parameters": _parameters(output.parameters)} for output in request.outputs]
    return document, pieces


def as_binary_form(rest: bytes) -> tuple[int, bytes]:
    """Return a request without raw data as a REST body with all tensors as binary data, and the size of its JSON. Raises HttpError 400."""
    document, pieces = document_of(rest, [])
    head = orjson.dumps(document)
    return len(head), b"".join((head, *pieces))


def _input(tensor: Any, num_bytes: int) -> dict[str, Any]:
    parameters = {**_parameters(tensor.parameters), "binary_data_size": num_bytes}
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape), "parameters": parameters}


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: (value, value.WhichOneof("parameter_choice")) for name, value in given.items()}
    return {name: getattr(value, choice) for name, (value, choice) in found.items() if choice}


def _typed(tensor: Any) -> bytes:
    """Return the elements of an input as binary data. Raises HttpError 400 for those that its datatype can't hold."""
    name, datatype = str(tensor.name)[:200], str(tensor.datatype)
    dtype = wire_dtype(datatype)
    if datatype not in _CONTENTS:
        raise HttpError(400, f"input '{name}': {datatype} has no typed contents: send it as raw_input_contents")
    field, wide = _CONTENTS[datatype]
    other = next((each.name for each, _ in tensor.contents.ListFields() if each.name != field), None)
    if other is not None:
        raise HttpError(400, f"input '{name}' has {other}, and {datatype} takes {field}")
    values = np.array(getattr(tensor.contents, field), wide)
    narrow = values.astype(dtype)
    if values.dtype.kind in "iu" and not np.array_equal(narrow, values):
        raise HttpError(400, f"input '{name}': an element of '{field}' is out of range for {datatype}")
    return to_binary(narrow)


def infer_response(request: InferRequest, name: str, version: str, signature: Signature, arrays: Sequence[Array]) -> bytes:
    """Write the ModelInferResponse to a request, its tensors as raw_output_contents."""
    specs = [signature.outputs[index] for index, _ in request.outputs]
    found = [arrays[index] for index, _ in request.outputs]
    outputs = [
        {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": array.shape} for spec, array in zip(specs, found, strict=True)
    ]
    head = pb2.ModelInferResponse(model_name=name, model_version=version, id=request.id or "", outputs=outputs).SerializeToString()
    return b"".join((head, *(part for array in found for part in bytes_field(_RAW_OUTPUTS, to_binary(array)))))


def bytes_field(number: int, data: bytes) -> tuple[bytes, bytes]:
    """Return a field of bytes as it is written: its key and size, and the data, which is not copied."""
    return bytes((number << 3 | _BYTES,)) + _varint(len(data)), data


def _varint(value: int) -> bytes:
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)
