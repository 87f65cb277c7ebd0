"""Scheduler and runner with masks that are late: the same tokens as with masks that never are, whatever the steps."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from llmos.runtime.engine.generate.guide import Guidance
from llmos.runtime.engine.generate.null import null_spec
from llmos.runtime.engine.generate.step import Limits, StepPlan
from llmos.runtime.errors import InputError

from .simulation import Simulation

Array = np.ndarray[Any, Any]
VOCABULARY = 61


@dataclass(frozen=True)
class Hashed:
    """Allows tokens that follow from those so far; complete at a length, or failing there."""

    seed: int
    length: int
    fails: bool = False

    def start(self) -> HashedGuide:
        return HashedGuide(self)


class HashedGuide:
    def __init__(self, grammar: Hashed) -> None:
        self._grammar = grammar
        self._tokens: list[int] = []

    def next_mask(self, token: int | None) -> Array | None:
        if token is not None:
            self._tokens.append(token)
        if len(self._tokens) == self._grammar.length:
            if self._grammar.fails:
                raise InputError("it can't go on")
            return None
        chosen = random.Random(hash((self._grammar.seed, *self._tokens)))
        mask = np.zeros(2, np.uint32)
        for each in chosen.sample(range(VOCABULARY), 5):
            mask[each // 32] |= np.uint32(1 << each % 32)
        return mask


def follows(grammar: Hashed, tokens: list[int]) -> bool:
    guide, last = grammar.start(), None
    for token in tokens:
        mask = guide.next_mask(last)
        if mask is None or not mask[token // 32] >> np.uint32(token % 32) & np.uint32(1):
            return False
        last = token
    return True


class Late(Simulation):
    """A simulation whose masks are there some steps later, as random numbers decide."""

    chosen = random.Random(0)
    share = 0.0  # of masks that are not there yet, at each step
    num_late = 0
    num_failed = 0

    def step(self, max_prefill: int | None = None) -> StepPlan:
        open_guides = [each.guidance for each in self.scheduler.sequences() if each.guidance is not None]
        for guidance in open_guides:
            if guidance.is_begun and not guidance.ready.is_set() and self.chosen.random() >= self.share:
                guidance.compute()
        plan = self.scheduler.plan(self.now_s, max_prefill)
        if not plan.chunks:
            awaited = [each.guidance for each in self.scheduler.running if each.awaits_mask]
            assert awaited, "the scheduler stalls"
            for each in awaited:
                assert each is not None
                each.compute()
            return plan
        for chunk in plan.chunks:
            if chunk.sequence.guidance is not None and not chunk.sequence.guidance.is_begun:
                chunk.sequence.guidance.begin(None)
                if self.chosen.random() >= self.share:
                    chunk.sequence.guidance.compute()
        outcomes = self.runner.run(plan)
        self.scheduler.commit(plan, outcomes)
        self.scheduler.check_integrity()
        self.num_preempted += len(plan.preempted)
        self.num_late += sum(outcome.is_deferred for outcome in outcomes)
        self.num_failed += sum(outcome.error is not None for outcome in outcomes)
        for chunk, outcome in zip(plan.chunks, outcomes, strict=True):
            self.prompt_rows[chunk.sequence] += outcome.prompt
            if outcome.sampled is None:
                continue
            self.rows[chunk.sequence].append(outcome.sampled)
            if chunk.sequence.guidance is not None and chunk.sequence.finish_reason is None:
                chunk.sequence.guidance.begin(outcome.sampled.token)
        return plan


Wanted = tuple[list[int], Hashed | None, dict[str, Any]]


def run(simulation: Late, requests: list[Wanted]) -> list[Any]:
    """Return what each sequence gave: its tokens with their log probabilities, those of its prompt, and why it ended."""
    added = []
    for prompt, grammar, params in requests:
        sequences = simulation.add(prompt, **params)
        for sequence in sequences:
            sequence.guidance = None if grammar is None else Guidance(grammar)
        added += sequences
    simulation.run()
    return [(simulation.rows[each], simulation.prompt_rows[each], each.finish_reason, type(each.error)) for each in added]


@given(st.integers(0, 2**32), st.sampled_from([0.2, 0.7, 1.0]), st.sampled_from([None, 9]))
@settings(max_examples=10, deadline=None, phases=[Phase.explicit, Phase.generate])
def test_late_masks_change_no_token(seed: int, share: float, window: int | None) -> None:
    chosen = random.Random(seed)
    requests: list[Wanted] = []
    for number in range(6):
        grammar = Hashed(chosen.randrange(100), chosen.randint(0, 9), chosen.random() < 0.2) if chosen.random() < 0.8 else None
        prompt = [*range(chosen.choice([0, 8])), *(chosen.randrange(VOCABULARY) for _ in range(chosen.randint(1, 20)))]
        params: dict[str, Any] = {"seed": number, "max_tokens": chosen.randint(1, 12), "n": chosen.randint(1, 3), "logprobs": 0}
        if chosen.random() < 0.3:
            params["prompt_logprobs"] = 0
        requests.append((prompt, grammar, params))
    spec = null_spec(windows=(window,))
    late = Late(spec, Limits(12, 5, 8), num_blocks=14)
    late.chosen, late.share = chosen, share
    roomy = Late(spec, Limits(64, 32, 64), num_blocks=400, prefix_cache=False)
    found = run(late, requests)
    assert found == run(roomy, requests)
    assert roomy.num_late == 0
    begin = 0
    for _, grammar, params in requests:
        for rows, _, reason, error in found[begin : begin + params["n"]]:
            tokens = [row.token for row in rows]
            if grammar is not None:
                assert follows(grammar, tokens)
                ended = len(tokens) == grammar.length and grammar.length < params["max_tokens"]
                assert reason == ("length" if not ended else "error" if grammar.fails else "stop")
                assert (error is InputError) == (reason == "error")
        begin += params["n"]


def test_the_simulation_meets_late_masks_preemptions_and_failures() -> None:
    """Otherwise the test above shows nothing."""
    chosen = random.Random(1)
    late = Late(null_spec(), Limits(12, 6, 8), num_blocks=16)
    late.chosen, late.share = chosen, 0.6
    run(late, [([number] * 3, Hashed(number, 20, number == 3), {"seed": number, "max_tokens": 30}) for number in range(6)])
    assert late.num_late > 5
    assert late.num_preempted > 0
    assert late.num_failed == 1
