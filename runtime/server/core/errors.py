"""Conversion of exceptions to HTTP replies, in the format of the path's protocol."""

from __future__ import annotations

import math
from typing import Any

from llmos.runtime.engine import CancelledError, ClosedError, DeadlineError, QueueFullError
from llmos.runtime.errors import LlmosError, UserError
from llmos.runtime.server.core.http import RawHeaders, Reply

_MAX_CHARS = 500  # of a message, which may quote what a client sent; gRPC's clients take no more than 8 KiB of it, percent-encoded
CLOSE: RawHeaders = [(b"connection", b"close")]
RETRY_SOON: RawHeaders = [(b"retry-after", b"1")]

_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class HttpError(LlmosError):
    """An error with an HTTP status. A long message is cut. param, code: as in OpenAI's error objects."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, headers: RawHeaders | None = None
    ) -> None:
        super().__init__(message if len(message) <= _MAX_CHARS else f"{message[: _MAX_CHARS - 3]}...")
        self.status = status
        self.param = param
        self.code = code
        self.headers = headers or []


def as_http_error(error: Exception) -> HttpError:
    """Convert an exception to an HttpError. An unexpected one becomes a 500 without internal details."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, QueueFullError):
        retry = str(math.ceil(error.retry_after_s)).encode()
        return HttpError(429, str(error), code="queue_full", headers=[(b"retry-after", retry)])
    if isinstance(error, DeadlineError):
        return HttpError(504, str(error), code="timeout")
    if isinstance(error, ClosedError):
        return HttpError(503, str(error), code="shutting_down", headers=[(b"retry-after", b"1"), *CLOSE])
    if isinstance(error, CancelledError):
        return HttpError(499, str(error), code="canceled")
    if isinstance(error, UserError):
        return HttpError(400, str(error))
    if isinstance(error, LlmosError):
        return HttpError(500, str(error), code="model_error")
    return HttpError(500, "internal error: the server's log has the details under this request's id", code="internal_error")


def error_reply(error: HttpError, path: str) -> Reply:
    """Write OpenAI's error object under /v1, and {"error": "..."} elsewhere."""
    if not path.startswith("/v1/"):
        return Reply.json({"error": str(error)}, error.status, error.headers)
    return Reply.json(error_object(error), error.status, error.headers)


def error_object(error: HttpError) -> dict[str, Any]:
    """Return OpenAI's error object."""
    kind = _OPENAI_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}}
