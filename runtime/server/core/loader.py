"""Making versions of models from their files, one at a time, beside the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from llmos.runtime.errors import LlmosError, UserError
from llmos.runtime.server.core.language import AnyModel
from llmos.runtime.server.core.repository import ArtifactFile
from llmos.runtime.server.core.served import Builder, Served, ServedLanguageModel

_LOG = logging.getLogger("llmos.server")

LoadModel = Callable[[Path, str], AnyModel]
Loaded = tuple[Served, ArtifactFile | None]  # a model that was made in memory has no file
Versions = Mapping[int, Loaded]


class Loader:
    """Loads and warms up versions, and ends those that never served."""

    def __init__(self, builder: Builder, load_model: LoadModel) -> None:
        self._builder = builder
        self._load_model = load_model
        self._thread = ThreadPoolExecutor(1, "llmos-load")  # one at a time, which bounds the memory that loading takes

    async def load(self, name: str, wanted: Mapping[int, ArtifactFile], have: Versions, *, again: bool) -> dict[int, Loaded]:
        """See `made`."""
        work = partial(self.made, name, wanted, have, again=again)
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def discard(self, versions: Sequence[Served]) -> None:
        """End versions that never served, which waits for their threads and processes."""
        await asyncio.get_running_loop().run_in_executor(None, _discard, versions)

    def made(self, name: str, wanted: Mapping[int, ArtifactFile], have: Versions, *, again: bool) -> dict[int, Loaded]:
        """Return the versions to serve; in any thread. have: those that serve now, which stay if their file is the same, unless `again`.

        Raises UserError that names the model, and leaves nothing behind.
        """
        made: dict[int, Loaded] = {}
        try:
            for version, file in wanted.items():
                kept = have.get(version)
                made[version] = kept if kept is not None and kept[1] == file and not again else (self._make(name, version, file), file)
        except Exception as error:
            _discard([served for version, (served, _) in made.items() if made[version] != have.get(version)])
            if not isinstance(error, LlmosError):
                _LOG.exception("loading %s failed", name)
            stays = f"; version {', '.join(map(str, sorted(have)))} serves on" if have else ""
            raise UserError(f"model '{name}' can't be loaded: {error}{stays}") from error
        return made

    def _make(self, name: str, version: int, file: ArtifactFile) -> Served:
        model = self._load_model(file.path, name)
        try:
            return self._builder.build(model, version, warm=True)
        except BaseException:
            _close(model)
            raise

    def close(self) -> None:
        """Begin no more loads."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def num_bytes(loaded: Loaded) -> int:
    """Return the bytes of a version's file and caches, which are nearly all that it takes."""
    served, file = loaded
    caches = served.engine.num_blocks * served.text.spec.block_bytes if isinstance(served, ServedLanguageModel) else 0
    return caches + (file.num_bytes if file is not None else 0)


def _discard(versions: Sequence[Served]) -> None:
    """See Loader.discard."""
    for served in versions:
        for engine in served.engines:
            engine.close()
        _close(served.model)


def _close(model: AnyModel) -> None:
    """End a model that never served; one that runs in a process of its own ends it here."""
    with contextlib.suppress(LlmosError):
        model.close()
