"""Who may call what, and how much of it: keys and quotas, for every protocol and port."""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections.abc import Sequence

from llmos.runtime.server.core.errors import HttpError
from llmos.runtime.server.core.http import RequestInfo
from llmos.runtime.server.core.quotas import RateLimiter
from llmos.runtime.server.core.settings import ServerSettings


class Guard:
    """The keys and quotas of a server."""

    def __init__(self, settings: ServerSettings) -> None:
        quotas = {_digest(key.encode()).hex(): quota for key, quota in settings.quotas.items()}
        self._weights = {who: quota.weight for who, quota in quotas.items()}
        self._limiter = RateLimiter(quotas, time.perf_counter())
        self._keys = [_digest(key.encode()) for key in settings.api_keys]
        self._admin_keys = [_digest(key.encode()) for key in settings.admin_keys] or self._keys

    def identify(self, info: RequestInfo, authorization: bytes, api_key: bytes, *, admin: bool, open_to_all: bool) -> None:
        """Set whose request it is and its weight. admin: whether it is the operator's. Raises HttpError 401."""
        keys = self._admin_keys if admin else self._keys
        info.principal = _principal(authorization, api_key, keys)
        if keys and not open_to_all and not info.principal:
            message = "a valid API key is needed: send it as 'Authorization: Bearer KEY'"
            raise HttpError(401, message, code="invalid_api_key", headers=[(b"www-authenticate", b"Bearer")])
        info.weight = self._weights.get(info.principal, 1.0)

    def needs_key(self, *, admin: bool) -> bool:
        """Return whether there are keys."""
        return bool(self._admin_keys if admin else self._keys)

    def count(self, info: RequestInfo) -> None:
        """Count a call of a model. Raises HttpError 429 if the key has used up its quota."""
        wait_s = self._limiter.admit(info.principal, time.perf_counter())
        if wait_s:
            message = f"this key has used up its requests or tokens of a minute: try again in {wait_s:.3g} s"
            raise HttpError(429, message, code="rate_limit_exceeded", headers=[(b"retry-after", str(math.ceil(wait_s)).encode())])

    def charge(self, info: RequestInfo) -> None:
        """Count the tokens of a request that has ended."""
        self._limiter.charge(info.principal, info.num_tokens)


def _principal(authorization: bytes, api_key: bytes, keys: Sequence[bytes]) -> str:
    """Return the digest of a request's key, "" if it has no valid one. Compares with every key in constant time."""
    scheme, _, bearer = authorization.partition(b" ")
    given = _digest(bearer.strip() if scheme.lower() == b"bearer" else api_key)
    return given.hex() if sum(hmac.compare_digest(given, key) for key in keys) else ""


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
