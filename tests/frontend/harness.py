"""Imports a small module and runs it by the reference lowering at sizes that differ from the traced ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.frontend.torch import import_torch
from tests.reference import Executor

BATCH = torch.export.Dim("batch", min=1, max=64)
TOKENS = torch.export.Dim("tokens", min=1, max=128)

# A tensor's dims: "B" and "T" are dynamic; a leading dtype name says what else than float32 it holds.
Spec = tuple[str | int, ...]
X: tuple[Spec, ...] = (("B", "T", 8),)
SIZES = ((2, 5), (4, 3), (1, 1))


def module_of(function: Any) -> nn.Module:
    """A function of tensors as a module."""
    if isinstance(function, nn.Module):
        return function.eval()
    return type("Module", (nn.Module,), {"forward": staticmethod(function)})().eval()


def arrays(specs: Sequence[Spec], batch: int, tokens: int, seed: int = 0) -> list[np.ndarray]:
    """Random inputs; integers are 0 to 5."""
    rng = np.random.default_rng(seed)
    return [_array(rng, spec, {"B": batch, "T": tokens}) for spec in specs]


def _array(rng: np.random.Generator, spec: Spec, sizes: dict[str, int]) -> np.ndarray:
    dims = [sizes.get(str(dim), dim) for dim in spec if dim not in ("int64", "bool")]
    if spec and spec[0] == "int64":
        return rng.integers(0, 6, dims)  # type: ignore[arg-type]
    values = rng.standard_normal(dims, dtype=np.float32)  # type: ignore[arg-type]
    return values > 0 if spec and spec[0] == "bool" else values


def dynamic_shapes(specs: Sequence[Spec]) -> tuple[dict[int, Any], ...]:
    named = {"B": BATCH, "T": TOKENS}
    return tuple(
        {i: named[str(dim)] for i, dim in enumerate(d for d in spec if d not in ("int64", "bool")) if dim in named} for spec in specs
    )


def imported(function: Any, specs: Sequence[Spec] = X, trace: tuple[int, int] = (3, 7)) -> ImportedModel:
    example = tuple(torch.from_numpy(array) for array in arrays(specs, *trace))
    return import_torch(module_of(function), example, dynamic_shapes(specs))


def check(function: Any, specs: Sequence[Spec] = X, sizes: Sequence[tuple[int, int]] = SIZES, tolerance: float = 2e-6) -> ImportedModel:
    """The imported model equals eager torch at every size: shapes, dtypes, NaNs, and values relative to the output's scale."""
    model = imported(function, specs)
    execute = Executor(model.module, model.weights)
    assert model.reference is not None
    for batch, tokens in sizes:
        inputs = arrays(specs, batch, tokens, seed=batch * 100 + tokens)
        for got, want in zip(execute(inputs), model.reference(inputs), strict=True):
            assert (got.shape, got.dtype) == (want.shape, want.dtype)
            scale = max(1.0, float(np.max(np.abs(want), initial=0.0, where=np.isfinite(want))))
            np.testing.assert_allclose(got / scale, want / scale, rtol=0, atol=tolerance)
    return model


def op_names(model: ImportedModel) -> list[str]:
    """Names of all ops of the module, in order, bodies of linalg ops left out."""
    block = model.module.body.operations[0].regions[0].blocks[0]
    return [op.operation.name for op in block.operations]
