"""The interface that the engine needs of a language model, and its implementation by a loaded program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from llmos.runtime.artifact.dtypes import DTYPES
from llmos.runtime.artifact.manifest import TensorSpec
from llmos.runtime.engine.generate.spec import GenerationSpec
from llmos.runtime.engine.model import Array
from llmos.runtime.errors import ArtifactError
from llmos.runtime.repeated_call import RepeatedCall

if TYPE_CHECKING:
    from llmos.runtime.program import Program

STEP_INPUTS = ("tokens", "positions", "slots", "token_requests", "block_tables", "logit_rows")  # before the caches, in the entry's order


@dataclass(frozen=True)
class StepSizes:
    """The largest sizes of one call. table_width: of block_tables, where it is fixed; None: any width."""

    max_tokens: int
    max_requests: int
    max_rows: int
    max_blocks: int = 2**31 - 1
    table_width: int | None = None


class StepModel(Protocol):
    """A causal language model that computes one step, from one thread.

    A call takes STEP_INPUTS (int32: ids and absolute positions of all tokens of the step, request after request; where their keys and
    values go, block * block_size + offset; the row of block_tables [requests, width] that each belongs to; the tokens whose logits are
    wanted, one or more) and the caches, which it updates, and gives the logits, float32 [rows, vocab_size], which the next call may
    overwrite. What it gives for a token depends on that token's request alone, bit for bit. Raises LlmosError; a failed call may have
    written to the slots of its tokens.
    """

    @property
    def name(self) -> str:
        """Return the name of the model."""
        ...

    @property
    def spec(self) -> GenerationSpec:
        """Return the shape of the cache, the context and the special tokens."""
        ...

    @property
    def sizes(self) -> StepSizes:
        """Return the largest sizes of a call."""
        ...

    def __call__(self, arrays: Sequence[Array]) -> Array:
        """Compute one step."""
        ...

    def new_caches(self, num_blocks: int) -> list[Array]:
        """Return caches of so many blocks, where a step reads and writes them. Raises ExecutionError if there is not enough memory."""
        ...

    def free_bytes(self) -> int:
        """Return the bytes of memory, where the caches would be, that can still be used."""
        ...

    def close(self) -> None:
        """End its use, and check that nothing wrote where it must not. Raises LlmosError."""
        ...


class ProgramStepModel:
    """The entry `main` of an artifact of a causal language model. Raises ArtifactError if it is none."""

    def __init__(self, program: Program, name: str | None = None) -> None:
        manifest = program.manifest
        self.name: str = name or manifest.name
        self._program = program
        self._entry = program.default
        self.spec = GenerationSpec.of(manifest.metadata, _block_shapes(self._entry.inputs))
        expected = (*STEP_INPUTS, *(cache.name for cache in self.spec.caches))
        found = tuple(spec.name for spec in self._entry.inputs)
        if found != expected:
            raise ArtifactError(f"{manifest.name}: the step takes {', '.join(found)} where {', '.join(expected)} are expected")
        ranges = {symbol.name: symbol.max for symbol in manifest.symbols}
        dims = {spec.name: [dim if isinstance(dim, int) else ranges[dim] for dim in spec.shape] for spec in self._entry.inputs}
        width = self._entry.inputs[STEP_INPUTS.index("block_tables")].shape[1]
        self._call = RepeatedCall(self._entry)
        self.sizes = StepSizes(
            max_tokens=dims["tokens"][0],
            max_requests=dims["block_tables"][0],
            max_rows=dims["logit_rows"][0],
            max_blocks=dims[self.spec.caches[0].name][0],
            table_width=width if isinstance(width, int) else None,
        )

    def __call__(self, arrays: Sequence[Array]) -> Array:
        """Compute one step. The next one overwrites its logits."""
        return self._call(arrays)[0]

    def new_caches(self, num_blocks: int) -> list[Array]:
        """Return caches in the memory of the program's device."""
        device, spec = self._program.device, self.spec
        return [cast("Array", device.zeros((num_blocks, *cache.block_shape), spec.kv_dtype)) for cache in spec.caches]

    def free_bytes(self) -> int:
        """Return the bytes of the device's memory that can still be used."""
        return self._program.device.free_bytes()

    def close(self) -> None:
        """End its use, and check code, weights and memory. Raises ArtifactError or ExecutionError."""
        try:
            self._program.check_integrity()
        finally:
            self._program.close()


def host_caches(spec: GenerationSpec, num_blocks: int) -> list[Array]:
    """Return caches in the host's memory."""
    dtype = np.dtype(DTYPES[spec.kv_dtype].storage)
    return [np.zeros((num_blocks, *cache.block_shape), dtype) for cache in spec.caches]


def _block_shapes(inputs: Sequence[TensorSpec]) -> dict[str, tuple[int, ...]]:
    """Return the shape of a block of each input that a step updates."""
    return {spec.name: tuple(dim for dim in spec.shape[1:] if isinstance(dim, int)) for spec in inputs if spec.updated}
