"""Compressed bodies."""

from __future__ import annotations

import zlib

from llmos.runtime.server.core.errors import CLOSE, HttpError

ENCODINGS = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # of Content-Encoding, to zlib's window bits


class TooLargeError(Exception):
    """There is more than was asked for."""


def decompressed(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Return the content of a compressed body, all members of gzip.

    Raises TooLargeError for more than `max_bytes`, and HttpError 400 if it is damaged.
    """
    bits = ENCODINGS[encoding]
    plain: list[bytes] = []
    left = max_bytes
    try:
        while True:
            stream = zlib.decompressobj(bits)
            piece = stream.decompress(body, left + 1)
            left -= len(piece)
            if left < 0:
                raise TooLargeError
            if not stream.eof:
                raise HttpError(400, "the compressed body is cut short")
            plain.append(piece)
            body = stream.unused_data
            if bits != 31 or not body:
                break
    except zlib.error as error:
        raise HttpError(400, f"the compressed body is damaged ({error})") from error
    if body:
        raise HttpError(400, "the compressed body is damaged (data follows its end)")
    return plain[0] if len(plain) == 1 else b"".join(plain)


def too_large(max_bytes: int, *, close: bool) -> HttpError:
    """Return the error for a body that is too large."""
    return HttpError(413, f"the request's body is larger than {max_bytes} bytes", headers=CLOSE if close else [])
