"""The result of every front end (docs/architecture.md, "The linalg stage")."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmos.compiler.analysis.quantization import summary
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.weights import Weight
from llmos.runtime.artifact.manifest import QUANTIZATION

Reference = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


@dataclass(frozen=True)
class ImportedModel:
    """A model as linalg on tensors, with its weights stored separately."""

    name: str
    module: ir.Module
    weights: Mapping[str, Weight]
    reference: Reference | None = None
    examples: tuple[tuple[np.ndarray, ...], ...] = ()
    assets: Mapping[str, bytes] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)


def with_quantization(metadata: Mapping[str, Any], module: ir.Module) -> dict[str, Any]:
    """Return the metadata and what the module says of quantization, where it has any."""
    found = summary(module)
    return {**metadata, QUANTIZATION: found} if found else dict(metadata)
