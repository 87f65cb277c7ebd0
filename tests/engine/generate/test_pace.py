"""The pace of prompts beside decodes, on a made-up machine: a step takes max(bytes, arithmetic)."""

from __future__ import annotations

import pytest

from llmos.runtime.engine.generate.pace import Pace


def run(pace: Pace, token_s: float, num_steps: int = 1000) -> tuple[list[float], list[int]]:
    """Durations in units of a step of decodes alone, and the tokens of prompts in each, of steps that both share."""
    durations, numbers = [], []
    for _ in range(3):
        pace.observe(1, 0, max(1.0, token_s))
    for _ in range(num_steps):
        num_tokens = pace.num_tokens
        run_s = max(1.0, (1 + num_tokens) * token_s)
        pace.observe(1, num_tokens, run_s)
        durations.append(run_s)
        numbers.append(num_tokens)
    return durations, numbers


@pytest.mark.parametrize("token_s", [0.002, 0.02, 0.1, 0.3, 0.6])
def test_steps_take_little_longer_and_what_fits_is_used(token_s: float) -> None:
    durations, numbers = run(Pace(1.4, 512), token_s)
    fits = 1.4 / token_s - 1
    assert sum(duration <= 1.5 for duration in durations[40:]) >= 0.95 * len(durations[40:])
    assert sum(numbers[100:]) / len(numbers[100:]) >= min(512, 0.6 * fits)


def test_prompts_advance_however_slow_they_are() -> None:
    _, numbers = run(Pace(1.4, 512), 10.0)
    assert numbers[-1] == 1
    assert max(run(Pace(1.4, 2), 0.001)[1]) == 2


def test_steps_of_prompts_alone_teach_nothing() -> None:
    pace = Pace(1.4, 512)
    before = pace.num_tokens
    for _ in range(10):
        pace.observe(0, 512, 100.0)
        pace.observe(3, before + 1, 100.0)
        pace.observe(3, 5, 100.0)
    assert pace.num_tokens == before
