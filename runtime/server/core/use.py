"""How many requests have a model in their hands."""

from __future__ import annotations

import asyncio
import time


class Use:
    """Counts the requests that use one version of a model, which is released when the last of them has ended. On one event loop.

    last_s: when one of them last began, on time.monotonic.
    """

    def __init__(self) -> None:
        self.count = 0
        self.last_s = time.monotonic()
        self._ended: asyncio.Event | None = None

    def begin(self) -> None:
        """Count a request."""
        self.count += 1
        self.last_s = time.monotonic()

    def end(self) -> None:
        """Count a request no more."""
        self.count -= 1
        if not self.count and self._ended is not None:
            self._ended.set()

    async def until_unused(self) -> None:
        """Wait until no request uses it; nobody may begin to from now on."""
        self._ended = asyncio.Event()
        if self.count:
            await self._ended.wait()
