"""How many tokens of prompts share a step with decodes, so that these are delayed by little. Pure: durations are given."""

from __future__ import annotations

_SMOOTHING = 0.2  # weight of the latest step in the average
_STEP = 4  # tokens by which the number grows, and its least
_FIRST = 16


class Pace:
    """Additive increase, multiplicative decrease of `num_tokens`, toward steps of at most `slowdown` times a step of decodes alone.

    On a CPU a step of few tokens takes as long as reading the weights, and more tokens are free until arithmetic takes longer: where
    that is depends on the model, its quantization and the machine, so it is found by trying.
    """

    def __init__(self, slowdown: float, max_tokens: int) -> None:
        self.num_tokens = min(_FIRST, max_tokens)
        self._slowdown = slowdown
        self._max_tokens = max_tokens
        self._decode_s: float | None = None  # average of steps of decodes alone

    def observe(self, num_decodes: int, num_prefill_tokens: int, run_s: float) -> None:
        """Take the duration of a step."""
        if not num_decodes:
            return
        if not num_prefill_tokens:
            before = run_s if self._decode_s is None else self._decode_s
            self._decode_s = before + _SMOOTHING * (run_s - before)
        elif self._decode_s is not None and run_s > self._slowdown * self._decode_s:
            self.num_tokens = max(min(_STEP, self._max_tokens), min(self.num_tokens, num_prefill_tokens) // 2)
        elif self._decode_s is not None and num_prefill_tokens >= self.num_tokens:
            self.num_tokens = min(self._max_tokens, self.num_tokens + _STEP)
