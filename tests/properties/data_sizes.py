"""Compiling and comparing programs whose sizes depend on data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

import llmos
from llmos.runtime.program import Program


def compiled(module: nn.Module, examples: Sequence[Tensor], dynamic_shapes: Any, path: Path) -> Program:
    llmos.compile(module, tuple(examples), dynamic_shapes=dynamic_shapes).save(path)
    return llmos.load(path, poison_arena=True)


def assert_same(got: Any, want: Any, what: str) -> None:
    answers = got if isinstance(got, tuple) else (got,)
    for number, (ours, theirs) in enumerate(zip(answers, want, strict=True)):
        assert ours.shape == tuple(theirs.shape), f"{what}, output {number}"
        np.testing.assert_allclose(
            ours.astype(np.float64),
            np.asarray(theirs, np.float64),
            rtol=2e-3 if ours.dtype == np.float16 else 1e-5,
            atol=1e-5,
            err_msg=what,
        )
