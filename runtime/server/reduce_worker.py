"""A process that makes a large request small: decompresses it, parses its JSON, checks its size, and writes a body that means the same.

A request is the size of a task in 4 bytes, the task in JSON, and the body. The task: `kind` (infer, grpc, embeddings, completions, chat),
`encoding`, `max_bytes` of the body without compression, `header_length` of infer, and `models`: what each model takes. An answer is a byte,
1 for an error, then the size of the JSON in 4 bytes and the reduced body, or the error as JSON.

Tensors become binary data, texts are cut to what the model can take, and what no model could take is an error here.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from typing import Any

import orjson

from llmos.runtime.children import serve
from llmos.runtime.server.core.compression import TooLargeError, decompressed, too_large
from llmos.runtime.server.core.errors import HttpError
from llmos.runtime.server.core.json import INLINE_BYTES, parse_object
from llmos.runtime.server.inference.infer import binary_form
from llmos.runtime.server.openai.completions import check_prompts
from llmos.runtime.server.openai.embeddings import check_inputs

MEMORY_BYTES = 3 << 30  # private memory: 64 MiB of numbers take 1 GiB as objects
_MAX_CONTAINERS = 1 << 20  # arrays and objects, each of 64 bytes or more
_MAX_CHAT_FACTOR = 4  # characters of messages to those of a context: a template may leave some of them out


def reduce(request: bytes) -> bytes:
    """Return the answer to a request; see the module."""
    size = int.from_bytes(request[:4], "big")
    task = orjson.loads(request[4 : 4 + size])
    try:
        num_json, body = _reduced(task, memoryview(request)[4 + size :])
    except HttpError as error:
        fields = {"status": error.status, "message": str(error), "param": error.param, "code": error.code}
        return b"\1" + bytes(4) + orjson.dumps(fields)
    except MemoryError:
        fields = {"status": 413, "message": "the request's body takes too much memory: make it smaller"}
        return b"\1" + bytes(4) + orjson.dumps(fields)
    return b"\0" + num_json.to_bytes(4, "big") + body


def _reduced(task: Mapping[str, Any], body: memoryview) -> tuple[int, bytes]:
    content: bytes | memoryview = body
    if task["encoding"]:
        try:
            content = decompressed(bytes(body), task["encoding"], task["max_bytes"])
        except TooLargeError:
            raise too_large(task["max_bytes"], close=False) from None
    if task["kind"] in ("infer", "grpc"):
        num_json, reduced = _grpc_form(content) if task["kind"] == "grpc" else binary_form(content, task["header_length"], _parse)
        if len(reduced) - num_json > task["max_bytes"]:
            raise HttpError(413, f"the request's tensors are larger than {task['max_bytes']} bytes")
        if num_json > INLINE_BYTES:
            raise HttpError(400, f"the request's JSON without its tensors is larger than {INLINE_BYTES} bytes")
        return num_json, reduced
    document = _parse(content)
    name = document.get("model")
    limits = task["models"].get(name) if isinstance(name, str) else None
    if limits is None:  # no model, or one of another kind: an error that the route says
        document = {"model": name[:200] if isinstance(name, str) else None}
    elif task["kind"] == "embeddings":
        document = {**_small(document, "input"), "input": check_inputs(document.get("input"), limits)}
    elif task["kind"] == "completions":
        document = {**_small(document, "prompt"), "prompt": check_prompts(document, limits)}
    else:
        document = {**_small(document, "messages"), "messages": _messages(document.get("messages"), limits)}
    reduced = orjson.dumps(document)
    return len(reduced), reduced


def _grpc_form(content: bytes | memoryview) -> tuple[int, bytes]:
    from llmos.runtime.server.rpc.messages import as_binary_form  # protobuf takes longer to import than all else here

    return as_binary_form(bytes(content))


def _parse(content: bytes | memoryview) -> dict[str, Any]:
    data = bytes(content)
    if data.count(b"[") + data.count(b"{") > _MAX_CONTAINERS:
        raise HttpError(400, f"the request's JSON holds more than {_MAX_CONTAINERS} arrays and objects")
    return parse_object(data)


def _small(document: Mapping[str, Any], large: str) -> dict[str, Any]:
    """Return what stands beside the large field. Raises HttpError 400 if it is large too."""
    rest = {name: value for name, value in document.items() if name != large}
    if len(orjson.dumps(rest)) > INLINE_BYTES:
        raise HttpError(400, f"the request's JSON beside '{large}' is larger than {INLINE_BYTES} bytes")
    return rest


def _messages(value: object, limits: Mapping[str, Any]) -> object:
    num_bytes = len(orjson.dumps(value))
    most = _MAX_CHAT_FACTOR * limits["max_chars"] + INLINE_BYTES
    if num_bytes > most:
        message = f"the messages have {num_bytes} bytes, far more than the context of {limits['max_tokens']} tokens: shorten them"
        raise HttpError(400, message, param="messages")
    return value


if __name__ == "__main__":
    os.nice(10)  # the server's own work goes first
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    serve(reduce)
