"""The JSON document of a request, small or large."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from llmos.runtime.server.core.body import hold, read_body
from llmos.runtime.server.core.http import Exchange
from llmos.runtime.server.core.json import INLINE_BYTES, parse_object
from llmos.runtime.server.core.state import ServerState


async def read_document(
    exchange: Exchange, state: ServerState, kind: str, models: Mapping[str, Any], deadline_s: float
) -> tuple[dict[str, Any], int | None]:
    """Return a request's document, and its size in bytes if it is large: then in its reduced form. models: what each takes.

    Raises what `read_body` and `Lanes.reduce` do, and HttpError 400.
    """
    body = await read_body(exchange, state, deadline_s)
    small = body.small()
    if small is not None:
        return parse_object(small), None
    task = {"kind": kind, "models": models, "encoding": body.encoding, "max_bytes": state.settings.max_body_bytes}
    _, reduced = await state.lanes.reduce(task, body.pieces, deadline_s)
    hold(exchange, state, len(reduced))
    if len(reduced) <= INLINE_BYTES:
        return parse_object(reduced), len(reduced)
    return await state.lanes.run(partial(parse_object, reduced), deadline_s, large=True), len(reduced)
