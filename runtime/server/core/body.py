"""Reading of a request's body within limits of size, time and memory, and its content where that takes little work.

A body of up to INLINE_BYTES, decompressed, is read where it arrives. What is larger goes to a process of its own first
(`reduce_worker.py`), which gives back a smaller body that means the same: parsing and decompressing 64 MiB hold an interpreter for seconds.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from llmos.runtime.server.core.compression import ENCODINGS, TooLargeError, decompressed, too_large
from llmos.runtime.server.core.errors import CLOSE, RETRY_SOON, HttpError
from llmos.runtime.server.core.http import Exchange, RequestInfo
from llmos.runtime.server.core.json import INLINE_BYTES
from llmos.runtime.server.core.state import ServerState

# A rejected upload up to this far over the limit is read to its end, so that the client receives the 413.
_DISCARD_BYTES = 64 << 20
DRAIN_S = 1.0  # that a shutdown waits for the body of a request


@dataclass(frozen=True)
class Body:
    """A body as it arrived, in pieces. encoding: how it is compressed; "" for none."""

    pieces: list[bytes]
    num_bytes: int
    encoding: str

    def joined(self) -> bytes:
        return self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)

    def small(self) -> bytes | None:
        """Return the content, if it is not compressed or takes up to INLINE_BYTES; None for more. Raises HttpError 400 if it is damaged."""
        if self.num_bytes > INLINE_BYTES:
            return None
        body = self.joined()
        if not self.encoding:
            return body
        try:
            return decompressed(body, self.encoding, INLINE_BYTES)
        except TooLargeError:
            return None


async def read_body(exchange: Exchange, state: ServerState, deadline_s: float) -> Body:
    """Read the whole body. deadline_s: of time.perf_counter.

    Raises HttpError 408 (too late), 413 (too large), 415 (encoding), or 503 (shutdown, or too many bytes of all requests together).
    """
    max_bytes = state.settings.max_body_bytes
    _check_declared_size(exchange, max_bytes)
    encoding = (exchange.header(b"content-encoding") or "").strip().lower()
    if encoding not in ("", "identity", *ENCODINGS):
        raise HttpError(415, f"Content-Encoding '{encoding:.40}' isn't supported: send gzip, deflate or none", headers=CLOSE)
    pieces = await _receive(exchange, state, max_bytes, deadline_s)
    return Body(pieces, sum(map(len, pieces)), "" if encoding == "identity" else encoding)


def _check_declared_size(exchange: Exchange, max_bytes: int) -> None:
    declared = exchange.header(b"content-length")
    if declared is None or not declared.isdecimal() or int(declared) <= max_bytes:
        return
    raise too_large(max_bytes, close=int(declared) > max_bytes + _DISCARD_BYTES)


async def _receive(exchange: Exchange, state: ServerState, max_bytes: int, deadline_s: float) -> list[bytes]:
    pieces: list[bytes] = []
    num_bytes = 0
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout_at(loop.time() + exchange.left_s(deadline_s)) as limit:
            with state.uploads.shortened(limit, DRAIN_S):
                while True:
                    message = await exchange.receive()
                    if message["type"] == "http.disconnect":
                        raise HttpError(499, "the client went away")
                    piece = message.get("body", b"")
                    num_bytes += len(piece)
                    if num_bytes > max_bytes:
                        raise too_large(max_bytes, close=True)
                    if num_bytes > INLINE_BYTES:
                        hold(exchange.info, state, len(piece))
                    pieces.append(piece)
                    if not message.get("more_body", False):
                        return pieces
    except TimeoutError:
        if state.draining:
            message_503 = "the server is shutting down: send the request to another one"
            raise HttpError(503, message_503, code="shutting_down", headers=[*RETRY_SOON, *CLOSE]) from None
        raise HttpError(408, "the request's body did not arrive in time", headers=CLOSE) from None


def hold(info: RequestInfo, state: ServerState, num_bytes: int) -> None:
    """Count bytes that a request holds until it ends. Raises HttpError 503 if those of all requests together are too many."""
    if state.held_bytes + num_bytes > state.settings.max_inflight_bytes:
        message = "the bodies of all requests together are too large now: try again later"
        raise HttpError(503, message, code="overloaded", headers=[*RETRY_SOON, *CLOSE])
    state.held_bytes += num_bytes
    info.held_bytes += num_bytes
