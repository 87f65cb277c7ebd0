"""The JSON document of a request, small or large."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from llmos.runtime.server.core.body import hold, read_body
from llmos.runtime.server.core.http import Exchange
from llmos.runtime.server.core.json import INLINE_BYTES, parse_object
from llmos.runtime.server.core.state import ServerState


async def read_document(
    exchange: Exchange, state: ServerState, kind: str, limits: Callable[[], Mapping[str, Any]], deadline_s: float
) -> tuple[dict[str, Any], int | None]:
    """Return a request's document, and its size in bytes if it is large: then in its reduced form. limits: of what each model takes now.
    A model that it names is in memory.

    Raises what `read_body` and `Lanes.reduce` do, and HttpError 400.
    """
    body = await read_body(exchange, state, deadline_s)
    small = body.small()
    if small is not None:
        document = parse_object(small)
        await state.registry.on_demand(document.get("model"), deadline_s)
        return document, None
    while True:
        used = limits()
        task = {"kind": kind, "models": used, "encoding": body.encoding, "max_bytes": state.settings.max_body_bytes}
        _, reduced = await state.lanes.reduce(task, body.pieces, deadline_s)
        hold(exchange.info, state, len(reduced))
        parse = partial(parse_object, reduced)
        document = parse() if len(reduced) <= INLINE_BYTES else await state.lanes.run(parse, deadline_s, large=True)
        await state.registry.on_demand(document.get("model"), deadline_s)
        if limits() == used:  # else a model was loaded or exchanged, and it may take more
            return document, len(reduced)
