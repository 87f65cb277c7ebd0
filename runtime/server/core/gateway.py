"""The outermost middleware: request id, API key check, and one access log line."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import math
import os
import re
import time
from collections.abc import Sequence

from llmos.runtime.server.core.errors import HttpError, as_http_error, error_reply
from llmos.runtime.server.core.http import FIRST_BYTE_S, INFO, App, Message, Receive, Reply, RequestInfo, Scope, Send, route_path
from llmos.runtime.server.core.quotas import RateLimiter
from llmos.runtime.server.core.state import ServerState

ACCESS_LOG = "llmos.access"
OPEN_PATHS = frozenset({"/v2/health/live", "/v2/health/ready"})
ADMIN_PATHS = "/v2/repository/"  # as the paths begin that are the operator's on any port
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class Gateway:
    """ASGI middleware around all routes. admin: whether all of them are the operator's."""

    def __init__(self, app: App, state: ServerState, *, admin: bool = False) -> None:
        self._app = app
        self._admin = admin
        self._state = state
        self._log = logging.getLogger(ACCESS_LOG) if state.settings.access_log else None
        self._errors = logging.getLogger("llmos.server")
        quotas = {_digest(key.encode()).hex(): quota for key, quota in state.settings.quotas.items()}
        self._weights = {who: quota.weight for who, quota in quotas.items()}
        self._limiter = RateLimiter(quotas, time.perf_counter())
        self._keys = [_digest(key.encode()) for key in state.settings.api_keys]
        self._admin_keys = [_digest(key.encode()) for key in state.settings.admin_keys] or self._keys

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
        info = scope[INFO] = RequestInfo(_request_id(headers), scope.get(FIRST_BYTE_S) or time.perf_counter())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                info.status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", info.request_id.encode())]
            await send(message)

        self._state.num_active += 1
        try:
            admin = self._admin or path.startswith(ADMIN_PATHS)
            keys = self._admin_keys if admin else self._keys
            info.principal = self._principal(headers, keys)
            if admin and not keys and b"origin" in headers:
                await _from_a_page(path).send(send_with_id)
            elif keys and path not in OPEN_PATHS and not info.principal:
                await _unauthorized(path).send(send_with_id)
            elif method == "POST" and (wait_s := self._limiter.admit(info.principal, time.perf_counter())):
                await _limited(path, wait_s).send(send_with_id)
            else:
                info.weight = self._weights.get(info.principal, 1.0)
                await self._app(scope, receive, send_with_id)
        except Exception as error:
            self._errors.exception("request %s failed", info.request_id)
            if not info.status:
                await error_reply(as_http_error(error), path).send(send_with_id)
        finally:
            self._state.num_active -= 1
            info.release()
            self._state.held_bytes -= info.held_bytes
            self._limiter.charge(info.principal, info.num_tokens)
            self._state.metrics.count_http(_route(scope), info.status or 499)
            if self._log is not None:
                self._log.info(_line(method, scope, info))

    def _principal(self, headers: dict[bytes, bytes], keys: Sequence[bytes]) -> str:
        """Return the digest of the request's key, "" if it has no valid one. Compares with every key in constant time."""
        scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        given = _digest(bearer.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b""))
        return given.hex() if sum(hmac.compare_digest(given, key) for key in keys) else ""


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _unauthorized(path: str) -> Reply:
    message = "a valid API key is needed: send it as 'Authorization: Bearer KEY'"
    return error_reply(HttpError(401, message, code="invalid_api_key", headers=[(b"www-authenticate", b"Bearer")]), path)


def _from_a_page(path: str) -> Reply:
    """Refuse what a web page sends: any page that a browser on the operator's machine shows could, without a key."""
    return error_reply(HttpError(403, "the admin API takes no requests from web pages", code="forbidden"), path)


def _limited(path: str, wait_s: float) -> Reply:
    message = f"this key has used up its requests or tokens of a minute: try again in {wait_s:.3g} s"
    retry = str(math.ceil(wait_s)).encode()
    return error_reply(HttpError(429, message, code="rate_limit_exceeded", headers=[(b"retry-after", retry)]), path)


def _request_id(headers: dict[bytes, bytes]) -> str:
    given = headers.get(b"x-request-id", b"")
    return given.decode() if _REQUEST_ID.fullmatch(given) else os.urandom(16).hex()


def _route(scope: Scope) -> str:
    """Return the path of the route that a request took, with its parameters unfilled."""
    return getattr(scope.get("route") or scope.get("endpoint"), "path", "other")


def _line(method: str, scope: Scope, info: RequestInfo) -> str:
    client = scope.get("client")
    fields = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "request_id": info.request_id,
        "client": client[0] if client else None,
        "method": method,
        "path": scope["path"],
        "status": info.status,
        "duration_ms": round((time.perf_counter() - info.start_s) * 1e3, 3),
        "model": info.model,
        "num_items": info.num_items,
    }
    return json.dumps({key: value for key, value in fields.items() if value is not None}, separators=(",", ":"))
