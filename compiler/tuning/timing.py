"""Variants of one model run in turns, each dispatch timed: what disturbs the machine disturbs all of them."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from llmos.compiler.backends.base import Backend, Target
from llmos.compiler.tuning.tilings import Variant
from llmos.runtime.artifact.writer import ArtifactContents, write_artifact
from llmos.runtime.errors import PassError
from llmos.runtime.program import Program, load

LEAST_ROUNDS, MOST_ROUNDS = 3, 200


@dataclass
class Times:
    """Seconds of one variant, a number for each round, at each set of inputs: of a call, and of all launches of a dispatch."""

    totals: list[list[float]]
    dispatches: list[dict[str, list[float]]]
    launches: dict[str, int] = field(default_factory=dict)

    def share(self, key: str) -> float:
        """Of a call, at the first inputs."""
        return statistics.median(self.dispatches[0].get(key, [0.0])) / statistics.median(self.totals[0])

    def median_us(self, key: str) -> float:
        """Of one launch, at the first inputs."""
        return round(1e6 * statistics.median(self.dispatches[0][key]) / self.launches[key], 3)

    def gain_over(self, other: Times, key: str) -> float:
        """How many times faster than in the other variant: the mean over the sets of inputs of the medians' ratios."""
        return _mean_ratio([each[key] for each in other.dispatches], [each[key] for each in self.dispatches])

    def total_gain_over(self, other: Times) -> float:
        return _mean_ratio(other.totals, self.totals)


def _mean_ratio(slow: Sequence[Sequence[float]], fast: Sequence[Sequence[float]]) -> float:
    """The geometric mean."""
    pairs = zip(slow, fast, strict=True)
    return math.exp(statistics.mean(math.log(statistics.median(a) / statistics.median(b)) for a, b in pairs))


class InterleavedBenchmark:
    """Loads variants that this machine runs. Raises PassError where two of them don't give the same bits."""

    def __init__(
        self, variants: Sequence[Variant], target: Target, backend: Backend, inputs: Sequence[Sequence[np.ndarray]], folder: Path
    ) -> None:
        self._variants, self._inputs = variants, inputs
        self._stack = ExitStack()
        programs = [self._stack.enter_context(program) for program in _loaded(variants, target, backend, folder)]
        self._entries = [program[program.manifest.entries[0].name] for program in programs]
        self._compare()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def run(self, go_on: Callable[[], bool]) -> list[Times]:
        """Rounds while `go_on` says so, a few at least; a round runs every variant, in an order of its own."""
        found = [Times([[] for _ in self._inputs], [{} for _ in self._inputs]) for _ in self._variants]
        shuffle, order = random.Random(0), list(range(len(found)))
        for number in range(MOST_ROUNDS):
            if number >= LEAST_ROUNDS and not go_on():
                break
            shuffle.shuffle(order)
            for at in order:
                for point in range(len(self._inputs)):
                    self._time(at, point, found[at])
        return found

    def _time(self, at: int, point: int, times: Times) -> None:
        """The second of two calls: the first finds the caches as the variant before left them."""
        entry, keys = self._entries[at], self._variants[at].keys
        inputs = self._inputs[point][: entry.spec.num_inputs]
        entry(*inputs)
        profile = entry.profile(*inputs)
        seconds: dict[str, float] = {}
        launches: dict[str, int] = {}
        for each in profile.dispatches:
            if (key := keys.get(each.name)) is not None:
                seconds[key] = seconds.get(key, 0.0) + each.duration_s
                launches[key] = launches.get(key, 0) + 1
        times.totals[point].append(profile.total_s)
        times.launches = launches
        for key, duration in seconds.items():
            times.dispatches[point].setdefault(key, []).append(duration)

    def _compare(self) -> None:
        for inputs in self._inputs:
            first: list[bytes] | None = None
            for entry in self._entries:
                found = entry(*inputs[: entry.spec.num_inputs])
                arrays = [array.tobytes() for array in (found if isinstance(found, tuple) else (found,))]
                if first is not None and arrays != first:
                    raise PassError("the shape of a tile changes a result: leave --tune out, and report this")
                first = arrays


def _loaded(variants: Sequence[Variant], target: Target, backend: Backend, folder: Path) -> list[Program]:
    """The variants that read the same weights share one artifact, whose file is gone once they are loaded."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for at, variant in enumerate(variants):
        groups.setdefault(tuple(variant.compiled.weights), []).append(at)
    found: dict[int, Program] = {}
    for number, members in enumerate(groups.values()):
        path = folder / f"{number}.llmos"
        write_artifact(path, _contents([variants[at] for at in members], target, backend))
        found.update({at: load(path, target=_name(place)) for place, at in enumerate(members)})
        path.unlink()
    return [found[at] for at in range(len(variants))]


def _contents(variants: Sequence[Variant], target: Target, backend: Backend) -> ArtifactContents:
    compiled = variants[0].compiled
    return ArtifactContents(
        name="tuned",
        entries=compiled.entries,
        symbols=compiled.symbols,
        computed=compiled.computed,
        weights=compiled.weights,
        code=[replace(backend.member(target.name, each.code), target=_name(place)) for place, each in enumerate(variants)],
        kernels=compiled.kernels,
        plan=compiled.plan,
    )


def _name(place: int) -> str:
    return f"variant-{place}"
