"""Answers of models of tensors, which give the same for the same request, kept for a while."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field

from llmos.runtime.server.core.http import Reply

_ENTRY_BYTES = 512  # of an entry beside its answer
_LARGEST_SHARE = 8  # a larger answer than this part of the cache is not kept


@dataclass
class ResponseCache:
    """The latest used answers, up to `max_bytes`, each for `ttl_s` seconds. Times are seconds on the caller's clock.

    A key holds the principal: what one has asked for neither answers another nor shows in the time of an answer.
    """

    max_bytes: int
    ttl_s: float
    num_bytes: int = 0
    _entries: OrderedDict[bytes, tuple[Reply, int, float]] = field(default_factory=OrderedDict)

    @staticmethod
    def key(*parts: str | bytes) -> bytes:
        """Return the key of a request, of all that its answer depends on."""
        digest = hashlib.sha256()
        for part in parts:
            data = part.encode() if isinstance(part, str) else part
            digest.update(len(data).to_bytes(8, "big"))
            digest.update(data)
        return digest.digest()

    def get(self, key: bytes, now_s: float) -> Reply | None:
        """Return the answer to the same request, None if there is none that is young enough."""
        found = self._entries.get(key)
        if found is None:
            return None
        reply, num_bytes, end_s = found
        if now_s >= end_s:
            del self._entries[key]
            self.num_bytes -= num_bytes
            return None
        self._entries.move_to_end(key)
        return reply

    def put(self, key: bytes, reply: Reply, now_s: float) -> None:
        """Keep an answer; those not used for longest make room."""
        num_bytes = _ENTRY_BYTES + len(reply.body) + sum(map(len, reply.more))
        if num_bytes * _LARGEST_SHARE > self.max_bytes:
            return
        before = self._entries.pop(key, None)
        self.num_bytes += num_bytes - (before[1] if before else 0)
        self._entries[key] = (reply, num_bytes, now_s + self.ttl_s)
        while self.num_bytes > self.max_bytes:
            _, (_, dropped, _) = self._entries.popitem(last=False)
            self.num_bytes -= dropped
