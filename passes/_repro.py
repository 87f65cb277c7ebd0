"""The `repro` folder of a failed pass: the IR before it, the rest of the pipeline, the versions and one command."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from llmos.compiler.ir.bindings import ir
from llmos.compiler.support.versions import installed
from llmos.passes._pass import Pass
from llmos.passes._pipeline import pipeline_text


def write_repro(folder: Path, before: ir.Operation, remaining: Sequence[Pass], message: str) -> str | None:
    """Write before.mlir, pipeline.txt, versions.json and error.txt to a new folder beside any earlier one.

    Return the command that reproduces the failure, or None where the folder can't be written: the failure itself matters more.
    """
    target = unused_folder(folder)
    pipeline = pipeline_text(remaining[:1])
    command = f"llmos opt {shlex.quote(str(target / 'before.mlir'))} -p {shlex.quote(pipeline)}"
    files = {
        "before.mlir": str(before),
        "pipeline.txt": pipeline_text(remaining) + "\n",
        "versions.json": json.dumps(installed(), indent=2) + "\n",
        "error.txt": f"{message}\n\n{command}\n",
    }
    try:
        target.mkdir(parents=True)
        for name, text in files.items():
            (target / name).write_text(text)
    except OSError:
        return None
    return command


def unused_folder(folder: Path) -> Path:
    """Return `folder`, or the first of folder-2, folder-3, ... that doesn't exist."""
    candidate, number = folder, 2
    while candidate.exists():
        candidate, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return candidate
