"""Ranges of activations on calibration inputs, for static W8A8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.calibration.native import NativeProgram
from llmos.compiler.calibration.statistics import Step, prepend_results
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.ir.attributes import ACTIVATION_RANGES, tensor_attributes
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import EntryFunc
from llmos.compiler.quant.static import fitted_range
from llmos.passes.quant._static import activations_of, static_products
from llmos.runtime.errors import UserError

SAMPLE = 1 << 14  # elements of an activation that are kept of a call
MAX_CALLS = 32  # of which elements are kept


def activation_ranges(
    prepared: ImportedModel, inputs: Sequence[Sequence[np.ndarray]], options: CompileOptions, step: Step
) -> list[tuple[float, float]]:
    """Run what `before_integers` gave on calibration inputs; return the range of each activation, by its number in `activations_of`.

    Raises UserError for a model with nothing to quantize, and where an activation is NaN or infinite.
    """
    with prepared.module.context, ir.Location.unknown():
        module = ir.Module.parse(str(prepared.module))
        entry = EntryFunc.of(module)
        products = static_products(entry)
        values = activations_of(products)
        labels = [next(each.label for each in products if each.source == value) for value in values]
        prepend_results(entry, values, [tensor_attributes(f"observed.{number}", "float32") for number in range(len(values))])
    if not labels:
        raise UserError(f"--quant {options.quant}: the model has no product or convolution of activations and weights in float32")
    program = NativeProgram.of(ImportedModel(prepared.name, module, prepared.weights), [], replace(options, quant="", calibrate=None))
    collected = [_Range(label) for label in labels]
    for done, each in enumerate(inputs, 1):
        for seen, array in zip(collected, program.run(each), strict=False):
            seen.add(array)
        step(done, len(inputs))
    return [each.fitted() for each in collected]


def with_ranges(imported: ImportedModel, ranges: Sequence[tuple[float, float]]) -> ImportedModel:
    """Return a copy of the model, whose entry has the ranges as the attribute that quantize-static reads."""
    with imported.module.context, ir.Location.unknown():
        module = ir.Module.parse(str(imported.module))
        EntryFunc.of(module).op.attributes[ACTIVATION_RANGES] = ir.DenseF64ArrayAttr.get([bound for each in ranges for bound in each])
    return replace(imported, module=module)


@dataclass
class _Range:
    """What was seen of one activation: its lowest and highest element, and a sample."""

    label: str
    low: float = 0.0
    high: float = 0.0
    sample: list[np.ndarray] = field(default_factory=list)

    def add(self, array: np.ndarray) -> None:
        low, high = float(array.min(initial=0)), float(array.max(initial=0))
        if not np.isfinite([low, high]).all():
            raise UserError(f"calibration inputs make NaN or infinite values in front of {self.label}: leave them out of the data")
        self.low, self.high = min(self.low, low), max(self.high, high)
        if len(self.sample) < MAX_CALLS:
            self.sample.append(array.reshape(-1)[:: -(-array.size // SAMPLE) or 1].copy())

    def fitted(self) -> tuple[float, float]:
        return fitted_range(self.low, self.high, np.concatenate(self.sample))
