"""Arrays and what describes them, on a stream between a server and the process of a model."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from llmos.runtime.engine.model import Array

_SIZE_BYTES = 8


def send(stream: socket.socket, head: dict[str, Any], arrays: Sequence[Array] = ()) -> None:
    """Send a message: a JSON object, and arrays. Raises OSError."""
    dense = [np.ascontiguousarray(array) for array in arrays]
    shapes = [(array.dtype.str, array.shape) for array in arrays]
    text = orjson.dumps({**head, "arrays": shapes})
    stream.sendall(len(text).to_bytes(_SIZE_BYTES, "little") + text)
    for array in dense:
        if array.nbytes:
            stream.sendall(array.reshape(-1).view(np.uint8).data)


def receive(stream: socket.socket) -> tuple[dict[str, Any], list[Array]]:
    """Receive a message. Raises EOFError at the end of the stream, or OSError."""
    size = int.from_bytes(_bytes(stream, _SIZE_BYTES), "little")
    head = orjson.loads(_bytes(stream, size))
    arrays = []
    for dtype, shape in head.pop("arrays"):
        array = np.empty(shape, dtype)
        if array.nbytes:
            _fill(stream, array.reshape(-1).view(np.uint8).data)
        arrays.append(array)
    return head, arrays


def _bytes(stream: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    _fill(stream, memoryview(data))
    return bytes(data)


def _fill(stream: socket.socket, view: memoryview) -> None:
    while view:
        count = stream.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]
