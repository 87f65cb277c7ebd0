"""The infer call of the Open Inference Protocol: parsing and writing of JSON and the binary tensor extension.

https://github.com/kserve/open-inference-protocol and Triton's `extension_binary_data`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from llmos.runtime.artifact.manifest import TensorSpec
from llmos.runtime.engine.model import Array, Signature
from llmos.runtime.server.core.errors import HttpError
from llmos.runtime.server.core.http import Reply
from llmos.runtime.server.core.json import parse_object
from llmos.runtime.server.inference.tensors import DATATYPES, check_shape, from_binary, from_json, to_binary, to_json

HEADER_LENGTH = b"inference-header-content-length"


@dataclass(frozen=True)
class InferRequest:
    """A parsed request. outputs: index of each requested output and whether it is sent as binary data. timeout_s: the client's timeout."""

    inputs: dict[str, Array]
    outputs: list[tuple[int, bool]]
    id: str | None = None
    timeout_s: float | None = None


class BinaryData(Protocol):
    """The binary data of a request's inputs, in their order."""

    @property
    def num_left(self) -> int:
        """Return the number of bytes that belong to no input so far."""
        ...

    def take(self, name: str, num_bytes: object) -> memoryview:
        """Return the data of an input that announces so many bytes. Raises HttpError 400 if it has another number."""
        ...


@dataclass
class Tail:
    """The binary data behind a JSON document."""

    data: memoryview
    offset: int = field(default=0)

    def take(self, name: str, num_bytes: object) -> memoryview:
        if type(num_bytes) is not int or num_bytes < 0:
            raise HttpError(400, f"input '{name}': 'binary_data_size' must be an integer that is not negative")
        if self.offset + num_bytes > len(self.data):
            left = len(self.data) - self.offset
            raise HttpError(400, f"input '{name}': {num_bytes} bytes of binary data were announced, {left} are there")
        piece = self.data[self.offset : self.offset + num_bytes]
        self.offset += num_bytes
        return piece

    @property
    def num_left(self) -> int:
        """Return the number of bytes that belong to no input so far."""
        return len(self.data) - self.offset

    def rest(self) -> memoryview:
        return self.data[self.offset :]


def parse_infer(body: bytes, header_length: str | None, signature: Signature) -> InferRequest:
    """Parse a request's body. Raises HttpError 400 with the reason."""
    size = len(body) if header_length is None else _header_size(header_length, len(body))
    document = parse_object(body if size == len(body) else body[:size])
    return read_infer(document, Tail(memoryview(body)[size:]), signature)


def read_infer(document: Mapping[str, Any], tail: BinaryData, signature: Signature) -> InferRequest:
    """Check a request, as `parse_infer`. tail: its binary data."""
    parameters = _object(document, "parameters", "the request")
    inputs = _parse_inputs(document, signature, tail)
    if tail.num_left:
        raise HttpError(400, f"{tail.num_left} bytes of binary data belong to no input")
    request_id = document.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise HttpError(400, "'id' must be a string")
    return InferRequest(inputs, _parse_outputs(document, parameters, signature), request_id, _timeout(parameters))


def binary_form(
    content: bytes | memoryview, header_length: str | None, parse: Callable[[bytes | memoryview], dict[str, Any]]
) -> tuple[int, bytes]:
    """Return a body that means the same, with all tensors as binary data, and the size of its JSON. parse: of JSON.

    What is wrong with anything but a tensor's elements is left to `parse_infer`. Raises HttpError 400.
    """
    size = len(content) if header_length is None else _header_size(header_length, len(content))
    document = parse(content[:size])
    tail = Tail(memoryview(content)[size:])
    pieces: list[bytes | memoryview] = []
    if isinstance(document.get("inputs"), list):
        document["inputs"] = [_binary_input(item, tail, pieces) if isinstance(item, dict) else item for item in document["inputs"]]
    head = orjson.dumps(document)
    return len(head), b"".join((head, *pieces, tail.rest()))


def _binary_input(item: dict[str, Any], tail: Tail, pieces: list[bytes | memoryview]) -> dict[str, Any]:
    name, datatype, parameters = str(item.get("name"))[:200], item.get("datatype"), item.get("parameters") or {}
    rest = {key: value for key, value in item.items() if key != "data"}
    if not isinstance(parameters, dict):
        return rest
    if "binary_data_size" in parameters:
        pieces.append(tail.take(name, parameters["binary_data_size"]))
        return rest
    if "data" not in item or not isinstance(datatype, str):
        return rest
    pieces.append(to_binary(from_json(name, datatype, check_shape(name, item.get("shape")), item["data"])))
    return {**rest, "parameters": {**parameters, "binary_data_size": len(pieces[-1])}}


