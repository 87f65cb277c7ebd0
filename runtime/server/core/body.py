"""Reading of a request's body within limits of size and time."""

from __future__ import annotations

import asyncio
import zlib

from llmos.runtime.server.core.errors import CLOSE, HttpError
from llmos.runtime.server.core.http import Exchange

# A rejected upload up to this far over the limit is read to its end, so that the client receives the 413.
_DISCARD_BYTES = 64 << 20
_WINDOW_BITS = {"gzip": 31, "deflate": 15}


async def read_body(exchange: Exchange, max_bytes: int, timeout_s: float) -> bytes:
    """Read and decompress the whole body. Raises HttpError 400, 408 (timeout), 413 (too large) or 415 (encoding)."""
    _check_declared_size(exchange, max_bytes)
    encoding = exchange.header(b"content-encoding")
    if encoding not in (None, "", "identity", *_WINDOW_BITS):
        raise HttpError(415, f"Content-Encoding '{encoding}' isn't supported: send gzip, deflate or none")
    try:
        async with asyncio.timeout(timeout_s):
            body = await _receive(exchange, max_bytes)
    except TimeoutError:
        raise HttpError(408, f"the request's body did not arrive within {timeout_s:g} s", headers=CLOSE) from None
    return _decompress(body, _WINDOW_BITS[encoding], max_bytes) if encoding in _WINDOW_BITS else body


def _check_declared_size(exchange: Exchange, max_bytes: int) -> None:
    declared = exchange.header(b"content-length")
    if declared is None or not declared.isdecimal() or int(declared) <= max_bytes:
        return
    raise _too_large(max_bytes, close=int(declared) > max_bytes + _DISCARD_BYTES)


async def _receive(exchange: Exchange, max_bytes: int) -> bytes:
    chunks: list[bytes] = []
    num_bytes = 0
    while True:
        message = await exchange.receive()
        if message["type"] == "http.disconnect":
            raise HttpError(499, "the client went away")
        chunk = message.get("body", b"")
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise _too_large(max_bytes, close=True)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _decompress(body: bytes, window_bits: int, max_bytes: int) -> bytes:
    stream = zlib.decompressobj(window_bits)
    try:
        plain = stream.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise HttpError(400, f"the compressed body is damaged ({error})") from error
    if len(plain) > max_bytes:
        raise _too_large(max_bytes, close=False)
    if not stream.eof:
        raise HttpError(400, "the compressed body is cut short")
    return plain


def _too_large(max_bytes: int, *, close: bool) -> HttpError:
    return HttpError(413, f"the request's body is larger than {max_bytes} bytes", headers=CLOSE if close else [])
