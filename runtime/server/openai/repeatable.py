"""Which generations give the same answer each time, and the recording of one that is streamed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

import orjson

from llmos.runtime.errors import InputError
from llmos.runtime.llm.engine import TextEngine
from llmos.runtime.server.core.http import EventStream, Reply
from llmos.runtime.server.openai.sampling import IGNORED

_CLOCK = "strftime_now"  # of chat templates


def is_deterministic(document: Mapping[str, Any], text: TextEngine) -> bool:
    """Return whether the answer to a request is always the same: it is greedy, or has a seed, and its template reads no clock."""
    if text.template is not None and _CLOCK in text.template.source:
        return False
    if document.get("seed") is not None:
        return True
    temperature = document.get("temperature")
    if temperature is None:
        try:
            temperature = text.params({}).temperature
        except InputError:  # what the model recommends can't be used, which the request will say
            return False
    return bool(temperature == 0)


def fields_of_answer(document: Mapping[str, Any]) -> list[bytes]:
    """Return what of a request its answer depends on. Names within a field keep their order, which a schema's properties are written in."""
    return [orjson.dumps([name, document[name]]) for name in sorted(document) if name not in IGNORED and document[name] is not None]


def recorded(stream: EventStream, max_bytes: int, keep: Callable[[Reply], None]) -> EventStream:
    """Return the same stream, which is kept, up to a size, when its last event is there: [DONE]."""

    async def events() -> AsyncGenerator[bytes, None]:
        pieces: list[bytes] | None = []
        num_bytes = 0
        try:
            async for data in stream.events:
                if pieces is not None:
                    pieces.append(b"data: " + data + b"\n\n")
                    num_bytes += len(pieces[-1])
                    if num_bytes > max_bytes:
                        pieces = None
                    elif data == b"[DONE]":
                        keep(Reply(200, b"".join(pieces), b"text/event-stream", [(b"cache-control", b"no-cache")]))
                yield data
        finally:
            await stream.events.aclose()

    return EventStream(events(), stream.close)
