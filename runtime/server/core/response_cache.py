"""Answers that are the same for the same request, kept for a while: in this process, in a Redis, or both."""

from __future__ import annotations

import hashlib
import os
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import NamedTuple

import orjson

from llmos.runtime.server.core.http import Reply
from llmos.runtime.server.core.metrics import GenerationMetrics, Metrics, ModelMetrics
from llmos.runtime.server.core.redis_store import MAX_VALUE_BYTES, RedisStore
from llmos.runtime.server.core.settings import ServerSettings

_ENTRY_BYTES = 512  # of an entry beside its answer
_LARGEST_SHARE = 8  # a larger answer than this part of the cache is not kept
_NONCE_BYTES = 12


class CacheKey(NamedTuple):
    """Of all that an answer depends on. name: the answer is found by. secret: it is encrypted with where others could read it.

    Neither tells anything of the request or of the other.
    """

    name: bytes
    secret: bytes

    @classmethod
    def of(cls, *parts: str | bytes) -> CacheKey:
        """Return the key of a request."""
        digest = hashlib.sha512()
        for part in parts:
            data = part.encode() if isinstance(part, str) else part
            digest.update(len(data).to_bytes(8, "big"))
            digest.update(data)
        whole = digest.digest()
        return cls(whole[:32], whole[32:])


@dataclass
class LocalStore:
    """The latest used answers, up to `max_bytes`, each for `ttl_s` seconds. Times are seconds on the caller's clock."""

    max_bytes: int
    ttl_s: float
    num_bytes: int = 0
    _entries: OrderedDict[bytes, tuple[Reply, int, float]] = field(default_factory=OrderedDict)

    def get(self, name: bytes, now_s: float) -> Reply | None:
        """Return the answer of a name, None if there is none that is young enough."""
        found = self._entries.get(name)
        if found is None:
            return None
        reply, num_bytes, end_s = found
        if now_s >= end_s:
            del self._entries[name]
            self.num_bytes -= num_bytes
            return None
        self._entries.move_to_end(name)
        return reply

    def put(self, name: bytes, reply: Reply, now_s: float) -> None:
        """Keep an answer; those not used for longest make room."""
        num_bytes = _ENTRY_BYTES + reply.num_bytes
        if num_bytes * _LARGEST_SHARE > self.max_bytes:
            return
        before = self._entries.pop(name, None)
        self.num_bytes += num_bytes - (before[1] if before else 0)
        self._entries[name] = (reply, num_bytes, now_s + self.ttl_s)
        while self.num_bytes > self.max_bytes:
            _, (_, dropped, _) = self._entries.popitem(last=False)
            self.num_bytes -= dropped


class ResponseCache:
    """The answers of a server.

    A key holds the principal: what one has asked for neither answers another nor shows in the time of an answer. Raises UserError for a
    URL of a Redis that can't be used.
    """

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        self._local = LocalStore(settings.response_cache_bytes, settings.response_cache_ttl_s)
        self._shared: RedisStore | None = None
        if settings.response_cache_url:
            count = metrics.response_cache_failures.inc
            url, wait_s = settings.response_cache_url, settings.response_cache_wait_s
            self._shared = RedisStore(url, settings.response_cache_ttl_s, count, wait_s)
        self._version = version("llmos")

    @property
    def is_on(self) -> bool:
        """Whether any answers are kept."""
        return bool(self._local.max_bytes) or self._shared is not None

    @property
    def max_answer_bytes(self) -> int:
        """Return the size of the largest answer that is kept."""
        return max(self._local.max_bytes // _LARGEST_SHARE, MAX_VALUE_BYTES if self._shared is not None else 0)

    def key(self, principal: str, identity: str, *parts: str | bytes) -> CacheKey | None:
        """Return the key of a request; None if nothing is kept. identity: of the model."""
        return CacheKey.of(self._version, principal, identity, *parts) if self.is_on else None

    async def get(self, key: CacheKey | None, metrics: ModelMetrics | GenerationMetrics) -> Reply | None:
        """Return the answer to the same request, None if there is none that is young enough. Takes 5 ms at most, and never fails."""
        if key is None:
            return None
        metrics.response_cache_queries.inc()
        reply = self._local.get(key.name, time.monotonic())
        if reply is None and self._shared is not None:
            reply = opened(key, await self._shared.get(key.name))
        if reply is not None:
            metrics.response_cache_hits.inc()
        return reply

    def put(self, key: CacheKey | None, reply: Reply) -> None:
        """Keep an answer; waits for nothing."""
        if key is None:
            return
        self._local.put(key.name, reply, time.monotonic())
        if self._shared is not None and reply.num_bytes + _ENTRY_BYTES <= MAX_VALUE_BYTES:
            self._shared.put(key.name, sealed(key, reply))

    def close(self) -> None:
        """Forget what is on its way."""
        if self._shared is not None:
            self._shared.close()


def sealed(key: CacheKey, reply: Reply) -> bytes:
    """Return an answer as it lies in a Redis: encrypted and authenticated, for its key alone."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in reply.headers]
    head = orjson.dumps([reply.content_type.decode("latin-1"), headers])
    nonce = os.urandom(_NONCE_BYTES)
    content = b"".join([len(head).to_bytes(4, "big"), head, reply.body, *reply.more])
    return nonce + AESGCM(key.secret).encrypt(nonce, content, key.name)


def opened(key: CacheKey, value: bytes | None) -> Reply | None:
    """Return the answer in a value; None for what `sealed` didn't make for this key."""
    if value is None:
        return None
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        content = AESGCM(key.secret).decrypt(value[:_NONCE_BYTES], value[_NONCE_BYTES:], key.name)
    except (InvalidTag, ValueError):
        return None
    size = int.from_bytes(content[:4], "big")
    content_type, headers = orjson.loads(content[4 : 4 + size])
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    return Reply(200, content[4 + size :], content_type.encode("latin-1"), raw)
