"""The independent oracle of the front end's tests: an imported model run by compiler/reference.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.reference import Executor

__all__ = ["Executor", "run"]


def run(model: ImportedModel, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Outputs of an imported model by the reference lowering."""
    return Executor(model.module, model.weights)(inputs)
