"""The generation engine of one model: a queue, and one worker thread that steps the scheduler and the runner."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as List

from llmos.runtime.engine.errors import ClosedError, IntegrityError, QueueFullError, StateLostError
from llmos.runtime.engine.generate.admission import Admission
from llmos.runtime.engine.generate.blocks import BlockPool
from llmos.runtime.engine.generate.delivery import Delivery
from llmos.runtime.engine.generate.fairness import FairOrder
from llmos.runtime.engine.generate.guide import Grammar, GuideWorkers
from llmos.runtime.engine.generate.memory import count_blocks
from llmos.runtime.engine.generate.model import StepModel
from llmos.runtime.engine.generate.observer import GenerationObserver, NullGenerationObserver, StepReport
from llmos.runtime.engine.generate.options import GenerationOptions, limits_of
from llmos.runtime.engine.generate.pace import Pace
from llmos.runtime.engine.generate.params import SamplingParams
from llmos.runtime.engine.generate.request import GenerationRequest, wake
from llmos.runtime.engine.generate.runner import Runner
from llmos.runtime.engine.generate.sampler import Sampler
from llmos.runtime.engine.generate.scheduler import Scheduler
from llmos.runtime.engine.generate.sequence import ABORT, ERROR, Sequence
from llmos.runtime.engine.generate.step import Outcome, StepPlan
from llmos.runtime.engine.model import Array
from llmos.runtime.errors import InputError, LlmosError
from llmos.runtime.native.sampling import RowSampler

Clock = Callable[[], float]
_LOOK_S = 0.05  # how often deadlines are looked at while all sequences wait for their masks


class GenerationEngine:
    """Generates for many requests at once, each as if it were alone. Safe to use from any thread."""

    def __init__(
        self,
        model: StepModel,
        options: GenerationOptions | None = None,
        *,
        sampler: Sampler | None = None,
        observer: GenerationObserver | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.model = model
        self.options = options = options or GenerationOptions()
        self.limits = limits_of(options.limits, model)
        self.num_blocks = count_blocks(
            model.spec,
            num_sequences=self.limits.max_requests,
            max_blocks=model.sizes.max_blocks,
            cache_blocks=options.cache_blocks,
            cache_bytes=options.cache_bytes,
            usable_bytes=int(model.free_bytes() * options.memory_fraction),
        )
        self._admission = Admission(model.spec, self.num_blocks, options.prefix_cache)
        self._runner = Runner(model, sampler or RowSampler(), self.limits, self.num_blocks)
        self._scheduler = self._new_scheduler()
        self._pace = Pace(options.slowdown, self.limits.max_tokens)
        self._observer = observer or NullGenerationObserver()
        self._clock = clock
        self._guides: GuideWorkers | None = None  # from the first grammar on
        self._changed = threading.Condition()
        # Under the lock:
        self._order = FairOrder()
        self._arrived: list[list[Sequence]] = []  # by request, for the worker to take
        self._canceled: list[Sequence] = []
        self._delivery = Delivery()
        self._next_id = 0
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
        weight: float = 1.0,
        timeout_s: float | None = None,
        grammar: Grammar | None = None,
    ) -> GenerationRequest:
        """Queue a prompt of token ids; never waits for the model. Only requests of the same principal share cached prefixes.

        weight: of the principal's share of a busy model (`fairness.py`). grammar: that the tokens of each sequence follow, what
        params.structured_outputs are for this model's tokens.

        Raises InputError (see SamplingParams and Admission), QueueFullError or ClosedError.
        """
        params = params or SamplingParams()
        params.check_vocabulary(self.model.spec.vocab_size)
        if (grammar is None) != (params.structured_outputs is None):
            raise InputError("structured_outputs: need the grammar that they are for the tokens of this model")
        prompt = self._admission.prompt(prompt_ids)
        max_length = self._admission.max_length(len(prompt), params.max_tokens, self._scheduler)
        now = self._clock()
        deadline_s = now + (self.options.timeout_s if timeout_s is None else timeout_s)
        request = GenerationRequest(prompt, params, now, deadline_s, self._cancel, principal, weight)
        with self._changed:
            self._require_room()
            self._order.place(request, self._delivery.requests)
            sequences = self._admission.sequences(request, self._next_id, principal, max_length, self._scheduler.pool, grammar)
            self._next_id += params.n
            if grammar is not None and self._guides is None:
                self._guides = GuideWorkers(self._wake)
            self._delivery.requests[request] = sequences
            self._arrived.append(sequences)
            self._changed.notify_all()
        return request

    @property
    def num_requests(self) -> int:
        """Return how many requests have not ended."""
        with self._changed:
            return len(self._delivery.requests)

    @property
    def num_running(self) -> int:
        """Return how many sequences hold blocks, as of the last step."""
        return self._scheduler.num_running

    @property
    def num_waiting(self) -> int:
        """Return how many sequences wait to run, or to run again."""
        with self._changed:
            num_arrived = sum(map(len, self._arrived))
        return self._scheduler.num_waiting + num_arrived

    @property
    def cache_usage(self) -> float:
        """Return the share of the cache's blocks that sequences hold, 0 to 1; cached prefixes that nobody uses do not count."""
        return 1 - self._scheduler.pool.num_free / self.num_blocks

    def stop_accepting(self) -> None:
        """Make submit raise ClosedError from now on; queued requests still run."""
        with self._changed:
            self._accepting = False

    def drain(self, timeout_s: float | None = None) -> bool:
        """Stop accepting and wait until all requests have ended. Return False on timeout."""
        self.stop_accepting()
        with self._changed:
            return self._changed.wait_for(self._is_idle, timeout_s)

    def abort(self) -> None:
        """Stop accepting and end all requests with ClosedError; a running step continues, and its results are dropped."""
        self.stop_accepting()
        with self._changed:
            self._finish_all(ABORT, ClosedError("the server is shutting down: send the request to another one"))
        self._announce()

    def require_room(self) -> None:
        """Raise what `submit` would for a full queue, before the work of reading a prompt is done. Raises QueueFullError, ClosedError."""
        with self._changed:
            self._require_room()

    def close(self) -> None:
        """Abort and stop the worker; waits up to 5 s for a running step."""
        self.abort()
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if threading.current_thread() is not self._worker:
            self._worker.join(5)
        if self._guides is not None:
            self._guides.close()

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
        return not (self._delivery.requests or self._arrived or self._canceled or self._working)

    def _require_room(self) -> None:
        if not self._accepting:
            raise ClosedError("the server is shutting down: send the request to another one")
        if len(self._delivery.requests) >= self.options.max_queue:
            message = f"the queue of '{self.model.name}' is full ({self.options.max_queue} requests): try again later"
            raise QueueFullError(message, max(1.0, self._delivery.run_s * self.options.max_queue / self.limits.max_requests))

    def _finish_all(self, reason: str, error: Exception) -> None:
        sequences = [sequence for each in self._delivery.requests.values() for sequence in each]
        self._finish(sequences, reason, error)

    def _finish(self, sequences: List[Sequence], reason: str, error: Exception | None) -> None:
        self._canceled += sequences
        now = self._clock()
        for sequence in sequences:
            self._delivery.finish(sequence, reason, error, now)
        self._changed.notify_all()

    # Without the lock.

    def _cancel(self, request: GenerationRequest, index: int | None, reason: str) -> bool:
        """See GenerationRequest.cancel and stop."""
        with self._changed:
            sequences = [
                sequence
                for sequence in self._delivery.requests.get(request, ())
                if sequence.owner[1] in request.open_indices and index in (None, sequence.owner[1])
            ]
            self._finish(sequences, reason, None)
        self._announce()
        return bool(sequences)

    def _announce(self) -> None:
        """Wake consumers, and report to the observer, which may call the engine."""
        with self._changed:
            asleep, reports = self._delivery.take()
        wake(asleep)
        for report in reports:
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
            self._await_masks()
            return
        self._begin_guides(plan)
        begin = self._clock()
        outcomes = self._run(plan)
        run_s = self._clock() - begin
        self._scheduler.commit(plan, outcomes)
        self._continue_guides(plan, outcomes)
        with self._changed:
            self._order.observe(plan.num_tokens, run_s)
            inter_token_s = self._delivery.deliver(plan, outcomes, start, self._clock())
        self._announce()
        self._pace.observe(plan.num_decodes, plan.num_tokens - plan.num_decodes, run_s)
        self._observer.on_step(self._step_report(plan, run_s, self._clock() - start, inter_token_s))

    def _begin_guides(self, plan: StepPlan) -> None:
        """Let the first masks of sequences be computed while the model computes their prompts."""
        if self._guides is None:
            return
        found = [chunk.sequence.guidance for chunk in plan.chunks if chunk.sequence.guidance and not chunk.sequence.guidance.is_begun]
        for guidance in found:
            guidance.begin(None)
        self._guides.start(found)

    def _continue_guides(self, plan: StepPlan, outcomes: List[Outcome]) -> None:
        """Let the masks behind the tokens of a step be computed."""
        if self._guides is None:
            return
        found = []
        for chunk, outcome in zip(plan.chunks, outcomes, strict=True):
            guidance = chunk.sequence.guidance
            if guidance is not None and outcome.sampled is not None and chunk.sequence.finish_reason is None:
                guidance.begin(outcome.sampled.token)
                found.append(guidance)
        self._guides.start(found)

    def _await_masks(self) -> None:
        """Wait until one of the masks is there that all running sequences wait for, or there is something else to do."""
        with self._changed:
            if not any(sequence.guidance for sequence in self._scheduler.running):
                raise IntegrityError("the scheduler has sequences and plans none")
            if all(sequence.awaits_mask for sequence in self._scheduler.running) and not (
                self._arrived or self._canceled or self._stopping
            ):
                self._changed.wait(_LOOK_S)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _run(self, plan: StepPlan) -> List[Outcome]:
        if not plan.chunks:
            return []
        try:
            return self._runner.run(plan)
        except StateLostError:
            raise
        except Exception as error:
            return [Outcome(error=error)] if len(plan.chunks) == 1 else self._runner.run_each(plan)

    def _step_report(self, plan: StepPlan, run_s: float, step_s: float, inter_token_s: List[float]) -> StepReport:
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
            tuple(inter_token_s),
        )

    def _reset(self, error: Exception) -> None:
        failure = error if isinstance(error, LlmosError) else IntegrityError(f"the engine failed: {error!r}")
        with self._changed:
            self._scheduler = self._new_scheduler()
            self._finish_all(ERROR, failure)
            self._arrived, self._canceled = [], []
        self._announce()
