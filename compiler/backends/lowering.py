"""From a planned module to code: the stages of a backend one after the other, for one target or many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

from llmos.compiler.backends.base import Backend, CompileObserver, Planned, Stage, StageContent, Target
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.support.environment import read_environment

Flow: TypeAlias = "Iterator[tuple[StageContent, Target]]"


def lower(planned: Planned, target: Target, options: CompileOptions, backend: Backend, *, until: str = "") -> StageContent:
    """The content of the stage `until` for one target; "" is the backend's last stage, the code. Raises PassError."""
    return lower_each([(planned, target)], options, backend, until=until)[0]


def lower_each(
    starts: Sequence[tuple[StageContent, Target]],
    options: CompileOptions,
    backend: Backend,
    observer: CompileObserver | None = None,
    *,
    after: str = "",
    until: str = "",
) -> list[StageContent]:
    """The content of the stage `until` for each of `starts`, in order.

    starts: planned modules, or contents of the stage `after`, each with its target. Of options, precision, jobs, cache and repro count.
    While one target's code is compiled, the next one's is made. Raises PassError.
    """
    observer = observer or CompileObserver()
    num_jobs = max(1, min(options.jobs or read_environment().jobs, len(starts)))
    flow: Flow = iter(starts)
    for name in _between(list(backend.stages), after, until):
        stage = backend.stages[name]
        made = _compiled(flow, stage, options, num_jobs, observer) if stage.compiles else _made(flow, stage, options)
        flow = _observed(made, name, observer)
    return [content for content, _ in flow]


def _between(names: list[str], after: str, until: str) -> list[str]:
    """Stages behind `after`, up to `until`."""
    first = names.index(after) + 1 if after else 0
    return names[first : names.index(until) + 1 if until else len(names)]


def _made(flow: Flow, stage: Stage, options: CompileOptions) -> Flow:
    for content, target in flow:
        yield stage.make(content, target, options), target


def _compiled(flow: Flow, stage: Stage, options: CompileOptions, num_jobs: int, observer: CompileObserver) -> Flow:
    """Each is started as soon as `flow` gives it; equal ones are made once."""
    with ThreadPoolExecutor(num_jobs) as pool:
        started: dict[tuple[StageContent, Target], Future[StageContent]] = {}
        running = []
        for content, target in flow:
            key = (content, target)
            if key not in started:
                started[key] = pool.submit(stage.make, *key, options)
            running.append((started[key], target))
        for done, (future, target) in enumerate(running, 1):
            made = future.result()
            observer.code_progress(done, len(running))
            yield made, target


def _observed(flow: Flow, name: str, observer: CompileObserver) -> Flow:
    for content, target in flow:
        observer.stage_finished(name, content, target.name)
        yield content, target
