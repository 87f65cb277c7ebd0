"""Reading a saved stage after the passes, such as kernels.mlir, ll, o or so: where to go on from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmos.compiler.backends.base import Backend, CompiledModel, Stage, StageContent, Target
from llmos.compiler.backends.options import MULTIPLICATIONS
from llmos.compiler.driver.saved import SavedStage, Sidecar
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.parsing import parse_module, read_text
from llmos.runtime.errors import UserError


def read_record(saved: SavedStage, sidecar: Sidecar) -> CompiledModel:
    """What the saved stage is the code of. Raises UserError where nothing says it."""
    if sidecar.record is None:
        raise UserError(f"{saved.sidecar} is missing: it says what {saved.path.name} is the code of; save the stage again")
    return sidecar.record


def read_contents(saved: SavedStage, targets: Sequence[Target], backend: Backend) -> list[tuple[StageContent, Target]]:
    """The stage of all of its targets among `targets`. Raises UserError where a file is missing or can't be read."""
    made_for = [target.code_target(multiplied) for target in targets for multiplied in MULTIPLICATIONS]
    by_name = {target.name: target for target in (*made_for, *targets)}
    files = saved.variants(list(by_name))
    if not files:
        raise UserError(f"no such file: {saved.path}")
    return [(_read(file, backend.stages[saved.stage]), by_name[file.target]) for file in files]


def _read(file: SavedStage, stage: Stage) -> StageContent:
    if stage.content is bytes:
        return _read_bytes(file.path)
    text = read_text(file.path)
    return parse_module(text, f"the kernels of {file.target}") if stage.content is ir.Module else text


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None