def _header_size(value: str, num_bytes: int) -> int:
    if not value.isascii() or not value.isdecimal() or len(value) > 12 or int(value) > num_bytes:
        raise HttpError(400, "Inference-Header-Content-Length must be the size in bytes of the JSON at the start of the body")
    return int(value)


def _object(parent: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = parent.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise HttpError(400, f"{where}: '{key}' must be an object")
    return value


def _records(document: Mapping[str, Any], key: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the named objects of an array. Raises HttpError 400 for a repeated name."""
    items = document.get(key)
    if not isinstance(items, list):
        raise HttpError(400, f"'{key}' must be an array of objects")
    found: dict[str, dict[str, Any]] = {}
    for item in items:
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str):
            raise HttpError(400, f"'{key}' must be an array of objects, each with a 'name'")
        if name in found:
            raise HttpError(400, f"'{key}' holds '{name}' twice")
        found[name] = item
    return list(found.items())


def _parse_inputs(document: Mapping[str, Any], signature: Signature, tail: BinaryData) -> dict[str, Array]:
    inputs = {}
    for name, item in _records(document, "inputs"):
        spec = signature.input(name)
        if spec is None:
            raise HttpError(400, f"unknown input '{name}': the model takes {', '.join(known.name for known in signature.inputs)}")
        inputs[name] = _parse_tensor(spec, item, tail)
    return inputs


def _parse_tensor(spec: TensorSpec, item: dict[str, Any], tail: BinaryData) -> Array:
    name, datatype = spec.name, DATATYPES[spec.dtype]
    if item.get("datatype") != datatype:
        raise HttpError(400, f"input '{name}' has datatype {json.dumps(item.get('datatype'))[:40]}, the model takes {datatype}")
    shape = check_shape(name, item.get("shape"))
    parameters = _object(item, "parameters", f"input '{name}'")
    if "shared_memory_region" in parameters:
        raise HttpError(400, f"input '{name}': shared memory isn't supported: send the data with the request")
    if "binary_data_size" in parameters:
        return from_binary(name, datatype, shape, tail.take(name, parameters["binary_data_size"]))
    if "data" not in item:
        raise HttpError(400, f"input '{name}' has neither 'data' nor 'binary_data_size'")
    return from_json(name, datatype, shape, item["data"])


def _parse_outputs(document: Mapping[str, Any], parameters: Mapping[str, Any], signature: Signature) -> list[tuple[int, bool]]:
    default = _flag(parameters, "binary_data_output", False)
    if document.get("outputs") is None:
        return [(index, default) for index in range(len(signature.outputs))]
    names = [spec.name for spec in signature.outputs]
    wanted = []
    for name, item in _records(document, "outputs"):
        if name not in names:
            raise HttpError(400, f"unknown output '{name}': the model gives {', '.join(names)}")
        options = _object(item, "parameters", f"output '{name}'")
        refused = next((key for key in ("classification", "shared_memory_region") if key in options), None)
        if refused is not None:
            raise HttpError(400, f"output '{name}': '{refused}' isn't supported")
        wanted.append((names.index(name), _flag(options, "binary_data", default)))
    return wanted


def _flag(parameters: Mapping[str, Any], key: str, default: bool) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise HttpError(400, f"'{key}' must be true or false")
    return value


def _timeout(parameters: Mapping[str, Any]) -> float | None:
    """Return Triton's `timeout` parameter, given in microseconds, in seconds; 0 means none."""
    value = parameters.get("timeout", 0)
    if type(value) is not int or not 0 <= value <= 1 << 53:
        raise HttpError(400, "'timeout' must be a number of microseconds")
    return value / 1e6 if value else None


def infer_reply(request: InferRequest, model_name: str, version: str, signature: Signature, arrays: list[Array]) -> Reply:
    """Write the response to a request. Raises HttpError 400 for a value without a JSON form."""
    outputs: list[bytes] = []
    binary_pieces: list[bytes] = []
    for index, binary in request.outputs:
        spec, array = signature.outputs[index], arrays[index]
        output: dict[str, Any] = {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": list(array.shape)}
        if outputs:
            outputs.append(b",")
        if binary:
            binary_pieces.append(to_binary(array))
            output["parameters"] = {"binary_data_size": len(binary_pieces[-1])}
            outputs.append(orjson.dumps(output))
        else:
            outputs += (orjson.dumps(output)[:-1] + b',"data":', *to_json(spec, array), b"}")
    document: dict[str, Any] = {"model_name": model_name, "model_version": version}
    if request.id is not None:
        document["id"] = request.id
    json_pieces = [orjson.dumps(document)[:-1] + b',"outputs":[', *outputs, b"]}"]
    if not binary_pieces:
        return Reply.of_pieces(json_pieces)
    length = str(sum(map(len, json_pieces))).encode()
    return Reply.of_pieces([*json_pieces, *binary_pieces], b"application/octet-stream", [(HEADER_LENGTH, length)])
