"""The models that are served, and how one version takes the place of another while requests run.

A version is loaded and warmed up beside those that serve. Then the name is switched at once, on the event loop: a request has found either
the old version or the new one. Requests keep hold of the version that they found, and it is released when the last of them has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from llmos.runtime.engine import ClosedError, DeadlineError, Engine
from llmos.runtime.engine.generate import GenerationEngine
from llmos.runtime.errors import LlmosError, UserError
from llmos.runtime.server.core.errors import RETRY_SOON, HttpError
from llmos.runtime.server.core.http import left_s
from llmos.runtime.server.core.language import AnyModel
from llmos.runtime.server.core.loader import Loaded, Loader, LoadModel, Versions, num_bytes
from llmos.runtime.server.core.repository import NAME, ArtifactFile, Repository, bad_name
from llmos.runtime.server.core.residency import Resident, to_remove
from llmos.runtime.server.core.served import Builder, Served, release
from llmos.runtime.server.core.settings import MIB

_LOG = logging.getLogger("llmos.server")

READY, LOADING, UNLOADING, UNAVAILABLE = "READY", "LOADING", "UNLOADING", "UNAVAILABLE"


@dataclass(frozen=True)
class VersionState:
    """A line of the repository's index. reason: why it is not READY."""

    name: str
    version: str
    state: str
    reason: str = ""

    def to_json(self) -> dict[str, str]:
        return {"name": self.name, "version": self.version, "state": self.state, "reason": self.reason}


