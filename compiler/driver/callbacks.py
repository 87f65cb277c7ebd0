"""What the driver does as a compile proceeds: progress, and saved stages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llmos.compiler.backends.base import CompiledModel, CompileObserver, StageContent
from llmos.compiler.driver.saved import MODULE_STAGES, SavedStage, Sidecar, write_sidecar, write_stage
from llmos.compiler.ir.weights import Weight
from llmos.compiler.support.progress import Progress
from llmos.passes import Pass
from llmos.runtime.errors import UserError


class CompileCallbacks(CompileObserver):
    """Saves the stage `stop_after` at `stem`, and every stage to the folder `dump` where it is given.

    What it wrote for `stop_after` is in `written`.
    """

    def __init__(self, progress: Progress, sidecar: Sidecar, stem: Path, stop_after: str, dump: Path | None) -> None:
        self._progress = progress
        self._sidecar = sidecar
        self._record: CompiledModel | None = None
        self._stem = stem
        self._stop_after = stop_after
        self._dump = dump
        self.written: list[Path] = []
        if dump:
            _make(dump)

    def pass_started(self, index: int, total: int, step: Pass) -> None:
        self._progress.update(index, total, step.name)

    def code_progress(self, done: int, total: int) -> None:
        self._progress.update(done, total, f"{done} of {total} objects")

    def described(self, model: CompiledModel) -> None:
        """All but the code is known: called once, before the backend's first stage."""
        self._record = model
        self._progress.phase("code")

    def stage_finished(
        self, stage: str, content: StageContent, target: str | None = None, weights: Mapping[str, Weight] | None = None
    ) -> None:
        if self._dump:
            self._save(SavedStage(self._dump / self._stem.name, stage, target or ""), content, weights)
        if stage == self._stop_after:
            self.written += self._save(SavedStage(self._stem, stage, target or ""), content, weights)

    def _save(self, saved: SavedStage, content: StageContent, weights: Mapping[str, Weight] | None) -> list[Path]:
        written = [write_stage(saved, content)]
        return written + write_sidecar(saved, self._sidecar_of(saved.stage, weights))

    def _sidecar_of(self, stage: str, weights: Mapping[str, Weight] | None) -> Sidecar:
        own = self._sidecar
        record = None if stage in MODULE_STAGES else self._record
        current = record.weights if record else weights if weights is not None else own.weights
        return Sidecar(own.name, current, own.metadata, own.assets, record)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"can't dump to {folder}: {error.strerror}; give another folder") from error
