"""The independent oracle of the front end's tests: a module run by compiler/execution/interpreter.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from llmos.compiler.execution.interpreter import Interpreter, OpCache
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.weights import Weight


class Executor:
    """One module, callable many times, at any sizes."""

    def __init__(self, module: ir.Module, weights: Mapping[str, Weight | np.ndarray]) -> None:
        self._interpreter, self._weights = Interpreter(module, OpCache(opt_level=0)), weights

    def __call__(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        return list(self._interpreter.run(inputs, self._weights).outputs)


def run(model: ImportedModel, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Outputs of an imported model by the reference lowering."""
    return Executor(model.module, model.weights)(inputs)
