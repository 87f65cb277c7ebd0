"""The batching policy: nothing lost, nothing twice, limits held, oldest first, deadlines kept."""

from __future__ import annotations

import math
from collections.abc import Hashable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.runtime.engine import Decision, Limits, QueuedRequest, next_batch
from llmos.runtime.errors import UserError

GROUPS: list[Hashable] = ["a", "b", None]
requests = st.builds(
    lambda rows, length, group, arrival, patience: QueuedRequest(0, rows, length, group, arrival, arrival + patience),
    st.integers(1, 12),
    st.integers(1, 64),
    st.sampled_from(GROUPS),
    st.floats(0, 10),
    st.one_of(st.just(math.inf), st.floats(0.01, 5)),
)
queues = st.lists(requests, max_size=40).map(
    lambda found: [
        QueuedRequest(number, one.rows, one.length, one.group, one.arrival_s, one.deadline_s)
        for number, one in enumerate(sorted(found, key=lambda request: request.arrival_s))
    ]
)
limits = st.builds(
    Limits,
    max_rows=st.integers(1, 16),
    max_padded_tokens=st.integers(1, 256),
    max_padding=st.floats(0, 2),
    max_delay_s=st.sampled_from([0.0, 0.5, 2.0]),
    window=st.integers(1, 40),
    max_overtake_s=st.sampled_from([0.0, 0.5, 20.0]),
)


def run_all(queue: list[QueuedRequest], rules: Limits) -> tuple[list[list[int]], list[int], list[float]]:
    """Let the policy empty a queue on a made-up clock: batches, expired ids and the time of each batch."""
    now, left = max((request.arrival_s for request in queue), default=0.0), list(queue)
    batches: list[list[int]] = []
    expired: list[int] = []
    times: list[float] = []
    for _ in range(1000):
        decision = next_batch(left, rules, now)
        expired += decision.expired
        gone = set(decision.batch) | set(decision.expired)
        left = [request for request in left if request.id not in gone]
        if decision.batch:
            batches.append(list(decision.batch))
            times.append(now)
            now += 0.25
        elif decision.wake_s is not None:
            assert decision.wake_s > now, "a wake-up in the past would spin"
            now = decision.wake_s
        elif not left:
            return batches, expired, times
    raise AssertionError("the policy does not empty the queue")


@given(queues, limits)
@settings(deadline=None)
def test_every_request_is_run_or_expired_exactly_once(queue: list[QueuedRequest], rules: Limits) -> None:
    batches, expired, _ = run_all(queue, rules)
    assert sorted([number for batch in batches for number in batch] + expired) == [request.id for request in queue]


@given(queues, limits)
@settings(deadline=None)
def test_limits_hold_for_every_batch_of_more_than_one(queue: list[QueuedRequest], rules: Limits) -> None:
    for batch in run_all(queue, rules)[0]:
        members = [queue[number] for number in batch]
        if len(members) == 1:
            continue
        rows = sum(member.rows for member in members)
        padded = rows * max(member.length for member in members)
        assert rows <= rules.max_rows
        assert padded <= rules.max_padded_tokens
        assert padded <= sum(member.rows * member.length for member in members) * (1 + rules.max_padding) + 1e-9
        assert len({member.group for member in members}) == 1
        assert members[0].group is not None


@given(queues, limits)
@settings(deadline=None)
def test_the_oldest_live_request_is_in_the_next_batch(queue: list[QueuedRequest], rules: Limits) -> None:
    batches, expired, _ = run_all(queue, rules)
    left = [request.id for request in queue if request.id not in expired]
    for batch in batches:
        assert batch[0] == left[0]
        assert batch == sorted(batch)
        left = [number for number in left if number not in batch]


@given(queues, limits)
@settings(deadline=None)
def test_nothing_is_overtaken_by_what_came_much_later(queue: list[QueuedRequest], rules: Limits) -> None:
    batches, _, _ = run_all(queue, rules)
    position = {number: index for index, batch in enumerate(batches) for number in batch}
    for early in position:
        for late in position:
            if position[late] < position[early]:
                assert queue[late].arrival_s <= queue[early].arrival_s + rules.max_overtake_s


