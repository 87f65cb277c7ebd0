"""The order of requests of several principals, so that each gets its share of a busy model, whatever the others queue."""

from __future__ import annotations

from collections.abc import Iterable

from llmos.runtime.engine.generate.request import GenerationRequest

_KEPT = 0.95  # of what earlier steps say, with each new one
_MOST_GENERATED = 256  # tokens that a request is taken to generate, since few generate all that they may


class FairOrder:
    """Puts each request where it would come if its principal had its share of the model to itself.

    A request behind others of its principal that wait counts as having arrived when those have run, at the pace of late and the principal's
    share by weight among those that wait. So one's queue puts off its own requests, and no one else's.
    """

    def __init__(self) -> None:
        self._tokens = self._run_s = 0.0

    def observe(self, num_tokens: int, run_s: float) -> None:
        """Take note of a step."""
        self._tokens = self._tokens * _KEPT + num_tokens
        self._run_s = self._run_s * _KEPT + run_s

    def place(self, request: GenerationRequest, others: Iterable[GenerationRequest]) -> None:
        """Set a new request's order_s. others: those that have not ended."""
        waiting = [each for each in others if each.first_step_s is None]
        same = [each for each in waiting if each.principal == request.principal]
        if not same:  # it keeps the time of its arrival
            return
        weights = {each.principal: each.weight for each in (*waiting, request)}
        share = request.weight / sum(weights.values())
        ahead_s = sum(map(_work, same)) * self._run_s / max(self._tokens, 1.0) / share
        request.order_s = max(request.arrival_s + ahead_s, *(each.order_s for each in same))


def _work(request: GenerationRequest) -> int:
    most = request.params.max_tokens
    return len(request.prompt) + request.params.n * (_MOST_GENERATED if most is None else min(most, _MOST_GENERATED))
