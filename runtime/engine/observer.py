"""Callbacks of the engine for metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class BatchReport:
    """One finished call. padded_tokens: rows times the longest length."""

    num_requests: int
    rows: int
    padded_tokens: int
    run_s: float


@dataclass(frozen=True)
class RequestReport:
    """One ended request. reason: stop (it has its result), abort (canceled), timeout or error. queue_s: None if it never ran."""

    reason: str
    e2e_s: float
    queue_s: float | None


class Observer(Protocol):
    """Called from the engine's threads; must be quick and must not raise."""

    def on_batch(self, report: BatchReport) -> None: ...
    def on_request(self, report: RequestReport) -> None: ...


class NullObserver:
    """An observer that does nothing."""

    def on_batch(self, report: BatchReport) -> None: ...

    def on_request(self, report: RequestReport) -> None: ...
