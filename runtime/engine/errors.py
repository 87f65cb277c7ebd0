"""Ways a queued request can end without a result."""

from __future__ import annotations

from llmos.runtime.errors import LlmosError


class QueueFullError(LlmosError):
    """The bounded queue has no room: try again after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineError(LlmosError):
    """The request's deadline passed before its result was there."""


class CancelledError(LlmosError):
    """The request was cancelled by its caller."""


class ClosedError(LlmosError):
    """The engine is draining or closed and takes no new requests."""


class IntegrityError(LlmosError):
    """The engine's own accounts don't add up: an error of the engine, not of its user."""
