"""A content-addressed cache of compiled code: a key says all that went into an entry, so entries never go stale."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_DIGEST_BYTES = 32
_MAX_BYTES = 1 << 30


def cache_key(parts: Iterable[str | bytes]) -> str:
    """Hash of `parts`, in which ("ab", "c") differs from ("a", "bc")."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Cache:
    """Files `<folder>/<2 digits>/<key>`: the SHA-256 of the data, then the data, so that a damaged file is a miss.

    Any number of processes may share a folder. An entry that can't be written (a full disk, a read-only folder) is left out. Above
    `max_bytes` the entries that were not used for longest go.
    """

    folder: Path
    max_bytes: int = _MAX_BYTES

    def get(self, key: str) -> bytes | None:
        """The data stored under `key`, or None."""
        path = self._path(key)
        try:
            stored = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        data = stored[_DIGEST_BYTES:]
        return data if hashlib.sha256(data).digest() == stored[:_DIGEST_BYTES] else None

    def put(self, key: str, data: bytes) -> None:
        """Stores `data`; the entry appears whole or not at all."""
        path = self._path(key)
        temporary = path.with_name(f".{key}.{secrets.token_hex(4)}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(hashlib.sha256(data).digest() + data)
            temporary.replace(path)
            self._prune()
        except OSError:
            _remove(temporary)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def _prune(self) -> None:
        entries = [(path, path.stat()) for path in self.folder.glob("??/*") if path.is_file()]
        excess = sum(info.st_size for _, info in entries) - self.max_bytes
        for path, info in sorted(entries, key=lambda entry: entry[1].st_mtime):
            if excess <= 0:
                return
            _remove(path)
            excess -= info.st_size


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return
