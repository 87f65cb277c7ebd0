"""One client's request inside the engine."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from llmos.runtime.engine.model import Array

Outputs = list[Array]


def join_outputs(parts: Sequence[Outputs]) -> Outputs:
    """Return the outputs of all rows. parts: the outputs of some rows each, [rows, ...]."""
    return parts[0] if len(parts) == 1 else [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


@dataclass(frozen=True)
class QueuedRequest:
    """The policy's view of a queued request.

    length: size of the padded dimension, 1 without padding. group: only requests of equal groups may share a batch; a request of group
    None runs alone. Times are seconds on the caller's clock. work_ahead: work (rows times length) of the same client's request that
    stands before this one, which puts it later. principal: whose it is.
    """

    id: int
    rows: int
    length: int
    group: Hashable
    arrival_s: float
    deadline_s: float = math.inf
    work_ahead: int = 0
    principal: str = ""

    @property
    def work(self) -> int:
        return self.rows * self.length


@dataclass(eq=False)
class Request:
    """One client's call: one or more inputs, each of one or more items, which are scheduled separately and answered together.

    num_items: of each input, whose rows are split among them. future: resolves to the outputs of each input, in order; only the engine
    completes it. results: of each item. pending_items, started_s and reason belong to the engine, under its lock: items without a result,
    the start time of the first item, and how the request ended (None while it is active). work: of all items. weight: of the share of its
    principal.
    """

    num_items: Sequence[int]
    arrival_s: float
    deadline_s: float
    future: Future[list[Outputs]] = field(default_factory=Future)
    results: list[Outputs | None] = field(default_factory=list)
    pending_items: int = 0
    started_s: float | None = None
    reason: str | None = None
    work: int = 0
    weight: float = 1.0

    def __post_init__(self) -> None:
        self.pending_items = sum(self.num_items)
        self.results = [None] * self.pending_items

    def joined(self) -> list[Outputs]:
        """Return the outputs of each input."""
        found = [outputs for outputs in self.results if outputs is not None]
        starts = itertools.accumulate(self.num_items, initial=0)
        return [join_outputs(found[start : start + num]) for start, num in zip(starts, self.num_items, strict=False)]

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
