"""The driver: from a source, or a saved stage, through the stages of a backend to an artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmos.compiler.backends.base import IMPORTED, PLANNED, Backend, CompiledModel, Planned, StageContent, Target
from llmos.compiler.backends.lowering import lower_each
from llmos.compiler.backends.options import MULTIPLIED, CompileOptions
from llmos.compiler.backends.planning import planned_of, run_passes
from llmos.compiler.backends.registry import backend_of, check_stages
from llmos.compiler.calibration.data import as_calibration
from llmos.compiler.calibration.fit import fit
from llmos.compiler.driver.callbacks import CompileCallbacks
from llmos.compiler.driver.entries import compile_entries, compile_language_model
from llmos.compiler.driver.importing import described, import_with_warnings, say
from llmos.compiler.driver.packaging import contents
from llmos.compiler.driver.resume import read_contents, read_record
from llmos.compiler.driver.saved import MODULE_STAGES, SavedStage, Sidecar, read_imported, read_sidecar
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.limits import require_addressable
from llmos.compiler.support.progress import Progress
from llmos.compiler.tuning.lock import Lock, LockMismatch, lock_path, read_lock, write_lock
from llmos.compiler.verify.accuracy import AccuracyCheck, gather, with_loaded_weights
from llmos.passes.tile_dispatches import tiling_keys
from llmos.runtime.artifact.manifest import Manifest
from llmos.runtime.artifact.writer import ArtifactContents, write_artifact
from llmos.runtime.errors import UserError


@dataclass(frozen=True)
class Artifact:
    """A compiled model in memory. `lock`: what a search has found."""

    contents: ArtifactContents
    lock: Lock | None = None

    def save(self, path: str | Path) -> Manifest:
        """Writes `path`, signed with the user's own key; the file appears when it is whole. Raises ArtifactError.

        Beside it goes `path`.lock, where the model was tuned.
        """
        manifest = write_artifact(path, self.contents)
        if self.lock is not None:
            write_lock(lock_path(Path(path)), self.lock)
        return manifest


@dataclass(frozen=True)
class CompileResult:
    """What a run of the driver left on disk: the artifact, or the files of the stage it stopped after."""

    written: tuple[Path, ...]
    manifest: Manifest | None


def compile(
    source: Any,
    example_args: Sequence[Any] | Mapping[str, Sequence[Any]] | None = None,
    *,
    dynamic_shapes: Any = None,
    precision: str = "fp32",
    quant: str | None = None,
    calibrate: Any = None,
    kv: str = "",
    target: str = "portable",
    name: str = "",
    random: str = "",
    tune: float | None = None,
    lock: str | Path | None = None,
    options: CompileOptions | None = None,
) -> Artifact:
    """Compiles a model to an artifact.

    source: torch.nn.Module with `example_args`, ExportedProgram, or the path of a .pt2, .onnx, .mlir file or a Hugging Face directory;
    or what a front end made of one (ImportedModel). A mapping of such, by name, makes one artifact of several entries, in which equal
    weights lie once; `example_args` and `dynamic_shapes` are then mappings by the same names (driver/entries.py).
    dynamic_shapes: as in torch.export; the names of its dims stay in the artifact.
    quant: scheme of quantization, such as "w8a8" (docs/quantization.md).
    calibrate: data that quantization is fitted to: the path of a file, a sequence of texts, or one of calls, each a tuple of arrays or a
    mapping of them by input name (compiler/calibration/data.py).
    random: name of an input, int64 [], that is added where the model draws random numbers; without it such a model is refused.
    tune: seconds of a measured search for shapes of tiles on this machine, which change no result.
    lock: the lock file of an earlier search, whose choices are taken; the search leaves out what is in it.
    kv: what a language model caches keys and values as, "bf16" or "fp32".
    options: takes the place of precision, quant, calibrate, kv, target, name, random and tune.
    Raises UserError for what can't be read, UnsupportedError for a model that can't be compiled, PassError for an error of the compiler.
    """
    chosen = options or CompileOptions(
        precision=precision,
        quant=quant or "",
        calibrate=as_calibration(calibrate),
        kv=kv,
        target=target,
        name=name,
        random=random,
        tune=tune,
    )
    if (isinstance(source, Mapping) or chosen.generates_and_embeds) and lock is not None:
        raise UserError("a lock file is of one entry: compile entries without it")
    with Progress() as progress:
        if isinstance(source, Mapping):
            return Artifact(compile_entries(source, example_args or {}, dynamic_shapes or {}, chosen, progress))
        if isinstance(example_args, Mapping):
            raise UserError("example_args by name are of several entries: give the models by the same names")
        if chosen.generates_and_embeds:
            return Artifact(compile_language_model(source, chosen, progress))
        job = _Job(source, chosen, progress, Path(chosen.name or "model"), example_args, dynamic_shapes)
        job.lock_file = Path(lock) if lock else None
        return job.artifact()


def compile_to_file(
    source: str | Path, out: Path, options: CompileOptions, progress: Progress, weights: Path | None = None
) -> CompileResult:
    """Compiles a file or directory to `out`, or with options.stop_after saves that stage beside where `out` would be.

    `weights`: a safetensors file for a saved stage, instead of the one beside it. After an error nothing half-written stays behind.
    """
    _check_folder(out)
    with progress:
        if options.generates_and_embeds:
            artifact = Artifact(compile_language_model(source, options, progress))
            progress.phase("write")
            return CompileResult((out,), artifact.save(out))
        job = _Job(source, options, progress, out.with_suffix("") if out.suffix else out, weights=weights, lock_file=lock_path(out))
        if options.stop_after in ("", "llmos"):
            artifact = job.artifact()
            progress.phase("write")
            return CompileResult((out,), artifact.save(out))
        return CompileResult(tuple(job.saved_stage()), None)


@dataclass
class _Job:
    """One run: its input, and the stages it goes through."""

    source: Any
    options: CompileOptions
    progress: Progress
    stem: Path
    example_args: Sequence[Any] | None = None
    dynamic_shapes: Any = None
    weights: Path | None = None
    check: AccuracyCheck | None = None
    lock_file: Path | None = None
    found: Lock | None = None  # by this run
    callbacks: CompileCallbacks | None = None

    def __post_init__(self) -> None:
        """Refuses a wrong name before minutes of work."""
        self.backend: Backend = backend_of(self.options)
        check_stages(self.options, self.backend)
        self.targets: Sequence[Target] = self.backend.targets(self.options.target)

    def artifact(self) -> Artifact:
        """Runs to the end."""
        contents = self._contents()
        return Artifact(contents, self.found)

    def _contents(self) -> ArtifactContents:
        """Of the artifact, accuracy report included where there is a reference for one."""
        sidecar, compiled = self._run()
        assert compiled is not None
        if self.check is None:
            return contents(sidecar, compiled, self.backend)
        self.progress.phase("accuracy report")
        compiled = with_loaded_weights(compiled)
        return contents(sidecar, compiled, self.backend, self.check.accuracy_report(compiled))

    def saved_stage(self) -> list[Path]:
        """Runs until the stage of options.stop_after is saved."""
        try:
            self._run()
        except BaseException:
            for path in self._written:
                path.unlink(missing_ok=True)
            raise
        if not self._written:
            raise UserError(f"{self.options.stop_after} comes before what {self.source} makes: choose another for --stop-after")
        return self._written

    @property
    def _written(self) -> list[Path]:
        """Files of the stage to stop after."""
        return self.callbacks.written if self.callbacks else []

    def _run(self) -> tuple[Sidecar, CompiledModel | None]:
        """The model with its code; None where options.stop_after comes before the backend's own stages."""
        saved = self._saved_input()
        if saved and saved.stage not in MODULE_STAGES:
            sidecar = read_sidecar(saved, self.weights)
            record = read_record(saved, sidecar)
            options = replace(self.options, precision=record.precision)
            starts = read_contents(saved, self.targets, self.backend)
            return sidecar, self._lowered(record, starts, options, self._watch(sidecar), saved.stage)
        self.progress.phase("import")
        imported = read_imported(saved, self.weights) if saved else self._import()
        require_addressable(imported.module)
        if self.options.stop_after != IMPORTED and not (saved and saved.stage == PLANNED):
            imported, self.options = fit(imported, self.options, self.progress)
        sidecar = Sidecar(self.options.name or imported.name, imported.weights, described(imported.metadata, self.options), imported.assets)
        return sidecar, self._compile(imported, sidecar, saved.stage if saved else "")

    def _saved_input(self) -> SavedStage | None:
        if not isinstance(self.source, (str, Path)):
            return None
        return SavedStage.of(Path(self.source), self.backend, self.options.from_stage)

    def _import(self) -> ImportedModel:
        return import_with_warnings(self.source, self.example_args, self.dynamic_shapes, self.options)

    def _compile(self, imported: ImportedModel, sidecar: Sidecar, stage: str) -> CompiledModel | None:
        if self.options.accuracy_report and self.options.stop_after in ("", "llmos"):
            self.progress.phase("reference")
            self.check = gather(imported, self.options, say)
        callbacks = self._watch(sidecar)
        if not stage:
            callbacks.stage_finished(IMPORTED, imported.module)
        if self.options.stop_after == IMPORTED:
            return None
        planned = self._planned(imported, stage, callbacks)
        if self.options.stop_after == PLANNED:
            return None
        targets = self.backend.code_targets(self.options.target, self.targets, [planned])
        starts: list[tuple[StageContent, Target]] = [(planned, target) for target in targets]
        return self._lowered(planned.record, starts, self.options, callbacks)

    def _planned(self, imported: ImportedModel, stage: str, callbacks: CompileCallbacks) -> Planned:
        lock = self._lock(imported, stage)
        if stage == PLANNED:
            return planned_of(imported, self.options, self.backend)
        options = replace(self.options, tilings=lock.tilings()) if lock else self.options
        self.progress.phase("passes")
        planned = run_passes(imported, options, self.backend, callbacks)
        if lock and not self.found:
            self._report_unmatched(lock, planned.module)
        callbacks.stage_finished(PLANNED, planned.module, weights=planned.weights)
        return planned

    def _lowered(
        self,
        record: CompiledModel,
        starts: Sequence[tuple[StageContent, Target]],
        options: CompileOptions,
        callbacks: CompileCallbacks,
        after: str = "",
    ) -> CompiledModel:
        callbacks.described(record)
        until = options.stop_after if options.stop_after in self.backend.stages else ""
        contents = lower_each(starts, options, self.backend, callbacks, after=after, until=until)
        return record.with_code([target for _, target in starts], contents)

    def _lock(self, imported: ImportedModel, stage: str) -> Lock | None:
        """What is known of shapes of tiles, or found now."""
        if stage == PLANNED:
            if self.options.tune is not None:
                raise UserError(f"--tune chooses before weights are packed: give the model, or its {IMPORTED}, not {stage}")
            return None
        known = self._read_lock()
        if self.options.tune is None:
            return known
        from llmos.compiler.tuning.search import tune

        self.found = tune(imported, self.options, known, self.progress)
        return self.found

    def _read_lock(self) -> Lock | None:
        if self.lock_file is None:
            return None
        try:
            lock = read_lock(self.lock_file)
            if lock and lock.target not in {target.code_target(MULTIPLIED[self.options.precision]).name for target in self.targets}:
                raise LockMismatch(f"is for {lock.target}, which is not among the targets")
        except LockMismatch as mismatch:
            say(f"{self.lock_file} {mismatch}: left out")
            return None
        return lock

    def _report_unmatched(self, lock: Lock, module: ir.Module) -> None:
        unmatched = set(lock.dispatches) - tiling_keys(module)
        if unmatched:
            count = f"{len(unmatched)} of its {len(lock.dispatches)} dispatches"
            say(f"{self.lock_file}: {count} are not in this model and were left out; --tune measures those that it lacks")

    def _watch(self, sidecar: Sidecar) -> CompileCallbacks:
        options = self.options
        self.callbacks = CompileCallbacks(self.progress, sidecar, self.stem, options.stop_after, options.dump_ir)
        return self.callbacks


def _check_folder(out: Path) -> None:
    """Said before minutes of work, not after them."""
    if out.is_dir():
        raise UserError(f"{out} is a directory: name the file to write")
    if not out.parent.is_dir():
        raise UserError(f"no such directory: {out.parent}")
