"""The outermost middleware: request id, API key check, and one access log line."""

from __future__ import annotations

import json
import logging
import os
import re
import time

from llmos.runtime.server.core.errors import HttpError, as_http_error, error_reply
from llmos.runtime.server.core.http import FIRST_BYTE_S, INFO, App, Message, Receive, RequestInfo, Scope, Send, route_path
from llmos.runtime.server.core.state import ServerState

ACCESS_LOG = "llmos.access"
OPEN_PATHS = frozenset({"/", "/v2/health/live", "/v2/health/ready"})  # the page says nothing of the server
ADMIN_PATHS = "/v2/repository/"  # as the paths begin that are the operator's on any port
_MAX_PATH_CHARS = 1024  # in a line of the log
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class Gateway:
    """ASGI middleware around all routes. admin: whether all of them are the operator's."""

    def __init__(self, app: App, state: ServerState, *, admin: bool = False) -> None:
        self._app = app
        self._admin = admin
        self._state = state
        self._log = logging.getLogger(ACCESS_LOG) if state.settings.access_log else None
        self._errors = logging.getLogger("llmos.server")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        scope = {**scope, "root_path": self._state.settings.root_path}
        method = scope["method"]
        if method == "HEAD":  # as GET; uvicorn, which keeps the method, sends no body
            scope["method"] = "GET"
        path = route_path(scope)
        info = scope[INFO] = RequestInfo(request_id(headers.get(b"x-request-id", b"")), scope.get(FIRST_BYTE_S) or time.perf_counter())

        telemetry = self._state.telemetry if method == "POST" else None
        if telemetry is not None:
            info.phases = []

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                info.status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", info.request_id.encode())]
            await send(message)

        self._state.num_active += 1
        try:
            try:
                if self._state.health is not None and path not in OPEN_PATHS and not self._admin and scope.get("client"):
                    self._state.health.check(scope["client"][0])
                self._admit(method, path, headers, info)
            except HttpError as refused:
                await error_reply(refused, path).send(send_with_id)
            else:
                await self._app(scope, receive, send_with_id)
        except Exception as error:
            self._errors.exception("request %s failed", info.request_id)
            if not info.status:
                await error_reply(as_http_error(error), path).send(send_with_id)
        finally:
            self._state.num_active -= 1
            info.release()
            self._state.held_bytes -= info.held_bytes
            self._state.answer_bytes -= info.answer_bytes
            self._state.guard.charge(info)
            self._state.metrics.count_http(_route(scope), info.status or 499)
            client = scope.get("client")
            if self._state.health is not None:
                self._state.health.observe(info, info.status or 499, client[0] if client and not self._admin else None)
            if telemetry is not None:
                parent, state = (headers.get(name, b"").decode("latin-1") for name in (b"traceparent", b"tracestate"))
                telemetry.record(info, f"{method} {_route(scope)}", info.status or 499, parent, state)
            if self._log is not None:
                self._log.info(access_line(info, method, scope["path"], client[0] if client else None, info.status))

    def _admit(self, method: str, path: str, headers: dict[bytes, bytes], info: RequestInfo) -> None:
        """Find out who asks. Raises HttpError 401, 403 or 429."""
        guard = self._state.guard
        admin = self._admin or path.startswith(ADMIN_PATHS)
        if admin and b"origin" in headers and not guard.needs_key(admin=True):
            # Any page that a browser on the operator's machine shows could send it.
            raise HttpError(403, "the admin API takes no requests from web pages", code="forbidden")
        authorization, api_key = headers.get(b"authorization", b""), headers.get(b"x-api-key", b"")
        guard.identify(info, authorization, api_key, admin=admin, open_to_all=path in OPEN_PATHS)
        if method == "POST":
            guard.count(info)


def request_id(given: bytes) -> str:
    """Return the client's id of a request if it can stand in a log, else a fresh one."""
    return given.decode() if _REQUEST_ID.fullmatch(given) else os.urandom(16).hex()


def _route(scope: Scope) -> str:
    """Return the path of the route that a request took, with its parameters unfilled."""
    return getattr(scope.get("route") or scope.get("endpoint"), "path", "other")


def access_line(info: RequestInfo, method: str, path: str, client: str | None, status: int | str) -> str:
    """Return a request's line of the access log."""
    fields = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "request_id": info.request_id,
        "client": client,
        "method": method,
        "path": path[:_MAX_PATH_CHARS],
        "status": status,
        "duration_ms": round((time.perf_counter() - info.start_s) * 1e3, 3),
        "model": info.model,
        "num_items": info.num_items,
    }
    return json.dumps({key: value for key, value in fields.items() if value is not None}, separators=(",", ":"))
