"""Quotas of keys: what is refused may come again when it was told to; quotas and limits that mean nothing are refused, NaN among them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.runtime.engine import Limits
from llmos.runtime.errors import UserError
from llmos.runtime.server.core.quotas import Quota, RateLimiter
from llmos.runtime.server.core.settings import ConnectionLimits, ServerSettings


@given(st.floats(1, 1e6), st.floats(1, 1e6), st.lists(st.tuples(st.floats(0, 90), st.integers(0, 10**6)), max_size=30))
@settings(deadline=None)
def test_what_is_refused_is_let_through_after_the_time_that_it_was_told(
    requests_per_min: float, tokens_per_min: float, calls: list[tuple[float, int]]
) -> None:
    limiter = RateLimiter({"key": Quota(requests_per_min=requests_per_min, tokens_per_min=tokens_per_min)}, 0.0)
    now_s = 0.0
    for later_s, num_tokens in calls:
        now_s += later_s
        wait_s = limiter.admit("key", now_s)
        if wait_s:
            now_s += wait_s * (1 + 1e-6) + 1e-6
            assert limiter.admit("key", now_s) == 0
        limiter.charge("key", num_tokens)


def test_others_are_not_limited() -> None:
    limiter = RateLimiter({"key": Quota(requests_per_min=1)}, 0.0)
    assert limiter.admit("key", 0.0) == 0 and limiter.admit("key", 0.0) == 60
    assert all(limiter.admit("other", 0.0) == 0 for _ in range(100))


@pytest.mark.parametrize("field", ["weight", "requests_per_min", "tokens_per_min"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_a_quota_that_lets_nothing_through_is_refused(field: str, value: float) -> None:
    with pytest.raises(UserError, match="a key's"):
        Quota(**{field: value})


def test_less_than_one_a_minute_would_never_be_enough() -> None:
    for field in ("requests_per_min", "tokens_per_min"):
        with pytest.raises(UserError, match="1 or more"):
            Quota(**{field: 0.5})
    with pytest.raises(UserError, match="weight must be above 0"):
        Quota(weight=math.inf)


@pytest.mark.parametrize("field", ["max_padding", "max_delay_s", "max_overtake_s"])
def test_limits_of_batches_are_numbers(field: str) -> None:
    for value in (math.nan, -1.0):
        with pytest.raises(UserError, match="can't be negative"):
            Limits(**{field: value})


@pytest.mark.parametrize("field", ["header_timeout_s", "write_timeout_s", "keep_alive_s"])
def test_times_of_connections_are_numbers(field: str) -> None:
    for value in (math.nan, 0.0):
        with pytest.raises(UserError, match="times must be above 0"):
            ConnectionLimits(**{field: value})


@pytest.mark.parametrize("field", ["timeout_s", "generation_timeout_s", "grace_s", "drain_delay_s", "response_cache_ttl_s"])
def test_times_of_a_server_are_numbers(field: str) -> None:
    for value in (math.nan, -1.0):
        with pytest.raises(UserError, match="server settings"):
            ServerSettings(**{field: value})
