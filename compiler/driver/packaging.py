"""From what the backend gives to the contents of an artifact."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from llmos.compiler.backends.base import Backend, CompiledModel
from llmos.compiler.driver.saved import Sidecar
from llmos.compiler.ir.weights import Weight
from llmos.compiler.support import versions
from llmos.runtime.artifact.accuracy import ACCURACY_MEMBER, AccuracyReport
from llmos.runtime.artifact.writer import ArtifactContents


def contents(model: Sidecar, compiled: CompiledModel, backend: Backend, accuracy_report: AccuracyReport | None = None) -> ArtifactContents:
    """Everything that goes into the file; nothing of this machine, so that the same input gives the same bytes."""
    return ArtifactContents(
        name=model.name,
        entries=compiled.entries,
        symbols=compiled.symbols,
        computed=compiled.computed,
        weights=compiled.weights,
        code=[backend.member(target, data) for target, data in compiled.code.items()],
        kernels=compiled.kernels,
        producer=versions.producer(),
        plan=compiled.plan,
        passes=compiled.passes,
        metadata=model.metadata,
        assets=model.assets,
        extras={ACCURACY_MEMBER: accuracy_report.to_json()} if accuracy_report else {},
    )


def weights_with_nan(weights: Mapping[str, Weight]) -> list[str]:
    """Names of the weights that hold a NaN."""
    return [name for name, weight in weights.items() if _has_nan(weight)]


def _has_nan(weight: Weight) -> bool:
    array = weight.load()
    if array.size == 0:
        return False
    if weight.dtype == "bfloat16":
        return bool(((array & 0x7FFF) > 0x7F80).any())
    # The minimum of values with a NaN among them is NaN: one pass and no temporary.
    return array.dtype.kind == "f" and bool(np.isnan(array.min()))