class Registry:
    """The served versions by name. All but the constructor and `load_at_start` belong on the event loop."""

    def __init__(self, models: Sequence[AnyModel], repository: Repository, builder: Builder, load_model: LoadModel) -> None:
        """Serve models as their version 1. Raises UserError for a name that is not valid, or that two of them have."""
        self.repository = repository
        self._builder = builder
        self._loader = Loader(builder, load_model)
        self._changing = asyncio.Lock()
        self._versions: dict[str, dict[int, Loaded]] = {}
        self._current: dict[str, Served] = {}  # the highest of each
        self._loading: dict[str, list[int]] = {}
        self._failures: dict[str, tuple[dict[int, ArtifactFile], str]] = {}  # which files failed, and why
        self._bytes: dict[Served, int] = {}
        self._demanded: dict[str, asyncio.Task[None]] = {}
        self._unloaded: set[str] = set()  # dynamic models that somebody has unloaded
        self._retiring: dict[Served, asyncio.Task[None]] = {}
        self._set_aside: dict[str, set[int]] = {}  # versions that were rolled back
        self._closed = False
        _check_names([model.name for model in models])
        for model in models:
            file = repository.versions(model.name).get(1)
            self._switch(model.name, {1: (builder.build(model, 1, warm=file is not None), file)})

    # Questions.

    def names(self) -> list[str]:
        """Return the names of the models that are loaded."""
        return list(self._versions)

    def current(self) -> Mapping[str, Served]:
        """Return the highest version of each model."""
        return self._current

    def versions(self, name: str) -> list[str]:
        """Return the loaded versions of a model, lowest first."""
        return [str(version) for version in sorted(self._versions.get(name, ()))]

    def find(self, name: str, version: str | None = None) -> Served:
        """Return a version of a model, the highest where none is named. Raises HttpError 404."""
        versions = self._versions.get(name)
        if versions is None:
            message = f"model '{name}' is not served here: there is {', '.join(self._versions) or 'none'}"
            raise HttpError(404, message, param="model", code="model_not_found")
        if not version:
            return self._current[name]
        found = next((served for number, (served, _) in versions.items() if str(number) == version), None)
        if found is None:
            raise HttpError(404, f"model '{name}' has no version '{version}', only {', '.join(map(repr, self.versions(name)))}")
        return found

    def all(self) -> Iterator[Served]:
        """Yield every version that has an engine, those that are being released included."""
        for versions in self._versions.values():
            yield from (served for served, _ in versions.values())
        yield from self._retiring

    async def index(self, *, ready_only: bool = False) -> list[VersionState]:
        """Return the state of every version that is loaded, changes, or could be loaded."""
        repository = self.repository
        names = [*repository.names(), *self._versions]
        there = await asyncio.to_thread(lambda: {name: (repository.versions(name), self._wanted(name)) for name in names})
        found = {(served.name, served.version): VersionState(served.name, str(served.version), UNLOADING) for served in self._retiring}
        for name, (available, wanted) in there.items():
            for version in {*available, *self._versions.get(name, ()), *self._loading.get(name, ())}:
                state = self._state(name, version, version in wanted)
                if state.state != UNAVAILABLE or (name, version) not in found:
                    found[name, version] = state
        return [found[key] for key in sorted(found) if not ready_only or found[key].state == READY]

    def _state(self, name: str, version: int, wanted: bool) -> VersionState:
        if version in self._versions.get(name, ()):
            return VersionState(name, str(version), READY)
        if version in self._loading.get(name, ()):
            return VersionState(name, str(version), LOADING)
        _, failure = self._failures.get(name, ({}, "loaded on request" if self._on_request(name) else "not loaded"))
        return VersionState(name, str(version), UNAVAILABLE, failure if wanted else "not in the version policy")

    @property
    def is_closed(self) -> bool:
        """Whether models change no more, as the server is shutting down."""
        return self._closed

    def files_of_folder(self) -> dict[str, dict[int, ArtifactFile]]:
        """Return the files of the models in memory that came from the repository's folder."""
        names = [name for name in self._versions if name not in self.repository.listed]
        return {name: {number: file for number, (_, file) in self._versions[name].items() if file is not None} for name in names}

    def wanted_of_folder(self) -> dict[str, dict[int, ArtifactFile]]:
        """Return the files of each model of the folder that are to be served; in any thread. Raises ExecutionError if it can't be read."""
        return {name: self._wanted(name) for name in self.repository.folder_names()}

    @property
    def num_bytes(self) -> int:
        """Return the bytes of the files and caches of all models in memory, those that are being released included."""
        return sum(self._bytes.values())

    async def is_ready(self, name: str, version: str | None = None) -> bool:
        """Return whether a request for it is served, if need be once it is loaded. Raises HttpError 404 for what is not there."""
        if name in self._versions or not self._on_request(name):
            self.find(name, version)
            return True
        wanted = await asyncio.to_thread(self._wanted, name)
        if not wanted or (version and version not in map(str, wanted)):
            raise await asyncio.to_thread(self._missing, name, {})
        return self._failures.get(name, ({}, ""))[0] != wanted

    def _on_request(self, name: str) -> bool:
        """Return whether requests load a model of this name."""
        return self.repository.is_dynamic(name) and name not in self._unloaded

    # Changes.

    def load_at_start(self) -> None:
        """Load what the repository wants at the start, before there is an event loop. Raises UserError that names the model."""
        for name in self.repository.at_start():
            if name in self._versions:  # an artifact that was named one by one
                continue
            try:
                self._switch(name, self._loader.made(name, self._wanted_of(name, {}), {}, again=False))
            except HttpError as error:
                raise UserError(str(error)) from error
        budget = self._builder.settings.memory_budget_bytes
        if budget and self.num_bytes > budget:
            raise UserError(f"the models take {_mib(self.num_bytes)}, and the memory budget is {_mib(budget)}")

    async def on_demand(self, name: object, deadline_s: float) -> None:
        """Load a dynamic model that is not in memory; does nothing for any other. deadline_s: of time.perf_counter.

        Raises DeadlineError, or HttpError 503 if it can't be loaded. No await between this and `find` may let it go again.
        """
        while isinstance(name, str) and name not in self._versions and self._on_request(name):
            wanted = await asyncio.to_thread(self._wanted, name)
            if not wanted:
                return
            failed, failure = self._failures.get(name, ({}, ""))
            if failed == wanted:  # it is not read again before it changes
                raise HttpError(503, failure, code="model_failed")
            task = self._demanded.get(name)
            if task is None:
                task = self._demanded[name] = asyncio.ensure_future(self._change(partial(self._load_demanded, name)))
                task.add_done_callback(partial(self._demand_ended, name))
            done, _ = await asyncio.wait([task], timeout=left_s(deadline_s))
            if not done:
                raise DeadlineError(f"model '{name}' was not loaded in time")
            task.result()  # it may have made room for another meanwhile

    def _demand_ended(self, name: str, task: asyncio.Task[None]) -> None:
        del self._demanded[name]
        if not task.cancelled():
            task.exception()  # nobody may have waited so long

    async def _load_demanded(self, name: str) -> None:
        if name in self._versions:
            return
        try:
            await self._load(name, again=False)
        except UserError as error:
            _LOG.error("%s", error)
            raise HttpError(503, str(error), code="model_failed") from error

    def require_control(self, name: str) -> None:
        """Raise HttpError 400 for a model that follows the repository's folder, which would undo another change."""
        if self.repository.control.poll_s is not None and name not in self.repository.listed:
            raise HttpError(400, f"model '{name}' follows the folder of the repository: change the folder")

    async def load(self, name: str, *, again: bool = False) -> None:
        """Serve the versions of a model that the repository wants now; those whose file is the same stay as they are, unless `again`.

        All new ones are loaded before any is served. Raises HttpError 404 for an unknown model, and UserError if one fails: then what is
        served stays as it was. Once it has begun it ends, also if the caller is canceled.
        """
        await asyncio.shield(asyncio.ensure_future(self._change(partial(self._load, name, again))))

    async def unload(self, name: str) -> None:
        """Serve a model no more; requests that have found it still run. Raises HttpError 404 if it is not loaded."""
        await asyncio.shield(asyncio.ensure_future(self._change(partial(self._unload, name))))

    async def roll_back(self, name: str) -> int:
        """Serve a model without its highest version from now on, also where the folder is followed; return what is then its highest.

        A version that comes later is served. Raises HttpError 404 for an unknown model, and 400 for one that has no earlier version.
        """
        worse = self.find(name).version
        await asyncio.shield(asyncio.ensure_future(self._change(partial(self._roll_back, name, worse))))
        return self.find(name).version

    async def _roll_back(self, name: str, worse: int) -> None:
        if self.find(name).version != worse:  # somebody else has rolled it back meanwhile, or loaded another one
            return
        versions = await asyncio.to_thread(self.repository.versions, name)
        aside = self._set_aside.setdefault(name, set())
        if not {number for number in versions if number < worse} - aside:
            raise HttpError(400, f"model '{name}' has no version before {worse} to go back to")
        aside.add(worse)
        try:
            await self._load(name, again=False)
        except BaseException:
            aside.discard(worse)
            raise

    def _wanted(self, name: str) -> dict[int, ArtifactFile]:
        return self.repository.wanted(name, self._set_aside.get(name, ()))

    async def _change(self, work: Callable[[], Any]) -> None:
        async with self._changing:
            self._require_open()
            await work()

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedError("the server is shutting down: its models don't change any more")

    async def _load(self, name: str, again: bool) -> None:
        have = dict(self._versions.get(name, {}))
        wanted = await asyncio.to_thread(self._wanted_of, name, have)
        new = [version for version, file in wanted.items() if again or version not in have or have[version][1] != file]
        self._loading[name] = [version for version in new if version not in have]
        try:
            await self._make_room(name, sum(wanted[version].num_bytes for version in new))
            self._require_open()
            made = await self._loader.load(name, wanted, have, again=again)
        except UserError as error:
            self._failures[name] = (wanted, str(error))
            raise
        finally:
            del self._loading[name]
        fresh = [loaded for version, loaded in made.items() if loaded != have.get(version)]
        try:
            await self._make_room(name, sum(map(num_bytes, fresh)))
            self._require_open()  # the last await is behind: what is switched to now is closed with all others
        except LlmosError:
            await self._loader.discard([served for served, _ in fresh])
            raise
        self._failures.pop(name, None)
        self._unloaded.discard(name)
        self._switch(name, made)
        _LOG.info("model %s serves version %s", name, ", ".join(self.versions(name)))

    async def _make_room(self, name: str, num_bytes: int) -> None:
        """Unload dynamic models until so many bytes fit into the budget. Raises HttpError 503 if that is not enough, or not in time."""
        settings = self._builder.settings
        budget = settings.memory_budget_bytes
        if not budget:
            return
        victims = to_remove(self._residents(name), num_bytes, budget)
        if victims is None:
            raise self._no_memory(name, num_bytes)
        for victim in victims:
            self._switch(victim, {})
            self._builder.metrics.evictions.labels(victim).inc()
            _LOG.info("model %s is unloaded, to make room for %s", victim, name)
        ending = [self._retiring[served] for served in self._retiring if served.name in victims]
        if ending:
            await asyncio.wait(ending, timeout=settings.timeout_s)
        if self.num_bytes + num_bytes > budget:
            raise self._no_memory(name, num_bytes)

    def _no_memory(self, name: str, num_bytes: int) -> HttpError:
        used, budget = self.num_bytes, self._builder.settings.memory_budget_bytes
        message = f"there is no memory for model '{name}': it takes {_mib(num_bytes)}, and {_mib(used)} of {_mib(budget)} are in use"
        return HttpError(503, message, code="overloaded", headers=RETRY_SOON)

    def _residents(self, loading: str) -> list[Resident]:
        """Return what is in memory; what is being released can't be removed once more."""
        found = [Resident(served.name, self._bytes[served], served.use.last_s, True, False) for served in self._retiring]
        for name, versions in self._versions.items():
            uses = [served.use for served, _ in versions.values()]
            used = any(use.count for use in uses)
            removable = name != loading and self._on_request(name) and all(file is not None for _, file in versions.values())
            total = sum(self._bytes[served] for served, _ in versions.values())
            found.append(Resident(name, total, max(use.last_s for use in uses), used, removable))
        return found

    async def _unload(self, name: str) -> None:
        self.find(name)
        if self.repository.is_dynamic(name):
            self._unloaded.add(name)
        self._switch(name, {})
        _LOG.info("model %s is unloaded", name)

    def _wanted_of(self, name: str, have: Versions) -> dict[int, ArtifactFile]:
        """Return the versions to serve, of which there must be some. have: those that serve now. Raises HttpError."""
        wanted = self._wanted(name)
        if not wanted:
            raise self._missing(name, have)
        return wanted

    def _missing(self, name: str, have: Versions) -> LlmosError:
        if any(file is None for _, file in have.values()):
            return HttpError(400, f"model '{name}' was made in memory, and can't be loaded again")
        if self.repository.versions(name):
            return HttpError(400, f"model '{name}' has no version that its policy serves")
        return HttpError(404, f"model '{name}' has no version in the repository", code="model_not_found")

    def _switch(self, name: str, versions: dict[int, Loaded]) -> None:
        """Serve other versions of a model from now on, and release the others once nobody uses them."""
        before = self._versions.get(name, {})
        if versions:
            self._versions[name] = versions
        else:
            self._versions.pop(name, None)
        self._current = {each: found[max(found)][0] for each, found in self._versions.items()}
        new, old = ([served for served, _ in each.values()] for each in (versions, before))
        for served, file in versions.values():
            if served not in old:
                for engine in served.engines:
                    self._builder.metrics.watch(engine)
                self._bytes[served] = num_bytes((served, file))
        for served in old:
            if served not in new:
                self._retiring[served] = asyncio.get_running_loop().create_task(self._retire(served))

    async def _retire(self, served: Served) -> None:
        """Release a version once the last request that found it has ended."""
        await served.use.until_unused()
        try:
            await asyncio.get_running_loop().run_in_executor(None, release, served)
        except LlmosError:
            _LOG.exception("version %d of model %s did not end as it should", served.version, served.name)
        finally:
            for engine in served.engines:
                self._builder.metrics.unwatch(engine)
            del self._retiring[served], self._bytes[served]

    # The end.

    def stop_accepting(self) -> None:
        """Let engines take no more requests, and models not change any more."""
        self._closed = True
        for engine in self._engines():
            engine.stop_accepting()

    def is_idle(self) -> bool:
        return all(engine.is_idle() for engine in self._engines())

    def abort(self) -> None:
        for engine in self._engines():
            engine.abort()

    def close(self) -> None:
        self._closed = True
        self._loader.close()
        for engine in self._engines():
            engine.close()

    def _engines(self) -> list[Engine | GenerationEngine]:
        return [engine for served in self.all() for engine in served.engines]


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / MIB:.1f} MiB"


def _check_names(names: Sequence[str]) -> None:
    wrong = next((name for name in names if not NAME.fullmatch(name)), None)
    if wrong is not None:
        raise UserError(bad_name(wrong))
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise UserError(f"two models are named '{repeated}': give one another name with name=path")
