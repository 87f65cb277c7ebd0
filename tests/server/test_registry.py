"""How versions change while others change them too, and while the server ends; the event loop goes on meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from llmos.runtime.engine import ClosedError
from llmos.runtime.errors import ArtifactError, LlmosError
from llmos.runtime.server.core.metrics import Metrics
from llmos.runtime.server.core.registry import Registry
from llmos.runtime.server.core.repository import Repository
from llmos.runtime.server.core.served import Builder
from llmos.runtime.server.core.settings import ServerSettings

from ..engine.numpy_models import Affine  # noqa: TID252


class SlowToClose(Affine):
    """Its close waits until the event loop has gone on."""

    went_on = threading.Event()
    num_closed = 0

    def close(self) -> None:
        type(self).num_closed += 1
        assert self.went_on.wait(60)


def load(path: Path, name: str) -> Affine:
    """A model of a file, which says what is special about it."""
    kind = path.read_text()
    if kind == "broken":
        raise ArtifactError(f"{path}: it is no artifact")
    return (SlowToClose if kind == "slow to close" else Affine)(name=name)


def run(folder: Path, work: Callable[[Registry], Awaitable[Any]], kinds: dict[int, str], **settings: Any) -> None:
    """Do something with a registry of a model `m`, whose versions' files hold these texts."""
    for version, kind in kinds.items():
        (folder / "m" / str(version)).mkdir(parents=True)
        (folder / "m" / str(version) / "model.llmos").write_text(kind)

    async def main() -> None:
        registry = Registry([], Repository(folder=folder), Builder(ServerSettings(**settings), Metrics()), load)
        try:
            await work(registry)
        finally:
            registry.close()

    asyncio.run(main())


@pytest.mark.parametrize("times", [1, 2, 5])
def test_a_version_is_rolled_back_once_however_many_ask_for_it(tmp_path: Path, times: int) -> None:
    async def work(registry: Registry) -> None:
        await registry.load("m")
        assert await asyncio.gather(*(registry.roll_back("m") for _ in range(times))) == [2] * times
        assert registry.versions("m") == ["2"]
        assert await registry.roll_back("m") == 1, "once more, later"
        with pytest.raises(LlmosError, match="no version before 1"):
            await registry.roll_back("m")

    run(tmp_path, work, {1: "", 2: "", 3: ""})


def test_a_version_before_that_is_broken_leaves_what_serves(tmp_path: Path) -> None:
    async def work(registry: Registry) -> None:
        await registry.load("m")
        found = await asyncio.gather(*(registry.roll_back("m") for _ in range(3)), return_exceptions=True)
        assert ["can't be loaded" in str(each) for each in found] == [True] * 3
        assert registry.versions("m") == ["3"]
        await registry.load("m")
        assert registry.versions("m") == ["3"], "it was not set aside"

    run(tmp_path, work, {2: "broken", 3: ""})


def test_a_model_that_ends_without_having_served_holds_up_nobody(tmp_path: Path) -> None:
    """It doesn't fit into what is left of the budget once it is there."""
    SlowToClose.went_on.clear()
    SlowToClose.num_closed = 0

    async def work(registry: Registry) -> None:
        rooms = iter([True, False])

        async def make_room(name: str, num_bytes: int) -> None:
            if not next(rooms):
                asyncio.get_running_loop().call_later(0.05, SlowToClose.went_on.set)
                raise LlmosError("there is no memory")

        registry._make_room = make_room  # type: ignore[method-assign]
        with pytest.raises(LlmosError, match="no memory"):
            await registry.load("m")
        assert SlowToClose.num_closed == 1
        assert registry.versions("m") == []

    run(tmp_path, work, {1: "slow to close"})


def test_what_is_loaded_while_the_server_ends_is_never_served(tmp_path: Path) -> None:
    SlowToClose.went_on.set()
    SlowToClose.num_closed = 0

    async def work(registry: Registry) -> None:
        make_room, calls = registry._make_room, []

        async def closed_meanwhile(name: str, num_bytes: int) -> None:
            calls.append(name)
            await make_room(name, num_bytes)
            if len(calls) == 2:  # it is there, and what makes room for it is waited for
                registry.stop_accepting()

        registry._make_room = closed_meanwhile  # type: ignore[method-assign]
        with pytest.raises(ClosedError, match="shutting down"):
            await registry.load("m")
        assert SlowToClose.num_closed == 1
        assert registry.versions("m") == []
        with pytest.raises(ClosedError, match="shutting down"):
            await registry.load("m")

    run(tmp_path, work, {1: "slow to close"})
