"""Models as the folder of a repository has them: looked at again and again, and what has changed is loaded or unloaded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

from llmos.runtime.errors import LlmosError
from llmos.runtime.server.core.registry import Registry
from llmos.runtime.server.core.repository import ArtifactFile

_LOG = logging.getLogger("llmos.server")


class Follower:
    """Belongs on the event loop."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._seen: dict[str, dict[int, ArtifactFile]] = {}  # what was last loaded, or failed to load
        self._unread = ""  # why the folder could not be read

    async def run(self) -> None:
        """Follow the folder until canceled, or until models change no more; does nothing where the repository's control is another."""
        poll_s = self._registry.repository.control.poll_s
        while poll_s is not None and not self._registry.is_closed:
            await asyncio.sleep(poll_s)
            wanted = await self._read()
            if wanted is not None:
                await self._follow(wanted)

    async def _read(self) -> dict[str, dict[int, ArtifactFile]] | None:
        """Return the files of each model to serve; None where the folder can't be read, which is said once."""
        try:
            wanted = await asyncio.to_thread(self._registry.wanted_of_folder)
        except LlmosError as error:
            if str(error) != self._unread:
                _LOG.error("%s: the models stay as they are", error)
            self._unread = str(error)
            return None
        self._unread = ""
        return wanted

    async def _follow(self, wanted: dict[str, dict[int, ArtifactFile]]) -> None:
        registry = self._registry
        for name in [name for name, files in registry.files_of_folder().items() if files and not wanted.get(name)]:
            self._seen.pop(name, None)  # the same file may come back
            await _try(registry.unload(name))
        for name, files in wanted.items():
            served = registry.files_of_folder().get(name)
            if served is None and registry.repository.is_dynamic(name):
                continue
            if files and files not in (served, self._seen.get(name)):  # what has failed is not tried again before it changes
                self._seen[name] = files
                await _try(registry.load(name))


async def _try(change: Awaitable[None]) -> None:
    try:
        await change
    except LlmosError as error:
        _LOG.error("%s", error)
    except Exception:
        _LOG.exception("a change of the models failed")
