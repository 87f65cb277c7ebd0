"""Scales that a model stores for what it quantizes: finite, and not 0 where they divide."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from llmos.compiler.analysis.quantization import Quantization, quantizations
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.ir.functions import EntryFunc, public_functions
from llmos.runtime.errors import UserError


def check_stored_scales(imported: ImportedModel) -> None:
    """Check each scale that is a number or a weight as the model has it. Raises UserError, one line, that names the weight."""
    names = {each.value: each.name for func in public_functions(imported.module) for each in EntryFunc(func).arguments.weights}
    for found in quantizations(imported.module):
        scale = found.scale
        if isinstance(scale, float):
            _check(found, [scale], f"a scale of {scale:g}")
        elif scale in names and names[scale] in imported.weights:
            weight = imported.weights[names[scale]]
            if weight.dtype in ("float16", "float32", "float64"):
                _check(found, weight.load(), f"the scale {names[scale]!r}")


def _check(found: Quantization, values: np.ndarray | Sequence[float], what: str) -> None:
    numbers = np.asarray(values, np.float64)
    if not np.isfinite(numbers).all():
        raise UserError(f"the model {found.kind}s by {what}, which is NaN or infinite; quantize the model again")
    if found.kind == "quantize" and not math.prod(numbers.shape) == np.count_nonzero(numbers):
        raise UserError(f"the model quantizes by {what}, which is 0; quantize the model again")
