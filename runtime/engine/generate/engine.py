"""The generation engine of one model: a queue, and one worker thread that steps the scheduler and the runner."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as List
from dataclasses import dataclass, field

from llmos.runtime.engine.errors import ClosedError, IntegrityError, QueueFullError
from llmos.runtime.engine.generate.admission import Admission
from llmos.runtime.engine.generate.blocks import BlockPool
from llmos.runtime.engine.generate.memory import count_blocks
from llmos.runtime.engine.generate.model import StepModel
from llmos.runtime.engine.generate.observer import GenerationObserver, GenerationReport, NullGenerationObserver, StepReport
from llmos.runtime.engine.generate.pace import Pace
from llmos.runtime.engine.generate.params import SamplingParams
from llmos.runtime.engine.generate.request import FinishEvent, GenerationRequest, PromptEvent, TokenEvent, wake
from llmos.runtime.engine.generate.runner import Runner
from llmos.runtime.engine.generate.sampler import SampledRow, Sampler
from llmos.runtime.engine.generate.scheduler import Limits, Scheduler
from llmos.runtime.engine.generate.sequence import ABORT, ERROR, Sequence
from llmos.runtime.engine.generate.step import Outcome, StepPlan
from llmos.runtime.engine.model import Array
from llmos.runtime.errors import LlmosError
from llmos.runtime.native.sampling import sample_rows

Clock = Callable[[], float]


@dataclass(frozen=True)
class GenerationOptions:
    """limits: of one step, within what the model takes. max_queue: most requests that have not ended; more are rejected.

    timeout_s: of a request that gives none. cache_blocks, cache_bytes: size of the cache; where neither is given it holds max_requests
    of the full context, as far as `memory_fraction` of the free memory does. prefix_cache: whether requests of a principal share blocks.
    slowdown: how much longer a step of decodes may take if it computes tokens of prompts too.
    """

    limits: Limits = field(default_factory=Limits)
    max_queue: int = 256
    timeout_s: float = math.inf
    cache_blocks: int | None = None
    cache_bytes: int | None = None
    memory_fraction: float = 0.5
    prefix_cache: bool = True
    slowdown: float = 1.4


class GenerationEngine:
    """Generates for many requests at once, each as if it were alone. Safe to use from any thread."""

    def __init__(
        self,
        model: StepModel,
        options: GenerationOptions | None = None,
        *,
        sampler: Sampler = sample_rows,
        observer: GenerationObserver | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.model = model
        self.options = options = options or GenerationOptions()
        self.limits = _within(options.limits, model)
        self.num_blocks = count_blocks(
            model.spec,
            num_sequences=self.limits.max_requests,
            max_blocks=model.sizes.max_blocks,
            cache_blocks=options.cache_blocks,
            cache_bytes=options.cache_bytes,
            memory_fraction=options.memory_fraction,
        )
        self._admission = Admission(model.spec, self.num_blocks, options.prefix_cache)
        self._runner = Runner(model, sampler, self.limits, self.num_blocks)
        self._scheduler = self._new_scheduler()
        self._pace = Pace(options.slowdown, self.limits.max_tokens)
        self._observer = observer or NullGenerationObserver()
        self._clock = clock
        self._changed = threading.Condition()
        # Under the lock:
        self._arrived: list[list[Sequence]] = []  # by request, for the worker to take
        self._canceled: list[Sequence] = []
        self._requests: dict[GenerationRequest, list[Sequence]] = {}  # submitted and not ended
        self._next_id = 0
        self._e2e_s = 0.0  # of the request that ended last, for Retry-After
        self._working = False
        self._accepting = True
        self._stopping = False
        self._worker = threading.Thread(target=self._work, name=f"llmos-generate-{model.name}", daemon=True)
        self._worker.start()

    # Public interface.

    def submit(
        self,
        prompt_ids: List[int] | Array,
        params: SamplingParams | None = None,
        *,
        principal: str = "",
        timeout_s: float | None = None,
    ) -> GenerationRequest:
        """Queue a prompt of token ids; never waits for the model. Only requests of the same principal share cached prefixes.

        Raises InputError (see SamplingParams and Admission), QueueFullError or ClosedError.
        """
        params = params or SamplingParams()
        params.check_vocabulary(self.model.spec.vocab_size)
        prompt = self._admission.prompt(prompt_ids)
        max_length = self._admission.max_length(len(prompt), params.max_tokens, self._scheduler)
        now = self._clock()
        deadline_s = now + (self.options.timeout_s if timeout_s is None else timeout_s)
        request = GenerationRequest(prompt, params, now, deadline_s, self._cancel)
        with self._changed:
            self._require_room()
            sequences = self._admission.sequences(request, self._next_id, principal, max_length, self._scheduler.pool)
            self._next_id += params.n
            self._requests[request] = sequences
            self._arrived.append(sequences)
            self._changed.notify_all()
        return request

    @property
    def num_requests(self) -> int:
        """Return how many requests have not ended."""
        with self._changed:
            return len(self._requests)

    def stop_accepting(self) -> None:
        """Make submit raise ClosedError from now on; queued requests still run."""
        with self._changed:
            self._accepting = False

    def drain(self, timeout_s: float | None = None) -> bool:
        """Stop accepting and wait until all requests have ended. Return False on timeout."""
        self.stop_accepting()
        with self._changed:
            return self._changed.wait_for(self._is_idle, timeout_s)

    def close(self) -> None:
        """End all requests with ClosedError and stop the worker; waits up to 5 s for a running step."""
        self.stop_accepting()
        self._end_all(ABORT, ClosedError("the server is shutting down: send the request to another one"))
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if threading.current_thread() is not self._worker:
            self._worker.join(5)

    def is_idle(self) -> bool:
        """Return whether no request is left and the worker waits for the next."""
        with self._changed:
            return self._is_idle()

    def check_integrity(self) -> None:
        """Check that an idle engine holds no sequences, and that every block is accounted for. Raises IntegrityError."""
        with self._changed:
            if not self._is_idle():
                return
            if any(True for _ in self._scheduler.sequences()):
                raise IntegrityError("idle with sequences that have not ended")
            self._scheduler.check_integrity()

    # Under the lock.

    def _is_idle(self) -> bool:
        return not (self._requests or self._arrived or self._canceled or self._working)

    def _require_room(self) -> None:
        if not self._accepting:
            raise ClosedError("the server is shutting down: send the request to another one")
        if len(self._requests) >= self.options.max_queue:
            message = f"the queue of '{self.model.name}' is full ({self.options.max_queue} requests): try again later"
            raise QueueFullError(message, max(1.0, self._e2e_s / self.limits.max_requests))

    def _finish(self, sequence: Sequence, reason: str, error: Exception | None) -> GenerationReport | None:
        """Deliver the end of a sequence, once. Return the report of its request if that ended with it."""
        request, index = sequence.owner
        if index not in request.open_indices:
            return None
        request.open_indices.discard(index)
        num_generated = request.num_delivered[index] + (sequence.stop_token is not None)
        num_cached = min(sequence.num_cached or 0, sequence.num_prompt)
        request.put(FinishEvent(index, reason, sequence.num_prompt, num_cached, num_generated, sequence.stop_token, error))
        if request.open_indices:
            return None
        sequences = self._requests.pop(request)
        return self._report(request, sequences, reason, error)

    def _report(self, request: GenerationRequest, sequences: List[Sequence], reason: str, error: Exception | None) -> GenerationReport:
        ttft_s = None if request.first_token_s is None else request.first_token_s - request.arrival_s
        reason = "timeout" if reason == ABORT and error is not None else reason
        num_cached = sum(sequence.num_cached or 0 for sequence in sequences)
        num_generated = sum(sequence.num_generated for sequence in sequences)
        self._e2e_s = self._clock() - request.arrival_s
        return GenerationReport(reason, self._e2e_s, ttft_s, len(request.prompt), num_cached, num_generated)

    def _cancel(self, request: GenerationRequest, index: int | None) -> bool:
        """See GenerationRequest.cancel. The lock must not be held."""
        with self._changed:
            sequences = [each for each in self._requests.get(request, ()) if index is None or each.owner[1] == index]
            open_ones = [each for each in sequences if each.owner[1] in request.open_indices]
            self._canceled += open_ones
            reports = [self._finish(sequence, ABORT, None) for sequence in open_ones]
            self._changed.notify_all()
        self._announce([request], reports)
        return bool(open_ones)

    def _finish_all(self, reason: str, error: Exception) -> list[GenerationReport | None]:
        sequences = [sequence for each in self._requests.values() for sequence in each]
        self._canceled += sequences
        self._changed.notify_all()
        return [self._finish(sequence, reason, error) for sequence in sequences]

    # Without the lock.

    def _end_all(self, reason: str, error: Exception) -> None:
        with self._changed:
            requests = list(self._requests)
            reports = self._finish_all(reason, error)
        self._announce(requests, reports)

    def _announce(self, requests: List[GenerationRequest], reports: List[GenerationReport | None]) -> None:
        wake(requests)
        for report in reports:
            if report is not None:
                self._observer.on_generation(report)

    # Worker thread.

    def _new_scheduler(self) -> Scheduler:
        spec = self.model.spec
        return Scheduler(BlockPool(self.num_blocks, spec.block_size, spec.window), self.limits, spec.window)

    def _work(self) -> None:
        while True:
            try:
                if not self._await_work():
                    return
                self._step()
            except Exception as error:  # a fault of the engine itself: start again with an empty cache rather than stop serving
                self._reset(error)

    def _await_work(self) -> bool:
        """Take arrived and canceled sequences, and wait while there is nothing to compute. Return False if the engine is closed."""
        with self._changed:
            while not self._stopping:
                self._take()
                if self._scheduler.num_running or self._scheduler.num_waiting:
                    self._working = True
                    return True
                self._working = False
                self._changed.notify_all()
                self._changed.wait()
            self._take()  # what was canceled last, so that a closed engine is idle
            self._working = False
            self._changed.notify_all()
            return False

    def _take(self) -> None:
        for leader, *_ in self._arrived:
            self._scheduler.add(leader)
        for sequence in self._canceled:
            self._scheduler.remove(sequence)
        self._arrived, self._canceled = [], []

    def _step(self) -> None:
        """Plan, reserve, run, and commit; a chunk that fails is rolled back with its sequence."""
        start = self._clock()
        plan = self._scheduler.plan(start, self._pace.num_tokens)
        if not plan.chunks and not plan.expired:
            raise IntegrityError("the scheduler has sequences and plans none")
        begin = self._clock()
        outcomes = self._run(plan)
        run_s = self._clock() - begin
        self._scheduler.commit(plan, outcomes)
        self._deliver(plan, outcomes)
        self._pace.observe(plan.num_decodes, plan.num_tokens - plan.num_decodes, run_s)
        self._observer.on_step(self._step_report(plan, run_s, self._clock() - start))

    def _run(self, plan: StepPlan) -> List[Outcome]:
        if not plan.chunks:
            return []
        try:
            return self._runner.run(plan)
        except Exception as error:
            return [Outcome(error=error)] if len(plan.chunks) == 1 else self._runner.run_each(plan)

    def _deliver(self, plan: StepPlan, outcomes: List[Outcome]) -> None:
        now = self._clock()
        reports: list[GenerationReport | None] = []
        asleep: list[GenerationRequest] = []  # whose consumers wait on an event loop
        with self._changed:
            for sequence in plan.expired:
                reports.append(self._finish(sequence, ABORT, sequence.error))
                asleep.append(sequence.owner[0])
            for (sequence, *_), (sampled, prompt, _) in zip(plan.chunks, outcomes, strict=True):
                request, index = sequence.owner
                if index not in request.open_indices:  # canceled meanwhile
                    continue
                request.prompt_rows += prompt
                if sampled is not None:
                    self._put(sequence, sampled, now)
                if sequence.finish_reason is not None:
                    reports.append(self._finish(sequence, sequence.finish_reason, sequence.error))
                if request.listener is not None:
                    asleep.append(request)
        self._announce(asleep, reports)

    def _put(self, sequence: Sequence, sampled: SampledRow, now: float) -> None:
        """Deliver a sampled token. Under the lock."""
        request, index = sequence.owner
        if request.first_token_s is None:
            request.first_token_s = now
        if sequence.spec.prompt_logprobs is not None and not request.num_delivered[index]:
            request.put(PromptEvent((None, *request.prompt_rows)))
        if sequence.stop_token is None:
            request.num_delivered[index] += 1
            request.put(TokenEvent(index, sampled.token, sampled.logprob, sampled.top))

    def _step_report(self, plan: StepPlan, run_s: float, step_s: float) -> StepReport:
        scheduler = self._scheduler
        return StepReport(
            plan.num_tokens,
            plan.num_decodes,
            scheduler.num_running,
            scheduler.num_waiting,
            len(plan.preempted),
            scheduler.pool.num_free,
            self.num_blocks,
            run_s,
            step_s,
        )

    def _reset(self, error: Exception) -> None:
        failure = error if isinstance(error, LlmosError) else IntegrityError(f"the engine failed: {error!r}")
        with self._changed:
            self._scheduler = self._new_scheduler()
            requests = list(self._requests)
            reports = self._finish_all(ERROR, failure)
            self._arrived, self._canceled = [], []
        self._announce(requests, reports)


def _within(limits: Limits, model: StepModel) -> Limits:
    """Return the limits, clamped to what the model takes."""
    sizes = model.sizes
    rows, tokens = min(limits.max_rows, sizes.max_rows), min(limits.max_tokens, sizes.max_tokens)
    requests = min(limits.max_requests, sizes.max_requests, rows - 1, tokens - 1)
    return Limits(tokens, max(1, requests), rows)
