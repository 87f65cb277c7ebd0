"""Running requests on an engine from the event loop, with deadlines and client disconnects."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial

from llmos.runtime.engine import Engine, QueueFullError, Request
from llmos.runtime.engine.model import Array
from llmos.runtime.engine.request import Outputs
from llmos.runtime.server.core.http import Receive, RequestInfo, left_s
from llmos.runtime.server.core.served import ServedModel
from llmos.runtime.server.core.work import Lanes

# Most requests finish within this time; only longer ones get a task that watches the connection.
_WATCH_AFTER_S = 0.02
INLINE_INPUTS = 64  # of a call; more are made arrays in a thread


def require_room(served: ServedModel) -> None:
    """Refuse a request before its tokens or tensors are read, which under overload would take the time of those that are served."""
    try:
        served.engine.require_room()
    except QueueFullError:
        served.metrics.rejected.inc()
        raise


async def run_model(
    served: ServedModel,
    lanes: Lanes,
    info: RequestInfo,
    inputs: Sequence[Mapping[str, Array]],
    deadline_s: float,
    receive: Receive | None = None,
) -> list[Outputs]:
    """Run calls of a model as one request. deadline_s: of time.perf_counter. receive: where a disconnect shows, if that is no cancellation.

    Raises what Engine.submit does, and the error that ended the request.
    """
    info.num_items = len(inputs)
    submit = partial(served.engine.submit, inputs, timeout_s=left_s(deadline_s), principal=info.principal, weight=info.weight)
    try:
        request = submit() if len(inputs) <= INLINE_INPUTS else await lanes.run(submit, deadline_s, large=True)
    except QueueFullError:
        served.metrics.rejected.inc()
        raise
    info.num_tokens += request.work
    try:
        return await _run_on_engine(served.engine, request, left_s(deadline_s), receive)
    finally:
        _note_phases(info, request)


def _note_phases(info: RequestInfo, request: Request) -> None:
    """Say when a request waited and ran. The engine's clock is that of time.perf_counter, on Linux."""
    if info.phases is None:
        return
    end_s = time.perf_counter()
    started_s = request.started_s
    info.add_phase("queue", request.arrival_s, started_s or end_s)
    if started_s is not None:
        info.add_phase("batch", started_s, end_s, num_inputs=len(request.num_items))


async def _run_on_engine(engine: Engine, request: Request, timeout_s: float, receive: Receive | None) -> list[Outputs]:
    """Wait up to `timeout_s` seconds for a request. Raises the error that ended it; a client disconnect cancels it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[list[Outputs]] = loop.create_future()
    monitors: list[asyncio.Task[None]] = []
    timers = [loop.call_later(timeout_s, engine.expire, request)]
    if receive is not None:
        timers.append(loop.call_later(_WATCH_AFTER_S, lambda: monitors.append(loop.create_task(_watch(engine, request, receive)))))
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
