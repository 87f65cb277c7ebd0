"""One client's connection: uvicorn's HTTP protocol, with limits of bytes, time and number.

uvicorn hands a request to the app as soon as its head is there; what a client may do before, between and after that is bounded here:
the bytes and the time of a head, how slowly an answer is read, how many connections there are. Two habits of clients are served that
uvicorn drops: an offer to upgrade (Java's HttpClient, `curl --http2`) is ignored instead of taking the body with it, and a client that
closes its side after a request still gets the answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from llmos.runtime.server.core.errors import CLOSE, RETRY_SOON, HttpError, error_reply
from llmos.runtime.server.core.http import FIRST_BYTE_S
from llmos.runtime.server.core.settings import ConnectionLimits

_LINGER_S = 1.0  # that an unread upload is still taken after an error, so that the client can read the error
_HALF_CLOSE_S = 0.25  # that a client whose side is closed waits for an answer: it can't be told from one that went away
_LEAST_READ_BYTES = 4096  # of an answer in each write timeout
_MAX_HEADERS = 128
_FRAMING = (b"content-length", b"transfer-encoding")


class ConnectionTable:
    """The open connections of a server. refused: called with the status of each request that is refused before it
    reaches the app, and the client's address."""

    def __init__(self, limits: ConnectionLimits, refused: Callable[[int, str | None], None]) -> None:
        self.limits = limits
        self.refused = refused
        self.open: set[Connection] = set()

    def admit(self, new: Connection) -> bool:
        """Add a connection; where there are too many, the one that waits longest for a request makes room. Return False if none does."""
        self.open.add(new)
        if len(self.open) <= self.limits.max_connections:
            return True
        waiting = [each for each in self.open if each is not new and each.waits_for_request]
        if not waiting:
            return False
        min(waiting, key=lambda each: each.waits_since_s).drop()
        return True

    def sweep(self) -> None:
        """Close what has exceeded its time; called a few times a second."""
        now_s = time.perf_counter()
        for connection in list(self.open):
            connection.check(now_s)

    @property
    def num_unsent_bytes(self) -> int:
        """Return the bytes of answers that clients have not read yet."""
        return sum(each.num_unsent_bytes for each in self.open)