def test_a_small_request_waits_for_no_more_of_a_large_one_than_was_due_before_it() -> None:
    parts = [QueuedRequest(number, 4, 8, "a", 0.0, work_ahead=32 * number) for number in range(100)]
    small = QueuedRequest(100, 1, 1, "b", 10.0)
    rules = Limits(max_rows=4)
    pending = [*parts[9:], small]
    assert next_batch(pending, rules, 10.0, s_per_work=1 / 32).batch == (9,), "due at 9 s"
    assert next_batch([*parts[11:], small], rules, 10.0, s_per_work=1 / 32).batch == (100,), "the next part is due at 11 s"
    assert next_batch(parts[11:], rules, 10.0, s_per_work=1 / 32).batch == (11,), "an idle engine does not wait"


def test_principals_share_a_busy_model_by_what_they_had() -> None:
    queue = [QueuedRequest(number, 1, 8, "a", 0.0, principal="many" if number < 50 else "few") for number in range(52)]
    rules = Limits(max_rows=1)
    assert next_batch(queue, rules, 1.0, shares={"many": 8.0, "few": 0.0}).batch == (50,)
    assert next_batch(queue, rules, 1.0, shares={"many": 8.0, "few": 16.0}).batch == (0,)
    assert next_batch(queue, rules, 1.0).batch == (0,), "equal ones go by their order"
    assert set(next_batch(queue, Limits(max_rows=60), 1.0, shares={"many": 8.0}).batch) == set(range(52)), "others fill the batch"


@given(queues, limits)
@settings(deadline=None)
def test_nothing_runs_after_its_deadline(queue: list[QueuedRequest], rules: Limits) -> None:
    batches, expired, times = run_all(queue, rules)
    for batch, time in zip(batches, times, strict=True):
        assert all(queue[number].deadline_s > time for number in batch)
    assert all(queue[number].deadline_s < math.inf for number in expired)


@given(queues, limits, st.floats(0, 20))
@settings(deadline=None)
def test_a_decision_does_not_wait_past_the_delay(queue: list[QueuedRequest], rules: Limits, now: float) -> None:
    decision = next_batch(queue, rules, now)
    live = [request for request in queue if request.deadline_s > now]
    if decision.wake_s is not None:
        assert not decision.batch
        assert decision.wake_s <= live[0].arrival_s + rules.max_delay_s
    if live and rules.max_delay_s == 0 and now >= live[0].arrival_s:
        assert decision.batch, "an idle engine must not wait"


def waiting(number: int, length: int = 8, *, arrival_s: float = 0.0, deadline_s: float = math.inf, group: Hashable = "a") -> QueuedRequest:
    return QueuedRequest(number, 1, length, group, arrival_s, deadline_s)


def test_nearest_lengths_join_first() -> None:
    queue = [waiting(0, 10), waiting(1, 100), waiting(2, 11), waiting(3, 9), waiting(4, 10)]
    assert next_batch(queue, Limits(max_rows=3), 1.0).batch == (0, 2, 4)


def test_a_delay_ends_early_when_the_batch_is_full_or_a_deadline_comes() -> None:
    rules = Limits(max_rows=2, max_delay_s=1.0)
    assert next_batch([waiting(0)], rules, 0.1) == Decision(wake_s=1.0)
    assert next_batch([waiting(0)], rules, 1.0).batch == (0,)
    assert next_batch([waiting(0), waiting(1)], rules, 0.1).batch == (0, 1)
    assert next_batch([waiting(0, deadline_s=0.9)], rules, 0.1).batch == (0,)


def test_a_request_larger_than_the_limits_runs_alone() -> None:
    big = QueuedRequest(0, 50, 100, "a", 0.0)
    assert next_batch([big, waiting(1)], Limits(max_rows=4), 0.0).batch == (0,)


def test_limits_refuse_nonsense() -> None:
    with pytest.raises(UserError, match="max_rows"):
        Limits(max_rows=0)
    with pytest.raises(UserError, match="negative"):
        Limits(max_delay_s=-1)
