"""JSON of requests and replies, in pieces where one would hold the interpreter for long."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson

from llmos.runtime.server.core.errors import HttpError

# A JSON document of this size is parsed in up to 2 ms, whatever it holds.
INLINE_BYTES = 64 << 10
# Numbers that are written at once, in about 1 ms.
PIECE_VALUES = 16 << 10
_SURE_DEPTH = 100  # that orjson writes
_NUMPY = orjson.OPT_SERIALIZE_NUMPY


def parse_object(data: bytes | memoryview) -> dict[str, Any]:
    """Parse a JSON object. Raises HttpError 400."""
    try:
        document = orjson.loads(data)
    except ValueError as error:
        raise HttpError(400, f"the request's body is not valid JSON ({error})") from error
    if not isinstance(document, dict):
        raise HttpError(400, "the request's body must be a JSON object")
    content = bytes(data)
    if content.count(b"[") + content.count(b"{") > _SURE_DEPTH:
        try:
            orjson.dumps(document)  # which takes less depth than reading: what is read can be written again, wherever that is done
        except TypeError as error:
            raise HttpError(400, "the request's body is nested too deeply") from error
    return document


def array_pieces(values: np.ndarray[Any, Any]) -> Iterator[bytes]:
    """Write a flat array as a JSON array. values: [n], of bool, integers or finite floats; NaN becomes null."""
    values = np.ascontiguousarray(values)
    yield b"["
    for start in range(0, len(values), PIECE_VALUES):
        piece = orjson.dumps(values[start : start + PIECE_VALUES], option=_NUMPY)
        yield piece[1:-1] if start == 0 else b"," + piece[1:-1]
    yield b"]"
