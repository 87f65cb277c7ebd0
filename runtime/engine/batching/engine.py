"""The batching engine of one model: a bounded queue and one worker thread.

Requests queue while a batch runs; when it ends, the policy selects the next batch. An idle engine runs a request immediately.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from llmos.runtime.engine.batching.assemble import describe, join, split, split_rows
from llmos.runtime.engine.batching.policy import Decision, Limits, next_batch
from llmos.runtime.engine.errors import CancelledError, ClosedError, DeadlineError, IntegrityError, QueueFullError
from llmos.runtime.engine.model import Array, Batching, Model
from llmos.runtime.engine.observer import BatchReport, NullObserver, Observer, RequestReport
from llmos.runtime.engine.request import Outputs, QueuedRequest, Request, RequestItem
from llmos.runtime.engine.validate import check_inputs
from llmos.runtime.errors import InputError

_PACE_KEPT = 0.9  # of what earlier batches say, with each new one

Clock = Callable[[], float]
Ended = tuple[Request, BaseException | None]


@dataclass(frozen=True)
class EngineOptions:
    """limits: of one batch. max_queue: most requests waiting or running; more are rejected. timeout_s: default timeout in seconds.

    max_wait_s: rejected is also what would wait longer before it runs, by the model's pace of late, unless nothing runs.
    """

    limits: Limits = field(default_factory=Limits)
    max_queue: int = 256
    timeout_s: float = math.inf
    max_wait_s: float = math.inf


@dataclass
class _Pace:
    """How fast the model is, as lately seen: over all rather than by batch, since small batches take long for their size."""

    _work: float = 0.0
    _run_s: float = 0.0
    s_per_work: float = 0.0

    def add(self, work: int, run_s: float) -> None:
        self._work = self._work * _PACE_KEPT + work
        self._run_s = self._run_s * _PACE_KEPT + run_s
        self.s_per_work = self._run_s / max(self._work, 1.0)


class Engine:
    """Runs requests to one model in batches. Safe to use from any thread."""

    def __init__(
        self, model: Model, options: EngineOptions | None = None, *, observer: Observer | None = None, clock: Clock = time.monotonic
    ) -> None:
        self.model = model
        self.options = options or EngineOptions()
        self.batching = Batching.of(model)
        self._limits = _within_symbols(self.options.limits, model, self.batching)
        self._observer = observer or NullObserver()
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: dict[int, RequestItem] = {}  # in order of arrival
        self._running: list[RequestItem] = []
        self._requests: set[Request] = set()  # submitted and not ended
        self._next_id = 0
        self._num_submitted = 0
        self._num_ended = 0
        self._pace = _Pace()
        self._shares: dict[str, float] = {}  # what each principal had of late, by its weight
        self._accepting = True
        self._stopping = False
        self._worker = threading.Thread(target=self._work, name=f"llmos-engine-{model.name}", daemon=True)
        self._worker.start()

    # Public interface.

    def submit(
        self, requests: Sequence[Mapping[str, Array]], *, timeout_s: float | None = None, principal: str = "", weight: float = 1.0
    ) -> Request:
        """Queue one client's request of one or more calls. principal: whose it is; each has a share by its weight of a busy engine.

        Raises InputError (an array doesn't fit the model), QueueFullError or ClosedError; never blocks on the model.
        """
        if not requests:
            raise InputError("the request holds no inputs")
        split = [split_rows(check_inputs(self.model.signature, request), self.batching, self._limits) for request in requests]
        arrays = [part for parts in split for part in parts]
        now = self._clock()
        timeout_s = self.options.timeout_s if timeout_s is None else timeout_s
        request = Request([len(parts) for parts in split], now, now + timeout_s, weight=weight)
        with self._changed:
            self._admit(timeout_s)
            self._join_shares(principal)
            for index, item in enumerate(arrays):
                queued = self._describe(item, request, principal)
                request.work += queued.work
                self._waiting[self._next_id] = RequestItem(request, index, item, queued)
                self._next_id += 1
            self._requests.add(request)
            self._num_submitted += 1
            self._changed.notify_all()
        return request

    def require_room(self) -> None:
        """Raise what `submit` would for a full queue, before the work of reading a request is done. Raises QueueFullError, ClosedError."""
        with self._changed:
            self._admit(math.inf)

    def cancel(self, request: Request) -> bool:
        """Cancel a request; a running batch continues and drops its results. Return False if the request had already ended."""
        return self._end_one(request, "abort", CancelledError("the request was canceled"))

    def expire(self, request: Request) -> bool:
        """End a request as timed out, for callers that track the deadline. Return False if the request had already ended."""
        return self._end_one(request, "timeout", DeadlineError("the request timed out"))

    @property
    def num_waiting(self) -> int:
        """Return the number of requests that wait for their first batch."""
        with self._changed:
            return sum(request.started_s is None for request in self._requests)

    @property
    def num_running(self) -> int:
        """Return the number of requests that have started to run."""
        with self._changed:
            return sum(request.started_s is not None for request in self._requests)

    def limit_delay(self, most_s: float | None) -> None:
        """Let no batch wait longer to grow from now on; None: as long as the options say."""
        with self._changed:
            delay_s = self.options.limits.max_delay_s
            self._limits = replace(self._limits, max_delay_s=delay_s if most_s is None else min(delay_s, most_s))
            self._changed.notify_all()

    def stop_accepting(self) -> None:
        """Make submit raise ClosedError from now on; queued requests still run."""
        with self._changed:
            self._accepting = False

    def drain(self, timeout_s: float | None = None) -> bool:
        """Stop accepting and wait until all queued requests have run. Return False on timeout."""
        self.stop_accepting()
        with self._changed:
            return self._changed.wait_for(self._is_idle, timeout_s)

    def abort(self) -> None:
        """Stop accepting and end all remaining requests with ClosedError; a running call continues, and its results are dropped."""
        error = ClosedError("the server is shutting down: send the request to another one")
        with self._changed:
            self._accepting = False
            ended: list[Ended] = [(request, error) for request in list(self._requests) if self._end(request, "abort")]
        self._announce(ended)

    def close(self) -> None:
        """Abort and stop the worker; waits up to 5 s for a running call."""
        self.abort()
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if threading.current_thread() is not self._worker:
            self._worker.join(5)

    def is_idle(self) -> bool:
        with self._changed:
            return self._is_idle()

    def check_integrity(self) -> None:
        """Check that an idle engine holds no requests. Raises IntegrityError."""
        with self._changed:
            if not self._is_idle():
                return
            if self._requests or self._num_submitted != self._num_ended:
                raise IntegrityError(
                    f"idle with {len(self._requests)} unfinished requests: {self._num_submitted} submitted, {self._num_ended} ended"
                )

    # The methods below run under the lock unless they say otherwise.

    def _is_idle(self) -> bool:
        return not self._waiting and not self._running

    def _admit(self, timeout_s: float) -> None:
        if not self._accepting:
            raise ClosedError("the server is shutting down: send the request to another one")
        wait_s = self._pace.s_per_work * sum(item.queued.work for item in (*self._waiting.values(), *self._running))
        if wait_s > self.options.max_wait_s:
            raise QueueFullError(f"'{self.model.name}' is too busy: try again later", max(1.0, wait_s))
        if len(self._requests) >= self.options.max_queue:
            raise QueueFullError(
                f"the queue of '{self.model.name}' is full ({self.options.max_queue} requests): try again later", max(1.0, wait_s)
            )
        # It runs earlier than that where large requests wait, so that only what is hopeless is refused.
        if wait_s > timeout_s and self._due_s() > timeout_s:
            raise QueueFullError(
                f"'{self.model.name}' is too busy to answer within {timeout_s:.3g} s: try again later", max(1.0, wait_s - timeout_s)
            )

    def _due_s(self) -> float:
        """Return the time that what is due before a new request takes."""
        now, pace = self._clock(), self._pace.s_per_work
        due = [item.queued for item in self._waiting.values()]
        return pace * sum(queued.work for queued in due if queued.arrival_s + queued.work_ahead * pace <= now)

    def _describe(self, arrays: Sequence[Array], request: Request, principal: str) -> QueuedRequest:
        rows, length, group = describe(arrays, self.batching)
        return QueuedRequest(self._next_id, rows, length, group, request.arrival_s, request.deadline_s, request.work, principal)

    def _join_shares(self, principal: str) -> None:
        """Let a principal that had nothing to run begin where the others are: what it left unused is not saved for it."""
        if not self._waiting:
            self._shares.clear()
        if not any(item.queued.principal == principal for item in self._waiting.values()):
            level = min((self._shares.get(item.queued.principal, 0.0) for item in self._waiting.values()), default=0.0)
            self._shares[principal] = max(self._shares.get(principal, 0.0), level)

    def _end(self, request: Request, reason: str) -> bool:
        """Remove a request from all bookkeeping, once. The caller completes its future after the lock is released."""
        if request.reason is not None:
            return False
        request.reason = reason
        self._requests.discard(request)
        self._num_ended += 1
        if request.pending_items:
            for number in [number for number, item in self._waiting.items() if item.request is request]:
                del self._waiting[number]
        self._changed.notify_all()
        return True

    def _end_one(self, request: Request, reason: str, error: BaseException) -> bool:
        """End one request. The lock must not be held."""
        with self._changed:
            ended = self._end(request, reason)
        if ended:
            self._announce([(request, error)])
        return ended

    def _announce(self, ended: Sequence[Ended]) -> None:
        """Complete the futures of ended requests. The lock must not be held, since callbacks run here."""
        now = self._clock()
        for request, error in ended:
            queue_s = None if request.started_s is None else request.started_s - request.arrival_s
            self._observer.on_request(RequestReport(request.reason or "error", now - request.arrival_s, queue_s))
            if error is not None:
                request.future.set_exception(error)
            else:
                request.future.set_result(request.joined())

    # Worker thread.

    def _work(self) -> None:
        while (batch := self._take()) is not None:
            self._run(batch)

    def _take(self) -> list[RequestItem] | None:
        """Wait for the next batch; None if the engine is closed."""
        while True:
            with self._changed:
                if self._stopping:
                    return None
                decision = self._decide()
                late = {self._waiting[number].request for number in decision.expired}
                error = DeadlineError("the request timed out in the queue")
                ended: list[Ended] = [(request, error) for request in late if self._end(request, "timeout")]
                batch = self._start(decision)
                if not batch and not ended:
                    self._changed.wait(None if decision.wake_s is None else max(0.0, decision.wake_s - self._clock()))
            self._announce(ended)
            if batch:
                return batch

    def _decide(self) -> Decision:
        return next_batch(
            [item.queued for item in self._waiting.values()], self._limits, self._clock(), self._pace.s_per_work, self._shares
        )

    def _start(self, decision: Decision) -> list[RequestItem]:
        now = self._clock()
        batch = [self._waiting.pop(number) for number in decision.batch if number in self._waiting]
        for item in batch:
            if item.request.started_s is None:
                item.request.started_s = now
            principal = item.queued.principal
            self._shares[principal] = self._shares.get(principal, 0.0) + item.queued.work / item.request.weight
        self._running = batch
        return batch

    def _run(self, batch: list[RequestItem]) -> None:
        """Run a batch and deliver its results. If it fails, each request runs alone, so that one bad request doesn't fail the others."""
        start = self._clock()
        outcome = self._call(batch)
        if isinstance(outcome, BaseException) and len(batch) > 1:
            outcomes: list[Outputs | BaseException] = []
            for item in batch:
                alone = self._call([item])
                outcomes.append(alone if isinstance(alone, BaseException) else alone[0])
        else:
            outcomes = [outcome] if isinstance(outcome, BaseException) else list(outcome)
        run_s = self._clock() - start
        rows = sum(item.queued.rows for item in batch)
        longest = max(item.queued.length for item in batch)
        self._observer.on_batch(BatchReport(len(batch), rows, rows * longest, run_s))
        self._finish(batch, outcomes, run_s)

    def _call(self, batch: Sequence[RequestItem]) -> list[Outputs] | BaseException:
        try:
            outputs = self.model(join(self.model.signature, self.batching, [item.arrays for item in batch]))
            return split(outputs, [item.queued.rows for item in batch])
        except Exception as error:  # an exception of the model ends its request, not the worker
            return error

    def _finish(self, batch: Sequence[RequestItem], outcomes: Sequence[Outputs | BaseException], run_s: float) -> None:
        ended: list[Ended] = []
        with self._changed:
            self._running = []
            self._pace.add(sum(item.queued.rows for item in batch) * max(item.queued.length for item in batch), run_s)
            for item, outcome in zip(batch, outcomes, strict=True):
                request = item.request
                if isinstance(outcome, BaseException):
                    if self._end(request, "error"):
                        ended.append((request, outcome))
                    continue
                request.results[item.index] = outcome
                request.pending_items -= 1
                if request.pending_items == 0 and self._end(request, "stop"):
                    ended.append((request, None))
            self._changed.notify_all()
        self._announce(ended)


def _within_symbols(limits: Limits, model: Model, batching: Batching) -> Limits:
    """Return the limits, clamped to the range of the model's batch symbol."""
    if batching.batch_symbol is None:
        return limits
    _, most = model.signature.symbols.get(batching.batch_symbol, (1, limits.max_rows))
    return replace(limits, max_rows=min(limits.max_rows, most))
