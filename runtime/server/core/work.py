"""Where the work of requests runs: small work on the event loop, the rest in bounded lanes beside it.

What is one long call of native code that holds the interpreter (parsing, decompressing) runs in a process of its own. What is many short
calls, or releases the interpreter (tokenizing), runs in a thread. Large work has its own lanes, so that it never stands before small work.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import orjson

from llmos.runtime.children import Children
from llmos.runtime.engine import DeadlineError
from llmos.runtime.server.core.errors import HttpError

_Result = TypeVar("_Result")
_CHILDREN = Children("llmos.runtime.server.reduce_worker")
_MAX_REDUCE_S = 60  # of processor time


class Lanes:
    """The threads of a server."""

    def __init__(self) -> None:
        self._small = ThreadPoolExecutor(8, "llmos-small")
        self._large = ThreadPoolExecutor(2, "llmos-large")
        self._reduce = ThreadPoolExecutor(2, "llmos-reduce")  # each waits for its process

    async def run(self, work: Callable[[], _Result], deadline_s: float, *, large: bool) -> _Result:
        """Run work in a thread. Raises DeadlineError if it is not done by then; what has not begun never does."""
        return await _within(self._large if large else self._small, work, deadline_s)

    async def reduce(self, task: dict[str, Any], pieces: Sequence[bytes], deadline_s: float) -> tuple[int, bytes]:
        """Return a large body in a smaller form: the size of its JSON, and all of it. task, and what it raises: see `reduce_worker.py`."""
        head = orjson.dumps(task)
        request = [len(head).to_bytes(4, "big"), head, *pieces]

        def ask() -> tuple[int, bytes]:
            left_s = min(_MAX_REDUCE_S, math.ceil(deadline_s - time.perf_counter()))
            if left_s <= 0:
                raise DeadlineError("the request timed out")
            answer = _CHILDREN.ask(request, left_s)
            if answer.fault or answer.failed:
                raise HttpError(413, "the request's body takes too much time or memory to be read: make it smaller")
            size = int.from_bytes(answer.output[1:5], "big")
            if answer.output[0]:
                raise HttpError(**orjson.loads(answer.output[5:]))
            return size, answer.output[5:]

        return await _within(self._reduce, ask, deadline_s)

    def close(self) -> None:
        for lane in (self._small, self._large, self._reduce):
            lane.shutdown(wait=False, cancel_futures=True)


async def _within(lane: ThreadPoolExecutor, work: Callable[[], _Result], deadline_s: float) -> _Result:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout_at(loop.time() + deadline_s - time.perf_counter()):
            return await loop.run_in_executor(lane, work)
    except TimeoutError:
        raise DeadlineError("the request timed out") from None
