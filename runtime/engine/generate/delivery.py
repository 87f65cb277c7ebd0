"""What clients are given: the events of their sequences, and the reports of requests that ended."""

from __future__ import annotations

from collections.abc import Sequence as List

from llmos.runtime.engine.errors import DeadlineError
from llmos.runtime.engine.generate.observer import GenerationReport
from llmos.runtime.engine.generate.request import FinishEvent, GenerationRequest, PromptEvent, TokenEvent
from llmos.runtime.engine.generate.sampler import SampledRow
from llmos.runtime.engine.generate.sequence import ABORT, STOP, Sequence
from llmos.runtime.engine.generate.step import Outcome, StepPlan


class Delivery:
    """The requests that have not ended, with their sequences. Used under the engine's lock alone.

    run_s: how long the request ran that ended last.
    """

    def __init__(self) -> None:
        self.requests: dict[GenerationRequest, list[Sequence]] = {}
        self.run_s = 0.0
        self._asleep: list[GenerationRequest] = []
        self._reports: list[GenerationReport] = []

    def take(self) -> tuple[list[GenerationRequest], list[GenerationReport]]:
        """Return the requests whose consumers wait on an event loop for what was delivered, and the reports, since the last call."""
        taken = self._asleep, self._reports
        self._asleep, self._reports = [], []
        return taken

    def deliver(self, plan: StepPlan, outcomes: List[Outcome], begin_s: float, now_s: float) -> list[float]:
        """Deliver what a step gave for sequences that were not canceled meanwhile. begin_s: when it began.

        Return the times between tokens in seconds, as StepReport has them.
        """
        inter_token_s: list[float] = []
        for sequence in plan.expired:
            self.finish(sequence, ABORT, sequence.error, now_s)
        for (sequence, *_), (sampled, prompt, *_) in zip(plan.chunks, outcomes, strict=True):
            request, index = sequence.owner
            if index not in request.open_indices:
                continue
            if prompt:
                request.prompt_rows += prompt
            if request.first_step_s is None:
                request.first_step_s = begin_s
            if sampled is not None:
                if request.num_delivered[index]:
                    inter_token_s.append(now_s - request.last_token_s[index])
                request.last_token_s[index] = now_s
                self._put(sequence, sampled, now_s)
            elif sequence.finish_reason == STOP:  # the grammar lets nothing follow
                self._put_prompt(sequence)
            if sequence.finish_reason is not None:
                self.finish(sequence, sequence.finish_reason, sequence.error, now_s)
            elif request.listener is not None:
                self._asleep.append(request)
        return inter_token_s

    def finish(self, sequence: Sequence, reason: str, error: Exception | None, now_s: float) -> None:
        """Deliver the end of a sequence, once, and that of its request if it was the last one."""
        request, index = sequence.owner
        if index not in request.open_indices:
            return
        request.open_indices.discard(index)
        num_generated = request.num_delivered[index] + (sequence.stop_token is not None)
        num_cached = sequence.num_cached or 0
        request.put(FinishEvent(index, reason, sequence.num_prompt, num_cached, num_generated, sequence.stop_token, error))
        self._asleep.append(request)
        if not request.open_indices:
            self._reports.append(self._report(request, reason, error, now_s))

    def _put(self, sequence: Sequence, sampled: SampledRow, now_s: float) -> None:
        request, index = sequence.owner
        if request.first_token_s is None:
            request.first_token_s = now_s
        self._put_prompt(sequence)
        if sequence.stop_token is None:
            request.num_delivered[index] += 1
            request.put(TokenEvent(index, sampled.token, sampled.logprob, sampled.top))

    def _put_prompt(self, sequence: Sequence) -> None:
        """Deliver the prompt's rows where they are wanted, before the first token."""
        request, index = sequence.owner
        if sequence.spec.prompt_logprobs is not None and not request.num_delivered[index]:
            request.put(PromptEvent((None, *request.prompt_rows)))

    def _report(self, request: GenerationRequest, reason: str, error: Exception | None, now_s: float) -> GenerationReport:
        sequences = self.requests.pop(request)
        if request.first_step_s is not None:
            self.run_s = now_s - request.first_step_s
        return GenerationReport(
            reason="timeout" if isinstance(error, DeadlineError) else reason,
            e2e_s=now_s - request.arrival_s,
            ttft_s=None if request.first_token_s is None else request.first_token_s - request.arrival_s,
            num_prompt_tokens=len(request.prompt),
            num_cached_tokens=sequences[0].num_cached or 0,
            num_generated_tokens=sum(sequence.num_generated for sequence in sequences),
            queue_s=None if request.first_step_s is None else request.first_step_s - request.arrival_s,
        )
