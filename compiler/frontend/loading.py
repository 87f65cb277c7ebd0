"""Loading a .pt2 file without running code from it; errors take one line."""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch.export import ExportedProgram

from llmos.runtime.errors import UnsupportedError, UserError

# torch unpickles example inputs and some constants of a .pt2; with this set it accepts only tensors and plain containers.
_TENSORS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_UNKNOWN_OP, _PICKLED = "failed to resolve", "Weights only load failed"


class QuietTorch:
    """Suppresses torch's log of its own failures, which our one-line error replaces."""

    def __enter__(self) -> None:
        self._level = logging.getLogger("torch").level
        logging.getLogger("torch").setLevel(logging.CRITICAL)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("torch").setLevel(self._level)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that isn't blank, or the name of its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def load_program(path: Path) -> ExportedProgram:
    """Load a program that torch.export.save wrote, without running code from it.

    Raises UserError for a missing or damaged file, another version or another format.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    _require_exported(path)
    overheard = _Overheard()
    try:
        with overheard, _tensors_only():
            program = torch.export.load(path)
    except Exception as error:
        raise _refusal(path, overheard.cause or error) from error
    _check_weights(path, program)
    return program


def _refusal(path: Path, error: BaseException) -> UserError:
    while error.__cause__ is not None:
        error = error.__cause__
    reason = first_line(error).split(". ")[0].rstrip(".")[:200]
    if _UNKNOWN_OP in reason:
        op = reason.split(_UNKNOWN_OP)[1].split()[0].removeprefix("torch.ops.")
        return UnsupportedError(f"{path} uses the op {op}, which torch doesn't know here: export it with torch's own ops")
    if _PICKLED in reason:
        return UserError(f"{path} holds Python objects, which aren't read since reading them can run any code: export it with tensors only")
    return UserError(f"{path}: not a readable .pt2 file ({reason}); save it again with torch.export.save")


def _require_exported(path: Path) -> None:
    """Raise UserError for zips of torch.save and torch.jit.save, which have a data.pkl one folder down, and for truncated files."""
    with suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as file:
        members = file.infolist()
        if members and min(member.header_offset for member in members) > 0:  # the zip found is a nested one
            raise UserError(f"{path} is cut short: copy it again, or save it again with torch.export.save")
        if any(member.filename.count("/") == 1 and member.filename.endswith("/data.pkl") for member in members):
            raise UserError(f"{path} is what torch.save or torch.jit.save wrote, not an exported program: write it with torch.export.save")


class _Overheard(QuietTorch, logging.Filter):
    """Records the first failure: torch.export.load only logs it and then tries an older format."""

    def __init__(self) -> None:
        super().__init__()
        self.cause: BaseException | None = None

    def __enter__(self) -> None:
        super().__enter__()
        self._logger = logging.getLogger("torch.export")
        self._own_level = self._logger.level
        self._logger.setLevel(logging.WARNING)
        self._logger.addFilter(self)

    def __exit__(self, *_: object) -> None:
        self._logger.removeFilter(self)
        self._logger.setLevel(self._own_level)
        super().__exit__()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and self.cause is None:
            self.cause = record.exc_info[1]
        return False


@contextmanager
def _tensors_only() -> Iterator[None]:
    before = os.environ.get(_TENSORS_ONLY)
    os.environ[_TENSORS_ONLY] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_TENSORS_ONLY]
        else:
            os.environ[_TENSORS_ONLY] = before


def _check_weights(path: Path, program: ExportedProgram) -> None:
    """Raise UserError for a weight whose shape or dtype differs from the exported graph's, for which code is generated."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    values = {**program.constants, **program.state_dict}
    for spec in program.graph_signature.input_specs:
        value = values.get(spec.target) if spec.target is not None else None
        if not isinstance(value, torch.Tensor) or not isinstance(expected := nodes[spec.arg.name].meta.get("val"), torch.Tensor):
            continue
        if value.shape != expected.shape or value.dtype != expected.dtype:
            raise UserError(
                f"{path}: the weight {spec.target} is {value.dtype} {list(value.shape)} where the graph takes {expected.dtype} "
                f"{list(expected.shape)}: the file is damaged, save it again with torch.export.save"
            )
