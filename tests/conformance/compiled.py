"""An imported model through passes, kernels and an artifact, for this machine's processor."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import llmos
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver import compile
from llmos.compiler.frontend.model import ImportedModel

# Code of a case is used once; a compiler error's reproduction would litter the working tree.
OPTIONS = CompileOptions(target="native", cache=False, jobs=1, repro=None, accuracy_report=False)


def run_compiled(model: ImportedModel, batches: Sequence[Sequence[Any]]) -> list[tuple[np.ndarray, ...]]:
    """The outputs of the compiled model for each batch of inputs (numpy or torch); bfloat16 as uint16.

    Temporaries are filled with NaN before each call, so that reading one that nothing wrote shows.
    """
    artifact = compile(model, options=OPTIONS)
    with tempfile.TemporaryDirectory(prefix="llmos-case-") as folder:
        path = Path(folder) / "case.llmos"
        artifact.save(path)
        with llmos.load(path, poison_arena=True) as program:
            answers = [program(*inputs) for inputs in batches]
    return [answer if isinstance(answer, tuple) else (answer,) for answer in answers]
