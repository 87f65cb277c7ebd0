"""Requests and replies of the hot routes: plain ASGI, without a framework's per-request objects."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
RawHeaders = list[tuple[bytes, bytes]]

FIRST_BYTE_S = "llmos.first_byte_s"  # the scope's key of the time of time.perf_counter at which the request began to arrive
INFO = "llmos.info"  # the scope's key of the gateway's RequestInfo


def route_path(scope: Scope) -> str:
    """Return a request's path below the root path, which a proxy may have taken off already."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


@dataclass
class RequestInfo:
    """A request's fields in the access log; handlers set model and num_items.

    start_s: of time.perf_counter, at its first byte. principal: who asks, a digest of the API key, "" where the server has no keys; not
    logged.
    """

    request_id: str
    start_s: float
    principal: str = ""
    model: str | None = None
    num_items: int | None = None
    status: int = 0


@dataclass(frozen=True)
class Reply:
    """A whole response."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"
    headers: RawHeaders = field(default_factory=list)

    @classmethod
    def json(cls, value: object, status: int = 200, headers: RawHeaders | None = None) -> Reply:
        return cls(status, json.dumps(value, separators=(",", ":")).encode(), headers=headers or [])

    async def send(self, send: Send) -> None:
        length = (b"content-length", str(len(self.body)).encode())
        headers = [(b"content-type", self.content_type), length, *self.headers]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


@dataclass(frozen=True)
class EventStream:
    """A response of server-sent events. events: the data of each, as they come. close: called at the end, also if the connection fails."""

    events: AsyncGenerator[bytes, None]
    close: Callable[[], None]

    async def send(self, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async for data in self.events:
                await send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await self.events.aclose()
            self.close()


@dataclass(frozen=True)
class Exchange:
    """A request inside a handler. params: parameters of the path. receive: ASGI's channel for the body and the disconnect."""

    scope: Scope
    receive: Receive

    @property
    def params(self) -> dict[str, str]:
        found: dict[str, str] = self.scope["path_params"]
        return found

    @property
    def info(self) -> RequestInfo:
        found: RequestInfo = self.scope[INFO]
        return found

    def header(self, name: bytes) -> str | None:
        """Return the first header of a lower-case name."""
        for key, value in self.scope["headers"]:
            if key == name:
                return str(value, "latin-1")
        return None


Handler = Callable[[Exchange], Awaitable[Reply | EventStream]]
