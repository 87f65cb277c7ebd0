"""The quantized reference: a model with all that is quantized in it, run by MLIR's reference lowering.

The source's own reference knows nothing of `--quant`: what compiled code is off by it is what quantization costs. What it is off by the
quantized reference is what code generation costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.backends.planning import behind_quantizing
from llmos.compiler.backends.registry import backend_of
from llmos.compiler.execution.interpreter import reference_of
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.ir.weights import Weight
from llmos.compiler.quant.scheme import parse_scheme
from llmos.compiler.verify.samples import moved_by_one_rounding
from llmos.runtime.artifact.dtypes import DTYPES
from llmos.runtime.errors import UserError

ENGINE = "the quantized model in MLIR's reference lowering"
INTEGERS = frozenset({"int8", "uint8"})  # dtypes of weights that a quantized file brings
STEP = 1 / 255  # of 8-bit numbers: what one that is rounded the other way changes in an output, at most, in parts of the output's scale
_MOST_BYTES = 2 << 30  # of weights: plain loops and copies in float32 take too long, and too much memory, for more


def is_quantized(imported: ImportedModel, options: CompileOptions) -> bool:
    """Whether a compile quantizes, or the model has weights in 8 bits."""
    return bool(options.quant) or any(weight.dtype in INTEGERS for weight in imported.weights.values())


def has_quantized_activations(options: CompileOptions) -> bool:
    """Whether activations may be rounded to integers: in every quantized file, and where the scheme of a compile says it."""
    return not options.quant or parse_scheme(options.quant).has_quantized_activations


@dataclass(frozen=True)
class QuantizedReference:
    """The model, behind the passes that quantize, as a function of its inputs."""

    model: ImportedModel

    @classmethod
    def of(cls, imported: ImportedModel, options: CompileOptions) -> QuantizedReference:
        """Of a model before any pass. Raises UserError for one that is too large."""
        num_bytes = sum(math.prod(each.shape) * DTYPES[each.dtype].num_bytes for each in imported.weights.values())
        if num_bytes > _MOST_BYTES:
            raise UserError(f"{num_bytes:,} bytes of weights are too many for MLIR's reference lowering")
        return cls(behind_quantizing(imported, options, backend_of(options)))

    def __call__(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the outputs. Raises UnsupportedError where upstream can't lower an op."""
        return self._with(self.model.weights, inputs)

    def moved(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the outputs with each element of the float32 weights moved by one rounding.

        Code rounds sums in another order, and a number of an activation in 8 bits that lies between two goes to the other one then, and
        makes more of the next layer do so: this measures what becomes of it.
        """
        return self._with({name: _moved(weight) for name, weight in self.model.weights.items()}, inputs)

    def _with(self, weights: Mapping[str, Weight], inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        return reference_of(self.model.module, weights, opt_level=0)(inputs)


def _moved(weight: Weight) -> Weight:
    return replace(weight, load=lambda: moved_by_one_rounding(weight.load(), weight.shape[0] if weight.shape else 0))
