"""What the hot routes share: conversion of errors, and the client's timeout."""

from __future__ import annotations

import logging
import math

from llmos.runtime.server.core.errors import HttpError, as_http_error, error_reply
from llmos.runtime.server.core.http import EventStream, Exchange, Handler, Receive, Reply, Scope, Send, route_path

_LOG = logging.getLogger("llmos.server")

# Above this size, tokenizing would block the event loop for several ms, so it runs in a thread.
INLINE_CHARS = 4096
_TIMEOUT_HEADER = b"x-request-timeout"


class Endpoint:
    """A POST handler as an ASGI app, which converts exceptions to the protocol's errors. path: of its route, in metrics."""

    def __init__(self, path: str, handler: Handler) -> None:
        self.path = path
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive)
        reply: Reply | EventStream
        try:
            reply = await self._handler(exchange)
        except Exception as error:
            known = as_http_error(error)
            if known.status == 500:
                _LOG.exception("request %s failed", exchange.info.request_id)
            reply = error_reply(known, route_path(scope))
        await reply.send(send)


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
