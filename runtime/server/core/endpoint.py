"""What the hot routes share: conversion of errors, the client's timeout, and where work runs."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import TypeVar

from llmos.runtime.server.core.errors import HttpError, as_http_error, error_reply
from llmos.runtime.server.core.http import EventStream, Exchange, Handler, Receive, Reply, Scope, Send, route_path

_LOG = logging.getLogger("llmos.server")
_Result = TypeVar("_Result")

# Above these sizes, parsing or tokenizing would block the event loop for several ms, so it runs in a thread.
INLINE_BYTES = 256 << 10
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


async def maybe_in_thread(size: int, limit: int, work: Callable[[], _Result]) -> _Result:
    """Run small work inline and large work in a thread."""
    return work() if size <= limit else await asyncio.to_thread(work)
