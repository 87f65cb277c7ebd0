"""What the hot routes share: conversion of errors, and the client's timeout."""

from __future__ import annotations

import logging
import math

from llmos.runtime.server.core.errors import RETRY_SOON, HttpError, as_http_error, error_reply
from llmos.runtime.server.core.http import EventStream, Exchange, Handler, Receive, Reply, RequestInfo, Scope, Send, route_path
from llmos.runtime.server.core.json import INLINE_BYTES
from llmos.runtime.server.core.state import ServerState

_LOG = logging.getLogger("llmos.server")

# Above this size, tokenizing would block the event loop for several ms, so it runs in a thread.
INLINE_CHARS = 4096
_TIMEOUT_HEADER = b"x-request-timeout"


class Endpoint:
    """A POST handler as an ASGI app, which converts exceptions to the protocol's errors. path: of its route, in metrics."""

    def __init__(self, path: str, handler: Handler, state: ServerState) -> None:
        self.path = path
        self._handler = handler
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive)
        reply: Reply | EventStream
        try:
            reply = await self._handler(exchange)
            if isinstance(reply, Reply):
                self._hold(exchange.info, reply)
        except Exception as error:
            known = as_http_error(error)
            if known.status == 500:
                _LOG.exception("request %s failed", exchange.info.request_id)
            reply = error_reply(known, route_path(scope))
        await reply.send(send)

    def _hold(self, info: RequestInfo, reply: Reply) -> None:
        """Count the bytes of a large answer until it is read. Raises HttpError 503 if those of all answers together are too many."""
        state, num_bytes = self._state, reply.num_bytes
        if num_bytes <= INLINE_BYTES:
            return
        if state.answer_bytes and state.answer_bytes + num_bytes > state.settings.max_inflight_bytes:
            message = "the answers that clients have not read yet are too large together: try again later"
            raise HttpError(503, message, code="overloaded", headers=RETRY_SOON)
        state.answer_bytes += num_bytes
        info.answer_bytes += num_bytes


def request_timeout(exchange: Exchange, most_s: float) -> float:
    """Return the timeout in seconds: the server's, `most_s`, or a shorter one from the client's header. Raises HttpError 400."""
    value = exchange.header(_TIMEOUT_HEADER)
    if value is None:
        return most_s
    try:
        asked_s = float(value)
    except ValueError:
        asked_s = math.nan
    if not asked_s > 0:
        raise HttpError(400, "X-Request-Timeout must be a number of seconds above 0")
    return min(asked_s, most_s)


def deadline(exchange: Exchange, most_s: float) -> float:
    """Return when a request must have its answer, on time.perf_counter: its timeout runs from its first byte. Raises HttpError 400."""
    return exchange.info.start_s + request_timeout(exchange, most_s)