class Connection(HttpToolsProtocol):
    """See the module."""

    def __init__(self, *args: Any, table: ConnectionTable, **options: Any) -> None:
        super().__init__(*args, **options)
        self._table = table
        self._limits = table.limits
        self.waits_since_s = time.perf_counter()
        self._in_head = True  # the head of the next request is due
        self._head_bytes = 0  # fed since the parser last gave something away
        self._error: HttpError | None = None  # set in a callback of the parser, where it can't be raised
        self._refused = False
        self._half_closed = False
        self._framing: list[tuple[bytes, bytes]] = []  # of a request whose offer to upgrade hides its body from the parser
        self._replaying = False
        self._unsent: tuple[int, float] | None = None
        self._active: RequestResponseCycle | None = None  # at work; `cycle` is the latest, which may wait in the pipeline behind it

    @property
    def waits_for_request(self) -> bool:
        """Return whether nothing that this connection has asked for is unanswered."""
        return not self._refused and not self.pipeline and (self.cycle is None or self.cycle.response_complete)

    @property
    def _address(self) -> str | None:
        return self.client[0] if self.client else None

    @property
    def num_unsent_bytes(self) -> int:
        return 0 if self.transport is None else self.transport.get_write_buffer_size()

    # The connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if not self._table.admit(self):
            self._refuse(HttpError(503, "too many connections: try again later", code="overloaded", headers=RETRY_SOON), linger=False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._table.open.discard(self)
        self._abandon()
        super().connection_lost(exc)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Answer a client that has closed its side once its request was complete. TLS has no half-closed connections."""
        if self._refused or self.waits_for_request or self.cycle.more_body or self.scheme == "https":
            return None
        self._half_closed = True
        asked = any(name == b"connection" and b"close" in value.lower() for name, value in self.headers)
        if not asked and self.scope["http_version"] == "1.1":
            self.loop.call_later(_HALF_CLOSE_S, self._give_up)
        self.cycle.keep_alive = False  # the latest of those that are pipelined
        return True

    def drop(self) -> None:
        """Close at once."""
        self._abandon()
        self.transport.abort()

    def _abandon(self) -> None:
        """Let requests in progress know that nobody reads their answers; a write to a closed connection would be an error."""
        self.pipeline.clear()
        for cycle in (self._active, self.cycle):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._active = cycle
        super()._start_asgi_task(cycle, app)

    def check(self, now_s: float) -> None:
        """Close the connection if the client has taken too long."""
        if self._refused or self.transport is None or self.flow.read_paused:
            self._check_reading(now_s)
            return
        late = now_s - self.waits_since_s > self._limits.header_timeout_s
        if late and self.waits_for_request and self._in_head and self._head_bytes:
            self._refuse(HttpError(408, f"the request's head did not arrive within {self._limits.header_timeout_s:g} s"))
        elif late and self.waits_for_request and (self._in_head or self.cycle.more_body):
            self.drop()
        else:
            self._check_reading(now_s)

    def _check_reading(self, now_s: float) -> None:
        left = self.num_unsent_bytes
        if not left or self._unsent is None:
            self._unsent = (left, now_s) if left else None
            return
        before, since_s = self._unsent
        if now_s - since_s > self._limits.write_timeout_s:
            if before - left < _LEAST_READ_BYTES:
                self._table.refused(408, self._address)
                self.drop()
            self._unsent = (left, now_s)

    def resume_writing(self) -> None:
        self._unsent = None
        super().resume_writing()

    def _give_up(self) -> None:
        if not self.transport.is_closing() and not self.cycle.response_started:
            self.drop()

    # The parser.

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unset_keepalive_if_required()
        if not self._in_head and self.waits_for_request and not self.cycle.more_body:
            self._in_head, self.waits_since_s = True, time.perf_counter()
        self._head_bytes += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse(self._error or HttpError(400, "this is no valid HTTP request"))
        else:
            if self._head_bytes > self._limits.max_head_bytes:
                self._refuse(self._too_large())

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                data = data[offer.args[0] :]
                self._decline_upgrade()

    def _decline_upgrade(self) -> None:
        """Go on with HTTP/1.1 behind a head that offers another protocol: the parser leaves what follows to that one, the body included."""
        self.parser = httptools.HttpRequestParser(self)
        if self._framing:
            self._replaying = True
            self.parser.feed_data(b"POST / HTTP/1.1\r\n" + b"".join(b"%s: %s\r\n" % pair for pair in self._framing) + b"\r\n")
            self._replaying, self._framing = False, []

    def on_message_begin(self) -> None:
        if self._replaying:
            return
        super().on_message_begin()
        self._in_head, self.waits_since_s = True, time.perf_counter()
        self.scope[FIRST_BYTE_S] = self.waits_since_s  # type: ignore[literal-required]

    def on_url(self, url: bytes) -> None:
        if not self._replaying:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._replaying or not self._in_head:  # a trailer, which says nothing to any route
            return
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._replaying:
            return
        self._in_head, self._head_bytes = False, 0
        num_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if num_bytes > self._limits.max_head_bytes or len(self.headers) > _MAX_HEADERS:
            self._fail(self._too_large())
        num_hosts = sum(name == b"host" for name, _ in self.headers)
        if num_hosts > 1 or (num_hosts == 0 and self.parser.get_http_version() == "1.1"):
            self._fail(HttpError(400, "a request must have one Host header"))
        if any(name == b"transfer-encoding" and value.strip().lower() != b"chunked" for name, value in self.headers):
            self._fail(HttpError(400, "the only Transfer-Encoding is chunked"))
        if self.parser.should_upgrade():
            self._framing = [(name, value) for name, value in self.headers if name in _FRAMING and value != b"0"]
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._framing:  # its body is yet to come
            return
        self._head_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self.waits_since_s = time.perf_counter()
        super().on_response_complete()

    # Errors before a request reaches the app.

    def _fail(self, error: HttpError) -> None:
        self._error = error
        raise error

    def _too_large(self) -> HttpError:
        limit = self._limits.max_head_bytes
        return HttpError(431, f"the request's head is larger than {limit} bytes, or has more than {_MAX_HEADERS} headers")

    def _refuse(self, error: HttpError, *, linger: bool = True) -> None:
        """Answer with an error and close. A request that has arrived before is answered instead; its answer is the last."""
        self._refused = True
        self._table.refused(error.status, self._address)
        active = self._active
        if active is not None and not active.response_complete:
            if not active.more_body:
                self.pipeline.clear()
                active.keep_alive = False
                return
            self._abandon()
            if active.response_started:
                self.transport.close()
                return
        reply = error_reply(error, getattr(self, "url", b"").decode("latin-1"))
        headers = [(b"content-type", reply.content_type), (b"content-length", str(len(reply.body)).encode()), *reply.headers]
        if CLOSE[0] not in headers:
            headers.append(CLOSE[0])
        lines = [b"%s: %s\r\n" % pair for pair in (*self.server_state.default_headers, *headers)]
        self.transport.write(b"".join((STATUS_LINE[error.status], *lines, b"\r\n", reply.body)))
        if linger and self.transport.can_write_eof():
            self.flow.resume_reading()
            self.transport.write_eof()
            self.loop.call_later(_LINGER_S, self.transport.close)
        else:
            self.transport.close()
