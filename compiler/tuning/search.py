"""A short measured search for shapes of tiles (compiler/ir/tiling.py), in the whole model on this machine.

Every variant of the model is a whole one, so that a dispatch is timed with the caches as it finds them: its weights far away, its rows
where the dispatch before left them. One choice is searched after the other. For each, variants in which all dispatches take a value are
compiled side by side and run in turns, and every dispatch keeps the value that was best for it. So time goes where the model spends its
own. At the end the choices together are run against none.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from llmos.compiler.backends.base import Target
from llmos.compiler.backends.options import MULTIPLIED, CompileOptions
from llmos.compiler.backends.registry import backend_of
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.ir.tiling import Tiling, Tilings
from llmos.compiler.support.environment import read_environment
from llmos.compiler.support.progress import Progress
from llmos.compiler.tuning.default_sizes import default_sizes
from llmos.compiler.tuning.lock import Lock, Locked
from llmos.compiler.tuning.tilings import TUNED, Untiled, Variant
from llmos.compiler.tuning.timing import InterleavedBenchmark, Times
from llmos.compiler.verify.samples import Signature, made_up
from llmos.runtime.errors import ExecutionError, InputError, UserError

# In this order, and those first that moved real models most.
CHOICES: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("rows", (32, 128, 64, 256)),
    ("lines", (2, 4, 8)),
    ("columns", (48, 64, 32)),
    ("depth", (128, 256, 0)),
    ("ahead", (32, 0)),
)
LEAST_SHARE = 0.01  # of a call: what a dispatch takes that is worth a search
LEAST_GAIN = 1.02  # of a dispatch: what can be told from noise
LAST_SHARE = 0.2  # of the time, for the choices together against none
BUILDING_SHARE = 0.6  # of the time of one choice, at most, for compiling


@dataclass(frozen=True)
class Clock:
    """The time that a search has, in seconds."""

    budget_s: float
    start: float = field(default_factory=time.perf_counter)

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.start

    @property
    def left_s(self) -> float:
        return self.budget_s - self.elapsed_s


def tune(imported: ImportedModel, options: CompileOptions, known: Lock | None, progress: Progress) -> Lock:
    """Searches for options.tune seconds; what `known` has of the same machine, target and sizes is kept as it is.

    Raises UserError where this machine runs none of the targets.
    """
    assert options.tune is not None
    target = tuned_target(options)
    clock = Clock(options.tune)
    progress.phase("tune")
    points = default_points(imported)
    with tempfile.TemporaryDirectory(prefix="llmos-tune-") as folder:
        num_jobs = options.jobs or read_environment().jobs
        search = _Search(Untiled.of(imported, options), target, num_jobs, points, Path(folder), clock, progress)
        return search.run(known)


def default_points(imported: ImportedModel) -> list[Point]:
    """Usual sizes first, the size of the model's example last."""
    signature = Signature.of(imported.module)
    traced = signature.sizes_of(imported.examples[0]) if imported.examples else {}
    sizes = default_sizes(signature.table.symbols, traced)
    sizes += [traced] if traced and traced not in sizes else []
    return [Point(each, made_up(signature, imported.examples, each)) for each in sizes]


def tuned_target(options: CompileOptions) -> Target:
    """The best of the targets that this machine runs. Raises UserError where there is none."""
    targets = backend_of(options).targets(options.target)
    found = next((target for target in targets if target.runs_here()), None)
    if found is None:
        names = ", ".join(target.name for target in targets)
        raise UserError(
            f"--tune measures code on this machine, which doesn't run {names}: tune where it runs, and take the lock file along"
        )
    return found


@dataclass(frozen=True)
class Point:
    """Sizes of the symbols, and inputs of these sizes."""

    sizes: Mapping[str, int]
    inputs: Sequence[np.ndarray]


