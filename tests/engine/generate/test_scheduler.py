"""The scheduler on the null model: tokens as if alone, no block lost, nothing starves, limits held."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest

from llmos.runtime.engine.errors import DeadlineError
from llmos.runtime.engine.generate import Limits
from llmos.runtime.engine.generate.null import null_spec
from llmos.runtime.engine.generate.sequence import Sequence
from llmos.runtime.errors import UserError
from llmos.runtime.native.sampling import RowSampling

from .reference import generate
from .simulation import Simulation

Array = np.ndarray[Any, Any]


def ids(length: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 61, length).astype(np.int32)


def expected(simulation: Simulation, sequence: Sequence) -> list[int]:
    """What a sequence would have generated alone, as far as it came."""
    count = len(simulation.rows[sequence])
    rows = generate(simulation.spec, sequence.prompt, sequence.spec.sampling, count)
    return [row.token for row in rows]


def test_a_request_alone_gives_what_the_model_gives() -> None:
    simulation = Simulation()
    (sequence,) = simulation.add(ids(7), max_tokens=9, temperature=0.8)
    simulation.run()
    assert simulation.tokens(sequence) == expected(simulation, sequence)
    assert (sequence.finish_reason, sequence.num_generated) == ("length", 9)
    assert simulation.num_steps == 9


def test_a_prompt_is_computed_in_chunks_beside_decodes() -> None:
    simulation = Simulation(limits=Limits(16, 4, 8))
    (short,) = simulation.add(ids(3), max_tokens=20)
    simulation.step()
    (long,) = simulation.add(ids(60, 1), max_tokens=4)
    plans = [simulation.step(max_prefill=6) for _ in range(10)]
    assert all(plan.chunks[0].sequence is short and plan.num_decodes == 1 for plan in plans)
    assert [chunk.end - chunk.begin for plan in plans for chunk in plan.chunks[1:]] == [6] * 10
    assert len(simulation.rows[short]) == 11
    simulation.run()
    assert simulation.tokens(long) == expected(simulation, long)


@pytest.mark.parametrize(("num_waiting", "num_tokens"), [(1, 1 + 3), (2, 1 + 3), (3, 1 + 15)])
def test_few_decodes_wait_for_many_prompts(num_waiting: int, num_tokens: int) -> None:
    simulation = Simulation(limits=Limits(16, 8, 12))
    simulation.add(ids(3), max_tokens=20)
    simulation.step()
    for seed in range(num_waiting):
        simulation.add(ids(20, seed), max_tokens=4)
    assert simulation.step(max_prefill=3).num_tokens == num_tokens
    simulation.run()


def test_a_short_prompt_does_not_wait_for_a_long_one_which_has_half_of_each_step() -> None:
    simulation = Simulation(limits=Limits(20, 4, 8))
    (long,) = simulation.add(ids(120), max_tokens=2)
    assert simulation.step().num_tokens == 20
    (middle,) = simulation.add(ids(60, 1), max_tokens=2)
    (short,) = simulation.add(ids(8, 2), max_tokens=2)
    steps = [{chunk.sequence: chunk.end - chunk.begin for chunk in simulation.step().chunks} for _ in range(3)]
    assert steps == [{short: 8, middle: 2, long: 10}, {short: 1, middle: 9, long: 10}, {middle: 10, long: 10}]
    assert short.finish_reason == "length"
    simulation.run()
    for sequence in (long, middle, short):
        assert simulation.tokens(sequence) == expected(simulation, sequence)


def test_a_prefix_hit_computes_the_rest_alone() -> None:
    simulation = Simulation()
    (first,) = simulation.add(ids(22), max_tokens=3)
    simulation.run()
    prompt = np.concatenate([ids(22)[:18], ids(5, 3)])
    (second,) = simulation.add(prompt, max_tokens=6)
    plan = simulation.step()
    assert (plan.chunks[0].begin, plan.num_tokens) == (16, 7)
    simulation.run()
    assert (first.num_cached, second.num_cached) == (0, 16)
    assert simulation.tokens(second) == expected(simulation, second)


def test_a_whole_cached_prompt_computes_its_last_block_again() -> None:
    simulation = Simulation()
    for _ in range(2):
        (sequence,) = simulation.add(ids(16), max_tokens=3)
        simulation.run()
    assert sequence.num_cached == 12
    assert simulation.tokens(sequence) == expected(simulation, sequence)


@pytest.mark.parametrize(("prefix_cache", "principals"), [(True, ("a", "b")), (False, ("a", "a"))])
def test_prefixes_are_not_shared(prefix_cache: bool, principals: tuple[str, str]) -> None:
    simulation = Simulation(prefix_cache=prefix_cache)
    for principal in principals:
        (sequence,) = simulation.add(ids(20), max_tokens=2, principal=principal)
        simulation.run()
        assert sequence.num_cached == 0


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_sequences_of_one_prompt_share_its_full_blocks(prefix_cache: bool) -> None:
    simulation = Simulation(prefix_cache=prefix_cache)
    sequences = simulation.add(ids(22), max_tokens=8, n=4, temperature=1.5, seed=5)
    simulation.step()
    plan = simulation.step()
    assert [(chunk.begin, chunk.end) for chunk in plan.chunks] == [(22, 23), *[(20, 22)] * 3]
    assert simulation.num_blocks - simulation.pool.num_free == 5 + 4
    simulation.run()
    assert len({tuple(simulation.tokens(sequence)) for sequence in sequences}) == 4
    for sequence in sequences:
        assert simulation.tokens(sequence) == expected(simulation, sequence)


def test_equal_requests_at_once_compute_their_prompt_once() -> None:
    simulation = Simulation(limits=Limits(64, 8, 24))
    sequences = [simulation.add(ids(18), max_tokens=6)[0] for _ in range(3)]
    assert [chunk.sequence for chunk in simulation.step().chunks] == sequences[:1], "one computes what all need"
    assert [(chunk.begin, chunk.end) for chunk in simulation.step().chunks] == [(18, 19), (16, 18), (16, 18)]
    assert [sequence.num_cached for sequence in sequences] == [0, 16, 16]
    assert simulation.num_blocks - simulation.pool.num_free == 4 + 3
    simulation.run()
    assert len({tuple(simulation.tokens(sequence)) for sequence in sequences}) == 1


def test_the_youngest_gives_its_blocks_to_the_oldest_and_starts_again() -> None:
    simulation = Simulation(num_blocks=12)
    sequences = [simulation.add(ids(8, seed), max_tokens=30, temperature=1.0, seed=seed)[0] for seed in range(3)]
    simulation.run()
    assert simulation.num_preempted
    assert sequences[0].num_preemptions == 0
    assert sequences[2].num_preemptions > 0
    for sequence in sequences:
        assert simulation.tokens(sequence) == expected(simulation, sequence)


def test_an_older_prompt_takes_the_blocks_of_a_decode_of_the_same_step() -> None:
    simulation = Simulation(num_blocks=9)
    (young,) = simulation.add(ids(2), max_tokens=30)
    for _ in range(2):
        simulation.step()
    (old,) = simulation.add(ids(24, 1), max_tokens=4, priority=1)
    while not young.num_preemptions:
        plan = simulation.step(max_prefill=1)
    assert [chunk.sequence for chunk in plan.chunks] == [old]
    assert (plan.preempted, plan.num_decodes) == ((young,), 0)
    simulation.run()
    assert [simulation.tokens(each) for each in (young, old)] == [expected(simulation, each) for each in (young, old)]


def test_a_request_waits_until_its_prompt_fits_beside_the_others() -> None:
    simulation = Simulation(num_blocks=11)
    (first,) = simulation.add(ids(20), max_tokens=6)
    (second,) = simulation.add(ids(24, 1), max_tokens=6)
    (third,) = simulation.add(ids(2, 2), max_tokens=6)
    while first.finish_reason is None:
        assert {chunk.sequence for chunk in simulation.step().chunks} == {first}, "nobody overtakes the second"
    simulation.run()
    assert not simulation.num_preempted
    assert [simulation.tokens(each) for each in (second, third)] == [expected(simulation, each) for each in (second, third)]


def test_a_window_frees_the_blocks_behind_it() -> None:
    simulation = Simulation(null_spec(windows=(6, 9)), num_blocks=12)
    (sequence,) = simulation.add(ids(100), max_tokens=40)
    while sequence.finish_reason is None:
        simulation.step()
        assert sequence.table.num_held <= 4
    assert simulation.tokens(sequence) == expected(simulation, sequence)


def test_a_layer_without_a_window_keeps_all_blocks() -> None:
    simulation = Simulation(null_spec(windows=(6, None)))
    (sequence,) = simulation.add(ids(30), max_tokens=10)
    for _ in range(9):
        simulation.step()
    assert sequence.table.num_held == 10
    simulation.run()
    assert simulation.tokens(sequence) == expected(simulation, sequence)


def test_a_prefix_is_hit_behind_a_window_although_its_beginning_is_evicted() -> None:
    simulation = Simulation(null_spec(windows=(8,)), num_blocks=16)
    simulation.add(ids(40), max_tokens=1)
    simulation.run()
    simulation.add(ids(36, 9), max_tokens=1, principal="other")
    simulation.run()
    assert simulation.pool.num_evictions
    (again,) = simulation.add(ids(40), max_tokens=5)
    simulation.run()
    assert again.num_cached == 36
    assert simulation.tokens(again) == expected(simulation, again)


def test_prompt_logprobs_are_those_of_each_token_given_those_before() -> None:
    simulation = Simulation(limits=Limits(16, 2, 5))
    simulation.add(ids(20), max_tokens=1)
    simulation.run()
    leader, follower = simulation.add(ids(20), max_tokens=2, prompt_logprobs=2, n=2)
    simulation.run()
    rows = simulation.prompt_rows[leader]
    assert [row.token for row in rows] == ids(20)[1:].tolist()
    for position, row in enumerate(rows, 1):
        (alone,) = generate(simulation.spec, ids(20)[:position], RowSampling(num_logprobs=2), 1)
        assert row.top == alone.top
        assert (row.logprob == alone.logprob) == (row.token == alone.token)
    assert not simulation.prompt_rows[follower]
    assert (leader.num_cached, follower.num_cached) == (0, 16)


def test_stop_tokens_wait_for_min_tokens() -> None:
    free = Simulation()
    (sequence,) = free.add(ids(5), max_tokens=12)
    free.run()
    third = free.tokens(sequence)[2]
    simulation = Simulation()
    (stopped,) = simulation.add(ids(5), max_tokens=12, stop_token_ids=[third])
    (late,) = simulation.add(ids(5), max_tokens=12, stop_token_ids=[third], min_tokens=4)
    simulation.run()
    count = free.tokens(sequence).index(third) + 1
    assert (stopped.finish_reason, stopped.stop_token, stopped.num_generated) == ("stop", third, count)
    assert third not in simulation.tokens(late)[:4]
    assert late.num_generated >= 4


@pytest.mark.parametrize(("ignore_eos", "reason"), [(False, "stop"), (True, "length")])
def test_the_models_end_tokens_stop_unless_ignored(ignore_eos: bool, reason: str) -> None:
    simulation = Simulation(null_spec(eos=range(61)))
    (sequence,) = simulation.add(ids(5), max_tokens=3, ignore_eos=ignore_eos)
    simulation.run()
    assert sequence.finish_reason == reason


def test_a_deadline_ends_a_sequence_wherever_it_is() -> None:
    simulation = Simulation(limits=Limits(16, 1, 8))
    (running,) = simulation.add(ids(5), max_tokens=50, timeout_s=4)
    waiting = simulation.add(ids(6), max_tokens=50, timeout_s=2, n=2)
    (after,) = simulation.add(ids(7), max_tokens=2)
    simulation.run()
    for sequence in (running, *waiting):
        assert sequence.finish_reason == "abort"
        assert isinstance(sequence.error, DeadlineError)
    assert len(simulation.rows[running]) == 4
    assert simulation.tokens(after) == expected(simulation, after)


def test_a_higher_priority_goes_first_but_not_for_ever() -> None:
    simulation = Simulation(limits=Limits(16, 1, 8))
    simulation.add(ids(5), max_tokens=2)
    (low,) = simulation.add(ids(6), max_tokens=2)
    (high,) = simulation.add(ids(7), max_tokens=2, priority=1)
    simulation.step()
    simulation.now_s = 11
    (late,) = simulation.add(ids(8), max_tokens=2, priority=1)
    while low.finish_reason is None:
        simulation.step()
    assert high.finish_reason
    assert late.finish_reason is None
    simulation.run()


def test_a_step_that_did_not_run_is_rolled_back() -> None:
    simulation = Simulation()
    (running,) = simulation.add(ids(9), max_tokens=8)
    simulation.step()
    (new,) = simulation.add(ids(15, 2), max_tokens=8)
    held = simulation.pool.num_free
    for _ in range(3):
        plan = simulation.scheduler.plan(simulation.now_s)
        assert simulation.pool.num_free < held
        simulation.scheduler.roll_back(plan)
        assert simulation.pool.num_free == held
        simulation.scheduler.check_integrity()
    simulation.run()
    assert [simulation.tokens(each) for each in (running, new)] == [expected(simulation, each) for each in (running, new)]


def test_limits_refuse_nonsense() -> None:
    with pytest.raises(UserError, match="max_requests must be 1"):
        Limits(max_requests=0)
    with pytest.raises(UserError, match="more than max_requests"):
        Limits(max_tokens=64, max_requests=64)


class RandomTraffic:
    """Random requests, from common prefixes, submitted and canceled at random times."""

    def __init__(self, seed: int, num_requests: int, simulation: Simulation) -> None:
        self.random = np.random.default_rng(seed)
        self.simulation = simulation
        self.left = num_requests
        self.prefixes = [ids(int(self.random.integers(1, 40)), 100 + seed) for seed in range(6)]
        self.live: list[Sequence] = []
        self.ended: deque[Sequence] = deque()
        self.num_canceled = self.num_cached = self.longest_wait = 0
        self.started: dict[Sequence, int] = {}

    def run(self) -> None:
        simulation = self.simulation
        while self.left or self.live:
            for _ in range(min(self.left, int(self.random.poisson(0.6)))):
                self.submit()
            if self.live and self.random.random() < 0.05:
                victim = self.live[int(self.random.integers(len(self.live)))]
                self.num_canceled += simulation.scheduler.remove(victim)
            self.collect()
            if self.live:
                simulation.step(None if self.random.random() < 0.3 else int(self.random.integers(1, 30)))
                self.collect()
        simulation.scheduler.check_integrity()
        assert simulation.pool.num_free == simulation.num_blocks

    def submit(self) -> None:
        random = self.random
        prefix = self.prefixes[int(random.integers(6))]
        prompt = np.concatenate(
            [prefix[: int(random.integers(len(prefix) + 1))], ids(int(random.integers(1, 12)), int(random.integers(9)))]
        )
        sequences = self.simulation.add(
            prompt,
            principal="ab"[int(random.integers(2))],
            max_tokens=int(random.integers(1, 40)),
            n=int(random.choice([1, 1, 1, 2, 4])),
            temperature=float(random.choice([0.0, 1.0])),
            seed=int(random.integers(1000)),
            frequency_penalty=float(random.choice([0.0, 0.0, 1.5])),
            stop_token_ids=random.integers(0, 61, 2).tolist(),
            prompt_logprobs=None if random.random() < 0.9 else 0,
            timeout_s=float("inf") if random.random() < 0.9 else float(random.integers(5, 60)),
        )
        self.left -= 1
        self.live += sequences
        self.started.update(dict.fromkeys(sequences, self.simulation.num_steps))

    def collect(self) -> None:
        """Check the sequences that ended, and forget them."""
        simulation = self.simulation
        for sequence in [each for each in self.live if each.finish_reason is not None]:
            self.live.remove(sequence)
            assert simulation.tokens(sequence) == expected(simulation, sequence)
            complete = sequence.finish_reason in ("stop", "length")
            if complete and sequence.spec.prompt_logprobs is not None:
                assert [row.token for row in simulation.prompt_rows[sequence]] == sequence.prompt[1:].tolist()
            assert complete or sequence.finish_reason == "abort"
            self.num_cached += sequence.num_cached or 0
            self.longest_wait = max(self.longest_wait, simulation.num_steps - self.started.pop(sequence))
            del simulation.rows[sequence], simulation.prompt_rows[sequence]


def check_random_traffic(seed: int, num_requests: int, check_every: int) -> RandomTraffic:
    windows: tuple[int | None, ...] = [(None,), (11,), (None, 7), (5, 18)][seed % 4]
    limits = [Limits(24, 6, 20), Limits(64, 16, 40)][seed // 4 % 2]
    num_blocks = [32, 18, 32, 22][seed % 4]
    simulation = Simulation(null_spec(windows=windows), limits, num_blocks=num_blocks, check_every=check_every)
    traffic = RandomTraffic(seed, num_requests, simulation)
    traffic.run()
    return traffic


@pytest.mark.parametrize("seed", range(4))
def test_random_traffic_gives_each_sequence_its_own_tokens(seed: int) -> None:
    traffic = check_random_traffic(seed, 40, check_every=1)
    assert traffic.num_cached


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_ten_thousand_random_arrivals(seed: int) -> None:
    traffic = check_random_traffic(seed, 1250, check_every=7)
    assert traffic.num_canceled
    assert traffic.num_cached
    assert traffic.simulation.num_preempted or traffic.simulation.spec.window, "with windows sequences hardly grow"
