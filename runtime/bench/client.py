"""An HTTP client that does next to nothing, since it often shares a machine with the server that it measures.

A request is written whole, and an answer parsed by httptools; when each event of a stream arrives is noted, and what it holds is read
later. A connection has one request at a time.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httptools

from llmos.runtime.errors import LlmosError, UserError

_CONNECT_S = 10.0
_EVENT_END = b"\n\n"


class RequestError(LlmosError):
    """A request that has no whole answer: the connection failed, or time was over."""


@dataclass(frozen=True)
class Address:
    """Where a server is. prefix: of every path, such as "/models"."""

    host: str
    port: int
    tls: bool = False
    prefix: str = ""

    @classmethod
    def parse(cls, url: str) -> Address:
        """Parse `http://host:port[/prefix]`. Raises UserError."""
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
            (parts.hostname or "").encode("idna")  # which looking a host up would do
        except ValueError as error:
            raise UserError(f"'{url}' is no URL of a server ({error})") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or not parts.netloc.isascii():
            raise UserError(f"'{url}' is no URL of a server: give one such as http://127.0.0.1:8000")
        tls = parts.scheme == "https"
        return cls(parts.hostname, port or (443 if tls else 80), tls, parts.path.rstrip("/"))


@dataclass
class Response:
    """An answer. Times are of time.perf_counter, in seconds. events: of a stream, the data of each with its time of arrival."""

    sent_s: float
    status: int = 0
    end_s: float = 0.0
    body: bytes = b""
    streams: bool = False
    events: list[tuple[float, bytes]] = field(default_factory=list)


class HttpClient:
    """Keeps connections open and takes the one that was used last; opens as many as there are requests at a time."""

    def __init__(self, address: Address, key: str = "") -> None:
        self.address = address
        host = f"[{address.host}]" if ":" in address.host else address.host
        authorization = f"Authorization: Bearer {key}\r\n" if key else ""
        self._head = f"HTTP/1.1\r\nHost: {host}:{address.port}\r\n{authorization}".encode()
        self._idle: list[_Connection] = []
        self._ssl = ssl.create_default_context() if address.tls else None

    async def request(
        self, method: str, path: str, body: bytes = b"", headers: bytes = b"Content-Type: application/json\r\n", timeout_s: float = 60.0
    ) -> Response:
        """Send a request. headers: lines that end with CRLF. Raises RequestError."""
        size = b"Content-Length: %d\r\n" % len(body) if body else b""
        data = b"%s %s %s%s%s\r\n%s" % (method.encode(), (self.address.prefix + path).encode(), self._head, headers, size, body)
        response = Response(time.perf_counter())
        connection = self._take()
        try:
            async with asyncio.timeout(timeout_s):
                if connection is None:
                    connection = await self._connect()
                await connection.exchange(data, response)
        except TimeoutError:
            raise RequestError("timeout") from None
        except (OSError, httptools.HttpParserError) as error:
            raise RequestError(f"connection: {getattr(error, 'strerror', None) or error}") from error
        else:
            if connection.is_reusable:
                self._idle.append(connection)
                connection = None
        finally:
            if connection is not None:
                connection.close()
        return response

    def close(self) -> None:
        """Close the connections that have no request."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def _take(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_reusable:
                return connection
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_CONNECT_S):
            _, connection = await loop.create_connection(_Connection, self.address.host, self.address.port, ssl=self._ssl)
        return connection


class _Connection(asyncio.Protocol):
    """A connection, and the parser of its answers."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._response = Response(0.0)
        self._done: asyncio.Future[None] | None = None
        self._pieces: list[bytes] = []
        self._rest = b""
        self._now_s = 0.0
        self._keep_alive = True

    @property
    def is_reusable(self) -> bool:
        return self._keep_alive and self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def exchange(self, data: bytes, response: Response) -> None:
        """Send a request, and wait for its answer."""
        assert self._transport is not None
        self._response = response
        self._pieces, self._rest = [], b""
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        await self._done

    # asyncio's.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._now_s = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or ConnectionError("closed before the answer's end"))

    def _fail(self, error: Exception) -> None:
        self._keep_alive = False
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)

    # httptools'.

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type" and value.startswith(b"text/event-stream"):
            self._response.streams = True

    def on_headers_complete(self) -> None:
        self._response.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if not self._response.streams:
            self._pieces.append(body)
            return
        *whole, self._rest = (self._rest + body).split(_EVENT_END)
        self._response.events += [(self._now_s, event.removeprefix(b"data:").strip()) for event in whole]

    def on_message_complete(self) -> None:
        self._response.end_s = self._now_s
        self._response.body = b"".join(self._pieces)
        self._keep_alive = self._keep_alive and self._parser.should_keep_alive()
        if self._done is not None and not self._done.done():
            self._done.set_result(None)
