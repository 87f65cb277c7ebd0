"""Load on a server: an open loop of Poisson arrivals, and a closed loop of clients that wait for their answers."""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from llmos.runtime.bench.client import HttpClient, RequestError
from llmos.runtime.bench.samples import Sample, sample_of
from llmos.runtime.bench.workload import Call
from llmos.runtime.errors import UserError

_MAX_REQUESTS = 1_000_000  # of an open loop, which are made before it begins
_LEAD_S = 0.02  # between the start of the clock that arrivals have and the first of them
_SWITCH_INTERVAL_S = 0.0005  # that the thread of the clock waits for the interpreter at most


class Workload(Protocol):
    """Requests without end."""

    def calls(self, random: Random) -> Iterator[Call]:
        """Yield requests, the same for the same random numbers."""
        ...


@dataclass(frozen=True)
class OpenLoop:
    """Requests arrive whether others were answered or not. rate: a second, on average. timeout_s: of each."""

    rate: float
    duration_s: float
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        if self.rate * self.duration_s > _MAX_REQUESTS:
            raise UserError(
                f"a load of {self.rate:g} requests a second for {self.duration_s:g} s is more than {_MAX_REQUESTS:,}: make it shorter"
            )

    def arrivals(self, random: Random) -> list[float]:
        """Return the times of a Poisson process in seconds from the start."""
        found, at_s = [], random.expovariate(self.rate)
        while at_s < self.duration_s:
            found.append(at_s)
            at_s += random.expovariate(self.rate)
        return found

    async def run(self, client: HttpClient, workload: Workload, seed: int) -> list[Sample]:
        """Run the load. Return what each request saw, in the order of arrival."""
        random = Random(seed)
        offsets = self.arrivals(random)
        calls = [call for _, call in zip(offsets, workload.calls(random), strict=False)]
        loop = asyncio.get_running_loop()
        tasks: list[asyncio.Task[Sample]] = []
        all_sent = asyncio.Event()
        begin_s = time.perf_counter() + _LEAD_S

        def send(index: int) -> None:
            if index == len(calls):
                all_sent.set()
            else:
                tasks.append(loop.create_task(_send(client, calls[index], begin_s + offsets[index], self.timeout_s)))

        stop = threading.Event()
        due_s = [begin_s + offset for offset in offsets]
        before_s = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        threading.Thread(target=_tick, args=(due_s, lambda index: loop.call_soon_threadsafe(send, index), stop), daemon=True).start()
        try:
            await all_sent.wait()
            return await asyncio.gather(*tasks)
        finally:
            stop.set()
            sys.setswitchinterval(before_s)


def _tick(due_s: Sequence[float], send: Callable[[int], object], stop: threading.Event) -> None:
    """Call `send` with each index when it is due, and with one more at the end. A thread, since timers of loops are good to 1 ms only."""
    for index, at_s in enumerate(due_s):
        if (left_s := at_s - time.perf_counter()) > 0:
            time.sleep(left_s)
        if stop.is_set():
            return
        send(index)
    send(len(due_s))


@dataclass(frozen=True)
class ClosedLoop:
    """So many clients, each of which sends its next request when it has the answer to the last.

    It ends after duration_s, but not before least_requests of all together, or after num_requests. A slow server slows such clients
    down, so that their latencies say nothing about arrivals that don't wait.
    """

    concurrency: int
    duration_s: float
    num_requests: int | None = None
    timeout_s: float = 600.0
    least_requests: int = 0

    async def run(self, client: HttpClient, workload: Workload, seed: int) -> list[Sample]:
        """Run the load. Return what each request saw, in the order of their ends."""
        calls = workload.calls(Random(seed))
        samples: list[Sample] = []
        end_s = time.perf_counter() + self.duration_s
        num_sent, most = 0, math.inf if self.num_requests is None else self.num_requests

        async def one_client() -> None:
            nonlocal num_sent
            while num_sent < self.least_requests or (time.perf_counter() < end_s and num_sent < most):
                num_sent += 1
                sample = await _send(client, next(calls), None, self.timeout_s)
                samples.append(sample)
                if sample.status == 0:
                    await asyncio.sleep(0.05)  # a server that refuses connections is not called in a tight loop

        await asyncio.gather(*(one_client() for _ in range(self.concurrency)))
        return samples


async def _send(client: HttpClient, call: Call, due_s: float | None, timeout_s: float) -> Sample:
    sent_s = time.perf_counter()
    due_s = sent_s if due_s is None else due_s
    try:
        response = await client.request("POST", call.path, call.body, call.headers, timeout_s)
    except RequestError as error:
        return Sample(due_s, sent_s, time.perf_counter(), 0, error=str(error))
    return sample_of(response, due_s)
