"""A program as a step model: what is asked of its entry, and how its inputs are passed."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmos.runtime.artifact.manifest import Symbol, TensorSpec
from llmos.runtime.dlpack import Exported
from llmos.runtime.engine.generate import ProgramStepModel, StepSizes
from llmos.runtime.errors import ArtifactError

from .test_spec import metadata

STEP = (
    TensorSpec("tokens", "int32", ("tokens",)),
    TensorSpec("positions", "int32", ("tokens",)),
    TensorSpec("slots", "int32", ("tokens",)),
    TensorSpec("token_requests", "int32", ("tokens",)),
    TensorSpec("block_tables", "int32", ("requests", "width")),
    TensorSpec("logit_rows", "int32", ("rows",)),
    TensorSpec("cache.0", "bfloat16", ("blocks", 4, 384), updated=True),
    TensorSpec("cache.1", "bfloat16", ("blocks", 2, 512), updated=True),
)
SYMBOLS = tuple(Symbol(name, 1, most) for name, most in (("tokens", 99), ("requests", 7), ("rows", 11), ("width", 50), ("blocks", 1000)))


@dataclass
class FakeEntry:
    """Keeps what it is called with."""

    inputs: tuple[TensorSpec, ...]
    calls: list[tuple[Exported, ...]] = field(default_factory=list)

    def __call__(self, *inputs: Exported) -> Any:
        self.calls.append(inputs)
        return np.zeros((1, 512), np.float32)


def program_of(inputs: tuple[TensorSpec, ...] = STEP) -> Any:
    manifest = SimpleNamespace(name="lm", metadata=metadata(), symbols=SYMBOLS)
    return SimpleNamespace(manifest=manifest, default=FakeEntry(inputs))


def test_sizes_are_those_of_the_symbols() -> None:
    model = ProgramStepModel(program_of())
    assert (model.name, model.sizes) == ("lm", StepSizes(max_tokens=99, max_requests=7, max_rows=11, max_blocks=1000))
    assert [cache.block_shape for cache in model.spec.caches] == [(4, 384), (2, 512)]


def test_a_fixed_width_of_block_tables() -> None:
    fixed = tuple(TensorSpec(spec.name, spec.dtype, ("requests", 32)) if spec.name == "block_tables" else spec for spec in STEP)
    assert ProgramStepModel(program_of(fixed)).sizes.table_width == 32


def test_another_entry_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"takes positions, tokens, slots, .* where tokens, positions, slots, .* are"):
        ProgramStepModel(program_of((STEP[1], STEP[0], *STEP[2:])))


def test_an_array_is_exported_once() -> None:
    program = program_of()
    model = ProgramStepModel(program)
    arrays = [np.zeros(3, np.int32) for _ in range(8)]
    model(arrays)
    model(arrays[:7] + [np.zeros(4, np.int32)])
    first, second = program.default.calls
    assert all(a is b for a, b in zip(first[:7], second[:7], strict=True))
    assert first[7] is not second[7]
    assert [exported.array for exported in first] == arrays
