"""The policy that selects the queued requests to run next: pure, without clock, threads or arrays.

The rule, in order:
1. A request whose deadline has passed never runs.
2. Requests are ordered by arrival. A part of a large request stands there as if it had arrived when the parts before it have run, so that a
   small request waits for as much of a large one as was due before it came, and no longer.
3. The first live request of the principal that had the least is always in the next batch: no principal and no request starves.
4. Requests of the same group are added, nearest in length first (FIFO among equals), while the limits hold, if they stand at most
   max_overtake_s behind the first of their principal: none is overtaken by what the same principal sent longer after it.
5. The batch runs immediately, unless a delay is configured and the batch could still grow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmos.runtime.engine.request import QueuedRequest
from llmos.runtime.errors import UserError


@dataclass(frozen=True)
class Limits:
    """The limits of one batch.

    max_rows: rows along the batch dimension.
    max_padded_tokens: rows times the longest length, for models whose inputs are padded to a common length.
    max_padding: most padding tokens for each real token. On a CPU time grows with tokens, padding included, from a few dozen on: 0.15
        gave a quarter more requests per second than 0.5 (benchmarks/serving.py), with batches half as large.
    max_delay_s: how many seconds a batch that could still grow waits for more requests; 0 never waits.
    max_overtake_s: by how many seconds a later request may overtake. Under overload the choice by length would raise p99 without a bound.
    window: how many requests are considered, the first ones, which bounds the work of a decision.
    """

    max_rows: int = 32
    max_padded_tokens: int = 2048
    max_padding: float = 0.15
    max_delay_s: float = 0.0
    window: int = 256
    max_overtake_s: float = 0.25

    def __post_init__(self) -> None:
        if self.max_rows < 1 or self.max_padded_tokens < 1 or self.window < 1:
            raise UserError("batch limits: max_rows, max_padded_tokens and window must be 1 or more")
        if not all(each >= 0 for each in (self.max_padding, self.max_delay_s, self.max_overtake_s)):
            raise UserError("batch limits: max_padding, max_delay_s and max_overtake_s can't be negative")


@dataclass(frozen=True)
class Decision:
    """The decision: ids to run together, ids whose deadline has passed, and when to decide again (None: on the next arrival)."""

    batch: tuple[int, ...] = ()
    expired: tuple[int, ...] = ()
    wake_s: float | None = None


def next_batch(
    pending: Sequence[QueuedRequest], limits: Limits, now_s: float, s_per_work: float = 0.0, shares: Mapping[str, float] | None = None
) -> Decision:
    """Select the next batch from `pending`, which is ordered oldest first.

    s_per_work: seconds that a unit of work takes. shares: what each principal had of late, by its weight.
    """
    expired = tuple(request.id for request in pending if request.deadline_s <= now_s)
    live = [request for request in pending if request.deadline_s > now_s]
    if not live:
        return Decision(expired=expired)

    def order_s(request: QueuedRequest) -> float:
        return request.arrival_s + request.work_ahead * s_per_work

    live = sorted(live, key=order_s)
    first: dict[str, QueuedRequest] = {}
    for request in live:
        first.setdefault(request.principal, request)
    had = shares or {}
    head = min(first.values(), key=lambda request: had.get(request.principal, 0.0))
    near = [each for each in live if order_s(each) <= order_s(first[each.principal]) + limits.max_overtake_s and each is not head]
    live = [head, *near[: limits.window - 1]]
    batch, can_grow = _fill(live, limits)
    ids = tuple(request.id for request in batch)
    release_s = live[0].arrival_s + limits.max_delay_s
    if not can_grow or now_s >= release_s or any(request.deadline_s <= release_s for request in batch):
        return Decision(ids, expired)
    return Decision(expired=expired, wake_s=release_s)


def _fill(live: Sequence[QueuedRequest], limits: Limits) -> tuple[list[QueuedRequest], bool]:
    """Return the batch of the first request, in their order, and whether a later arrival could still join it."""
    head = live[0]
    if head.group is None:
        return [head], False
    batch, rows, longest, tokens = [head], head.rows, head.length, head.rows * head.length
    others = [request for request in live[1:] if request.group == head.group]
    for request in sorted(others, key=lambda other: abs(other.length - head.length)):
        padded = (rows + request.rows) * max(longest, request.length)
        real = tokens + request.rows * request.length
        if rows + request.rows > limits.max_rows or padded > limits.max_padded_tokens or padded > real * (1 + limits.max_padding):
            continue
        batch.append(request)
        rows, longest, tokens = rows + request.rows, max(longest, request.length), real
    chosen = {request.id for request in batch}
    can_grow = rows < limits.max_rows and (rows + 1) * longest <= limits.max_padded_tokens
    return [request for request in live if request.id in chosen], can_grow
