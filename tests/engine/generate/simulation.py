"""Scheduler, pool and runner on the null model, stepped by hand on a made-up clock, without threads."""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmos.runtime.engine.generate import GenerationSpec, Limits, SamplingParams, StepSizes
from llmos.runtime.engine.generate.admission import Admission
from llmos.runtime.engine.generate.blocks import BlockPool
from llmos.runtime.engine.generate.null import NullStepModel, null_spec
from llmos.runtime.engine.generate.request import GenerationRequest
from llmos.runtime.engine.generate.runner import Runner
from llmos.runtime.engine.generate.scheduler import Scheduler
from llmos.runtime.engine.generate.sequence import Sequence
from llmos.runtime.engine.generate.step import StepPlan
from llmos.runtime.native.sampling import SampledRow, sample_rows

Array = np.ndarray[Any, Any]


@dataclass
class Simulation:
    """rows: what was sampled for each sequence; prompt_rows: the log probabilities of its prompt."""

    spec: GenerationSpec = field(default_factory=null_spec)
    limits: Limits = field(default_factory=lambda: Limits(32, 8, 24))
    num_blocks: int = 64
    prefix_cache: bool = True
    check_every: int = 1

    def __post_init__(self) -> None:
        sizes = StepSizes(self.limits.max_tokens, self.limits.max_requests, self.limits.max_rows)
        self.model = NullStepModel(self.spec, sizes)
        self.pool = BlockPool(self.num_blocks, self.spec.block_size, self.spec.window)
        self.scheduler = Scheduler(self.pool, self.limits, self.spec.window)
        self.runner = Runner(self.model, sample_rows, self.limits, self.num_blocks)
        self.admission = Admission(self.spec, self.num_blocks, self.prefix_cache)
        self.rows: dict[Sequence, list[SampledRow]] = {}
        self.prompt_rows: dict[Sequence, list[SampledRow]] = {}
        self.now_s = 0.0
        self.num_steps = 0
        self.num_preempted = 0
        self._next_id = 0

    def add(self, prompt: List[int] | Array, *, principal: str = "", timeout_s: float = np.inf, **params: Any) -> list[Sequence]:
        """Submit a request; the seed is 0 unless one is given."""
        wanted = SamplingParams(**{"seed": 0, **params})
        ids = self.admission.prompt(prompt)
        max_length = self.admission.max_length(len(ids), wanted.max_tokens, self.scheduler)
        request = GenerationRequest(ids, wanted, self.now_s, self.now_s + timeout_s, lambda *_: False)
        sequences = self.admission.sequences(request, self._next_id, principal, max_length, self.pool)
        self._next_id += len(sequences)
        self.scheduler.add(sequences[0])
        self.rows.update({sequence: [] for sequence in sequences})
        self.prompt_rows.update({sequence: [] for sequence in sequences})
        return sequences

    def step(self, max_prefill: int | None = None) -> StepPlan:
        """Run one step and check what must hold of every step."""
        before = list(self.scheduler.running)
        plan = self.scheduler.plan(self.now_s, max_prefill)
        self._check(plan, before)
        outcomes = self.runner.run(plan) if plan.chunks else []
        self.scheduler.commit(plan, outcomes)
        for chunk, outcome in zip(plan.chunks, outcomes, strict=True):
            self.prompt_rows[chunk.sequence] += outcome.prompt
            if outcome.sampled is not None:
                self.rows[chunk.sequence].append(outcome.sampled)
        self.now_s += 1
        self.num_steps += 1
        self.num_preempted += len(plan.preempted)
        if self.num_steps % self.check_every == 0:
            self.scheduler.check_integrity()
        return plan

    def run(self, max_prefill: int | None = None) -> None:
        """Step until every sequence has ended."""
        while self.scheduler.num_running or self.scheduler.num_waiting:
            self.step(max_prefill)
        self.scheduler.check_integrity()
        assert self.pool.num_free == self.num_blocks

    def tokens(self, sequence: Sequence) -> list[int]:
        """Return the tokens generated for a sequence, a stop token included."""
        return [row.token for row in self.rows[sequence]]

    def _check(self, plan: StepPlan, before: list[Sequence]) -> None:
        limits = self.limits
        assert plan.chunks or plan.expired, "the scheduler stalls"
        assert plan.num_tokens <= limits.max_tokens
        assert plan.num_rows <= limits.max_rows
        assert len(plan.chunks) <= limits.max_requests
        decodes = [chunk.end - chunk.begin == 1 for chunk in plan.chunks[: plan.num_decodes]]
        assert all(decodes)
        scheduler, scheduled = self.scheduler, [chunk.sequence for chunk in plan.chunks]
        assert not scheduler.running or scheduler.running[0] in scheduled, "the oldest sequence that runs must advance"
        admitted = [sequence.spec.order for sequence in scheduler.running if sequence not in before]
        if scheduler.waiting and admitted and not plan.preempted:
            assert max(admitted) < scheduler.waiting[0].spec.order, "a waiting sequence was overtaken"
