"""Errors of FastAPI's routes in the protocol's own form."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from llmos.runtime.errors import LlmosError
from llmos.runtime.server.core.errors import HttpError, as_http_error, error_reply
from llmos.runtime.server.core.http import Reply, route_path


def add_error_handlers(app: FastAPI) -> None:
    """Answer LlmosErrors, and the errors of the framework itself."""

    def known(request: Request, error: Exception) -> Response:
        return as_response(error_reply(as_http_error(error), route_path(request.scope)))

    def from_framework(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = [(name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()]
        path = route_path(request.scope)
        message = f"there is no {request.method} {path}" if error.status_code in (404, 405) else error.detail
        return as_response(error_reply(HttpError(error.status_code, message, headers=headers), path))

    app.add_exception_handler(LlmosError, known)
    app.add_exception_handler(HTTPException, from_framework)


def as_response(reply: Reply) -> Response:
    """Return a whole reply as the framework sends it."""
    headers = {name.decode(): value.decode() for name, value in (*reply.headers, (b"content-type", reply.content_type))}
    return Response(reply.body, reply.status, headers)
