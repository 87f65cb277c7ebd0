"""The `repro` folder of a lowering that failed: its op as a program of its own, the traceback, the versions and one command."""

from __future__ import annotations

import json
import shlex
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmos.compiler.frontend.ops.errors import LoweringError
from llmos.compiler.support.versions import installed
from llmos.passes._repro import unused_folder
from llmos.runtime.errors import PassError


@contextmanager
def reproducible(folder: Path | None) -> Iterator[None]:
    """Where a lowering fails: writes op.pt2, graph.txt, versions.json and error.txt to a new folder, and says the command too."""
    try:
        yield
    except LoweringError as error:
        command = _write(folder, error) if folder is not None else None
        raise PassError(f"{error}; reproduce it with: {command}" if command else str(error)) from error


def _write(folder: Path, error: LoweringError) -> str | None:
    """The command, or None where it can't be written: the failure itself matters more."""
    import torch

    from llmos.compiler.frontend.one_op import one_op_program

    target = unused_folder(folder)
    command = f"llmos check {shlex.quote(str(target / 'op.pt2'))}"
    try:
        program = one_op_program(error.node)
        target.mkdir(parents=True)
        torch.export.save(program, target / "op.pt2")
        (target / "graph.txt").write_text(f"{program.graph}\n")
        (target / "versions.json").write_text(json.dumps(installed(), indent=2) + "\n")
        (target / "error.txt").write_text("".join(traceback.format_exception(error)) + f"\n{command}\n")
    except Exception:  # torch can't save every graph
        return None
    return command
