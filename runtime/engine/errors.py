"""Ways a queued request can end without a result."""

from __future__ import annotations

from llmos.runtime.errors import LlmosError


class QueueFullError(LlmosError):
    """The bounded queue has no room: try again after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineError(LlmosError):
    """The request's deadline passed before it had a result."""


class CancelledError(LlmosError):
    """The request was canceled by its caller."""


class ClosedError(LlmosError):
    """The engine is draining or closed and takes no new requests."""


class IntegrityError(LlmosError):
    """The engine's internal bookkeeping is inconsistent: a bug of the engine."""


class StateLostError(LlmosError):
    """The process of a model has ended, and with it all that it had computed: what runs must begin again."""
