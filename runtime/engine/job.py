"""One client's request inside the engine."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

from llmos.runtime.engine.model import Array
from llmos.runtime.engine.policy import Pending

Outputs = list[Array]


@dataclass(eq=False)
class Job:
    """A request of one or more items that are scheduled one by one and answered together.

    future: gives the outputs of each item, in order; made by the engine, which alone completes it.
    pending_items, started_s and reason are the engine's, under its lock: items without a result, the time the first item began to
    run, and how the job ended (None while it has not).
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
        """Wait for the outputs of each item. Raises what the request ended with, or TimeoutError."""
        return self.future.result(timeout_s)


@dataclass(eq=False)
class Item:
    """A schedulable part of a job: the arrays of one call, and how the policy sees it."""

    job: Job
    index: int
    arrays: list[Array]
    pending: Pending
