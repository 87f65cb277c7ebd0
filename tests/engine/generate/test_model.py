"""A program as a step model: what is asked of its entry."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from llmos.runtime.artifact.manifest import Symbol, TensorSpec
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
    """An entry of these inputs, which isn't called."""

    inputs: tuple[TensorSpec, ...]
    state: None = None
    resized: tuple[int, ...] = ()
    output_slices: tuple[Any, ...] = ()
    spec: Any = field(default_factory=lambda: SimpleNamespace(outputs=()))


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
