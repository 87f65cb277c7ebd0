"""How many tokens of prompts share a step with decodes, so that these are delayed by little. Pure: durations are given."""

from __future__ import annotations

_SMOOTHING = 0.2  # weight of the latest step in the average
_FIRST = 8
_PATIENCE = 24  # steps that must be fast enough before the number grows, once it has been too large


class Pace:
    """Finds `num_tokens` for which a step takes at most about `slowdown` times one of decodes alone.

    On a CPU a step of few tokens takes as long as reading the weights, and more tokens are free until arithmetic takes longer: where
    that is depends on the model, its quantization and the machine. So the number doubles until a step takes too long; then, and at each
    later step that does, it loses a quarter, and grows slowly, so that few steps in a hundred are too long.
    """

    def __init__(self, slowdown: float, max_tokens: int) -> None:
        self.num_tokens = min(_FIRST, max_tokens)
        self._slowdown = slowdown
        self._max_tokens = max_tokens
        self._decode_s: float | None = None  # average of steps of decodes alone
        self._num_fast = 0  # steps in a row of the present number
        self._was_slow = False

    def observe(self, num_decodes: int, num_prefill_tokens: int, run_s: float) -> None:
        """Take the duration of a step. One with more tokens of prompts than `num_tokens` is left out."""
        if not num_decodes or num_prefill_tokens > self.num_tokens:
            return
        if not num_prefill_tokens:
            before = run_s if self._decode_s is None else self._decode_s
            self._decode_s = before + _SMOOTHING * (run_s - before)
        elif self._decode_s is not None and run_s > self._slowdown * self._decode_s:
            self._shrink(num_prefill_tokens)
        elif self._decode_s is not None and num_prefill_tokens == self.num_tokens:
            self._grow()

    def _shrink(self, num_prefill_tokens: int) -> None:
        self.num_tokens = max(1, min(self.num_tokens, num_prefill_tokens) * 3 // 4)
        self._num_fast = 0
        self._was_slow = True

    def _grow(self) -> None:
        self._num_fast += 1
        if self._was_slow and self._num_fast < _PATIENCE:
            return
        step = max(1, self.num_tokens // 16) if self._was_slow else self.num_tokens
        self.num_tokens = min(self._max_tokens, self.num_tokens + step)
        self._num_fast = 0
