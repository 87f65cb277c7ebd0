"""Requests and replies of the hot routes: plain ASGI, without a framework's per-request objects."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from llmos.runtime.engine import DeadlineError
from llmos.runtime.server.core.use import Use

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
RawHeaders = list[tuple[bytes, bytes]]

_JOINED_BYTES = 256 << 10
_SLICE_S = 0.002  # that a stream may hold the event loop
_MAX_NAME_CHARS = 128  # of a model that is served
FIRST_BYTE_S = "llmos.first_byte_s"  # the scope's key of the time of time.perf_counter at which the request began to arrive
INFO = "llmos.info"  # the scope's key of the gateway's RequestInfo


def route_path(scope: Scope) -> str:
    """Return a request's path below the root path, which a proxy may have taken off already."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


@dataclass(frozen=True)
class Phase:
    """A part of a request, as a span of its trace. Times are of time.perf_counter."""

    name: str
    start_s: float
    end_s: float
    attributes: Mapping[str, str | int | float] = field(default_factory=dict)


@dataclass
class RequestInfo:
    """A request's fields in the access log; handlers set num_items.

    start_s: of time.perf_counter, at its first byte. principal: who asks, a digest of the API key, "" where the server has no keys; not
    logged. weight: of its share. held_bytes, answer_bytes: of its body and its answer, as far as they count. num_tokens: that its
    quota is charged with. num_prompt_tokens, num_output_tokens, first_token_s (of time.perf_counter), phases: for telemetry; phases is None
    where nobody wants them. longest_input: in tokens. is_call: whether a model runs. uses: of the models that it has in its
    hands, until it ends.
    """

    request_id: str
    start_s: float
    principal: str = ""
    weight: float = 1.0
    held_bytes: int = 0
    answer_bytes: int = 0
    num_tokens: int = 0
    model: str | None = None
    num_items: int | None = None
    status: int = 0
    num_prompt_tokens: int = 0
    longest_input: int = 0
    num_output_tokens: int = 0
    first_token_s: float | None = None
    phases: list[Phase] | None = None
    is_call: bool = False
    uses: list[Use] = field(default_factory=list)

    def add_phase(self, name: str, start_s: float, end_s: float, **attributes: str | int | float) -> None:
        """Take note of a part of the request, where somebody wants it."""
        if self.phases is not None:
            self.phases.append(Phase(name, start_s, end_s, attributes))

    def ask_for(self, model: str) -> None:
        """Take note of a model that is named, whether there is one of this name or not."""
        self.model = model[:_MAX_NAME_CHARS]

    def take(self, model: str, use: Use) -> None:
        """Keep a model from being released until this request ends."""
        self.model = model
        self.is_call = True
        use.begin()
        self.uses.append(use)

    def release(self) -> None:
        """Give back all that is held."""
        while self.uses:
            self.uses.pop().end()


@dataclass(frozen=True)
class Reply:
    """A whole response. more: what follows the body, in pieces."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"
    headers: RawHeaders = field(default_factory=list)
    more: Sequence[bytes] = ()

    @classmethod
    def json(cls, value: object, status: int = 200, headers: RawHeaders | None = None) -> Reply:
        return cls(status, orjson.dumps(value), headers=headers or [])

    @classmethod
    def of_pieces(cls, pieces: Sequence[bytes], content_type: bytes = b"application/json", headers: RawHeaders | None = None) -> Reply:
        """Return a 200 with a body in pieces, joined where it is small."""
        if sum(map(len, pieces)) <= _JOINED_BYTES:
            pieces = [b"".join(pieces)]
        return cls(200, pieces[0], content_type, headers or [], pieces[1:])

    @property
    def num_bytes(self) -> int:
        """Return the size of the whole body."""
        return len(self.body) + sum(map(len, self.more))

    async def send(self, send: Send) -> None:
        length = (b"content-length", str(self.num_bytes).encode())
        headers = [(b"content-type", self.content_type), length, *self.headers]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": bool(self.more)})
        for index, piece in enumerate(self.more, 1):
            await send({"type": "http.response.body", "body": piece, "more_body": index < len(self.more)})


@dataclass(frozen=True)
class EventStream:
    """A response of server-sent events. events: the data of each, as they come. close: called at the end, also if the connection fails."""

    events: AsyncGenerator[bytes, None]
    close: Callable[[], None]

    async def send(self, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            began_s = time.perf_counter()
            async for data in self.events:
                await send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})
                if time.perf_counter() - began_s > _SLICE_S:  # many events may be there at once
                    await asyncio.sleep(0)
                    began_s = time.perf_counter()
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

    def left_s(self, deadline_s: float) -> float:
        """See the function."""
        return left_s(deadline_s)

    def header(self, name: bytes) -> str | None:
        """Return the first header of a lower-case name."""
        for key, value in self.scope["headers"]:
            if key == name:
                return str(value, "latin-1")
        return None


def left_s(deadline_s: float) -> float:
    """Return the time until a deadline of time.perf_counter. Raises DeadlineError if there is none."""
    left_s = deadline_s - time.perf_counter()
    if left_s <= 0:
        raise DeadlineError("the request timed out")
    return left_s


Handler = Callable[[Exchange], Awaitable[Reply | EventStream]]
