"""One client's request inside the engine."""

from __future__ import annotations

import math
from collections.abc import Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field

from llmos.runtime.engine.model import Array

Outputs = list[Array]


@dataclass(frozen=True)
class QueuedRequest:
    """The policy's view of a queued request.

    length: size of the padded dimension, 1 without padding. group: only requests of equal groups may share a batch; a request of group
    None runs alone. Times are seconds on the caller's clock.
    """

    id: int
    rows: int
    length: int
    group: Hashable
    arrival_s: float
    deadline_s: float = math.inf


@dataclass(eq=False)
class Request:
    """One client's call: one or more items, scheduled separately and answered together.

    future: resolves to the outputs of each item, in order; only the engine completes it.
    pending_items, started_s and reason belong to the engine, under its lock: items without a result, the start time of the first item,
    and how the request ended (None while it is active).
    """

    num_items: int
    arrival_s: float
    deadline_s: float
    future: Future[list[Outputs]] = field(default_factory=Future)
    results: list[Outputs | None] = field(default_factory=list)
    pending_items: int = 0
    started_s: float | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        self.results = [None] * self.num_items
        self.pending_items = self.num_items

    def result(self, timeout_s: float | None = None) -> list[Outputs]:
        """Wait for the outputs of each item. Raises the error that ended the request, or TimeoutError."""
        return self.future.result(timeout_s)


@dataclass(eq=False)
class RequestItem:
    """A schedulable part of a request: the arrays of one call, and the policy's view of it."""

    request: Request
    index: int
    arrays: list[Array]
    queued: QueuedRequest