@dataclass
class _Search:
    """One search. `kept`: what was known before; `chosen`: what was found so far, by the hash of the dispatch."""

    untiled: Untiled
    target: Target
    num_jobs: int
    points: list[Point]
    folder: Path
    clock: Clock
    progress: Progress
    kept: Mapping[str, Locked] = field(default_factory=dict)
    chosen: dict[str, dict[str, int]] = field(default_factory=dict)
    built: dict[str, Variant] = field(default_factory=dict)  # by the text of its tilings
    building_s: float = 0.0  # what a variant took to compile
    detail: str = ""

    def run(self, known: Lock | None) -> Lock:
        """A lock that knows every dispatch that is worth a search."""
        self._show("the model as it is")
        default = self._build([{}])[0]
        self.points = self._accepted(default)
        lock = Lock(self._name, self.target.this_machine(), self.points[0].sizes)
        if known and (known.target, known.machine, known.sizes) == (lock.target, lock.machine, lock.sizes):
            self.kept = {key: each for key, each in known.dispatches.items() if key in default.keys.values()}
        return replace(lock, dispatches={**self.kept, **self._found(default)})

    def _found(self, default: Variant) -> dict[str, Locked]:
        """What was found of the dispatches that are worth a search and not known yet."""
        times = self._measure([default], 0.0)[0]
        kernels = {kernel.name: kernel for kernel in default.compiled.kernels}
        labels = {key: str(kernels[name].details.get("label", TUNED)) for name, key in default.keys.items()}
        keys = [key for key in labels if key not in self.kept and times.share(key) >= LEAST_SHARE]
        if not keys:
            return {}
        for number, (choice, values) in enumerate(CHOICES):
            self._settle(keys, choice, values, self.clock.left_s - LAST_SHARE * self.clock.budget_s, len(CHOICES) - number)
        return self._judged(keys, labels, default, times)

    def _accepted(self, default: Variant) -> list[Point]:
        """The points that the model runs at: some sizes have to fit each other. Raises what it says of the last where it runs at none."""
        others, example = (self.points[:-1], self.points[-1:]) if len(self.points) > 1 else ([], self.points)
        found = [point for point in others if self._runs(default, point)]
        return found or example

    def _runs(self, default: Variant, point: Point) -> bool:
        try:
            with InterleavedBenchmark([default], self.target, self.untiled.backend, [point.inputs], self.folder):
                return True
        except (InputError, ExecutionError):
            return False

    # -- variants
    @property
    def _name(self) -> str:
        """Of the target that code is made for."""
        return self.target.code_target(MULTIPLIED[self.untiled.options.precision]).name

    def _tilings(self, choices: Mapping[str, Mapping[str, int]]) -> Tilings:
        known = {key: each.choices for key, each in self.kept.items()}
        return Tilings(tuple((key, Tiling.of(self._name, chosen)) for key, chosen in {**known, **choices}.items() if chosen))

    def _build(self, all_choices: Sequence[Mapping[str, Mapping[str, int]]]) -> list[Variant]:
        tilings = [self._tilings(choices) for choices in all_choices]
        missing = [each for each in tilings if str(each) not in self.built]
        start = time.perf_counter()
        for each, variant in zip(missing, self.untiled.compiled(missing, self.target), strict=True):
            self.built[str(each)] = variant
        self.building_s = (time.perf_counter() - start) / len(missing) if missing else self.building_s
        return [self.built[str(each)] for each in tilings]

    def _measure(self, variants: Sequence[Variant], until_s: float) -> list[Times]:
        """Times of each, measured until so much of the clock is gone, and a few runs at least."""
        inputs = [point.inputs for point in self.points]
        with InterleavedBenchmark(variants, self.target, self.untiled.backend, inputs, self.folder) as benchmark:
            return benchmark.run(lambda: self._go_on(until_s))

    def _go_on(self, until_s: float) -> bool:
        self._show()
        return self.clock.elapsed_s < until_s

    def _show(self, detail: str | None = None) -> None:
        done, total = (int(1000 * seconds) for seconds in (self.clock.elapsed_s, self.clock.budget_s))
        self.detail = self.detail if detail is None else detail
        self.progress.update(min(done, total), total, self.detail)

    # -- one choice
    def _settle(self, keys: Sequence[str], choice: str, values: Sequence[int], left_s: float, choices_left: int) -> None:
        """Give every dispatch the value of one choice that is best for it; nothing where the time is too short to compile variants."""
        start_s, share_s = self.clock.elapsed_s, left_s / choices_left
        now = self._build([self.chosen])[0]
        others: dict[bytes, tuple[int, Variant]] = {}
        for at in range(0, len(values), self.num_jobs):
            batch = values[at : at + self.num_jobs]
            if self.clock.elapsed_s + len(batch) * self.building_s > start_s + BUILDING_SHARE * share_s:
                break
            self._show(f"{choice}: {', '.join(map(str, batch))}")
            built = self._build([{**self.chosen, **{key: {**self.chosen.get(key, {}), choice: value} for key in keys}} for value in batch])
            for value, variant in zip(batch, built, strict=True):
                if variant.code != now.code:  # what the model chooses anyway
                    others.setdefault(variant.code, (value, variant))
        pairs = list(others.values())
        if not pairs:
            return
        before, *measured = self._measure([now, *(variant for _, variant in pairs)], start_s + share_s)
        for key in keys:
            gain, value = max((times.gain_over(before, key), value) for times, (value, _) in zip(measured, pairs, strict=True))
            if gain >= LEAST_GAIN:
                self.chosen.setdefault(key, {})[choice] = value

    # -- all of them
    def _judged(self, keys: Sequence[str], labels: Mapping[str, str], default: Variant, times: Times) -> dict[str, Locked]:
        """What holds against the model as it is, when all choices are taken together."""
        if not any(self.chosen.values()):
            return {key: Locked(labels[key], {}, times.median_us(key), times.median_us(key)) for key in keys}
        self._show("all choices")
        best = self._build([self.chosen])[0]
        before, after = self._measure([default, best], self.clock.budget_s)
        pays = after.total_gain_over(before) > 1
        found = {}
        for key in keys:
            choices = self.chosen.get(key, {}) if pays and after.gain_over(before, key) > 1 else {}
            own = after if choices else before
            found[key] = Locked(labels[key], choices, before.median_us(key), own.median_us(key))
        return found
