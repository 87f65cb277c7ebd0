"""Running requests on an engine from the event loop, with deadlines and client disconnects."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from functools import partial

from llmos.runtime.engine import Engine, Request
from llmos.runtime.engine.request import Outputs
from llmos.runtime.server.core.http import Receive

# Most requests finish within this time; only longer ones get a task that watches the connection.
_WATCH_AFTER_S = 0.02


async def run_on_engine(engine: Engine, request: Request, timeout_s: float, receive: Receive) -> list[Outputs]:
    """Wait up to `timeout_s` seconds for a request. Raises the error that ended it; a client disconnect cancels it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[list[Outputs]] = loop.create_future()
    monitors: list[asyncio.Task[None]] = []
    timers = (
        loop.call_later(timeout_s, engine.expire, request),
        loop.call_later(_WATCH_AFTER_S, lambda: monitors.append(loop.create_task(_watch(engine, request, receive)))),
    )
    request.future.add_done_callback(lambda future: loop.call_soon_threadsafe(partial(_hand_over, future, done)))
    try:
        return await done
    finally:
        for timer in timers:
            timer.cancel()
        for monitor in monitors:
            monitor.cancel()
        if request.reason is None:
            engine.cancel(request)


def _hand_over(source: Future[list[Outputs]], done: asyncio.Future[list[Outputs]]) -> None:
    if done.done():
        return
    error = source.exception()
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(source.result())


async def _watch(engine: Engine, request: Request, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    engine.cancel(request)
