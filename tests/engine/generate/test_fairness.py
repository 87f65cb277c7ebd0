"""Principals share a language model by weight, and each one's own requests keep their order."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.runtime.engine.generate import SamplingParams
from llmos.runtime.engine.generate.fairness import FairOrder
from llmos.runtime.engine.generate.request import GenerationRequest

S_PER_TOKEN = 0.01


def request(arrival_s: float, principal: str, weight: float = 1.0, num_tokens: int = 50) -> GenerationRequest:
    params = SamplingParams(max_tokens=num_tokens)
    return GenerationRequest(np.ones(num_tokens, np.int64), params, arrival_s, 1e9, lambda *_: True, principal, weight)


def placed(requests: list[GenerationRequest]) -> list[GenerationRequest]:
    order = FairOrder()
    order.observe(1000, 1000 * S_PER_TOKEN)
    for index, each in enumerate(requests):
        order.place(each, requests[:index])
    return sorted(requests, key=lambda each: each.order_s)


def test_one_principal_alone_is_served_in_order_of_arrival() -> None:
    requests = [request(number / 10, "a") for number in range(20)]
    assert placed(requests) == requests


def test_a_queue_puts_off_only_its_own() -> None:
    flood = [request(0.0, "flood") for _ in range(20)]
    late = request(3.5, "late")
    order = placed([*flood, late])
    assert order.index(late) == 4, "a request takes 1 s: four of the flood are due before"


def test_shares_go_by_weight() -> None:
    requests = [request(0.0, who, weight) for _ in range(30) for who, weight in (("one", 1.0), ("two", 2.0))]
    first = placed(requests)[:30]
    assert 18 <= sum(each.principal == "two" for each in first) <= 22


def test_what_runs_is_no_queue() -> None:
    requests = [request(0.0, "a") for _ in range(5)]
    for each in requests:
        each.first_step_s = 0.0
    late = request(0.1, "a")
    assert placed([*requests, late])[-1].order_s == 0.1


@given(st.lists(st.tuples(st.floats(0, 5), st.sampled_from("abc"), st.floats(0.1, 8), st.integers(1, 400)), max_size=30))
@settings(deadline=None)
def test_requests_of_a_principal_keep_their_order(found: list[tuple[float, str, float, int]]) -> None:
    requests = [request(*each) for each in sorted(found, key=lambda each: each[0])]
    placed(requests)
    for index, each in enumerate(requests):
        before = requests[:index]
        assert each.arrival_s <= each.order_s
        assert all(other.order_s <= each.order_s for other in before if other.principal == each.principal)
