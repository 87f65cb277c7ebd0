"""The interface that the engine needs of a model, and its implementation by a loaded program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from llmos.runtime.artifact.dtypes import DTYPES
from llmos.runtime.artifact.manifest import Manifest, RowSpec, TensorSpec
from llmos.runtime.errors import InputError

if TYPE_CHECKING:
    from llmos.runtime.program import Program

Array = np.ndarray[Any, Any]

SENTENCE_EMBEDDING = "sentence-embedding"


def storage_dtype(spec: TensorSpec) -> np.dtype[Any]:
    """Return the numpy dtype that stores a tensor: its own, or uint16 for bfloat16 bits."""
    return np.dtype(DTYPES[spec.dtype].storage)


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of an entry, the range [min, max] of each symbol, and the row analysis (None if it wasn't run)."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    symbols: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    rows: RowSpec | None = None

    def input(self, name: str) -> TensorSpec | None:
        return next((spec for spec in self.inputs if spec.name == name), None)


class Model(Protocol):
    """A model that the engine runs, one call at a time from one thread."""

    @property
    def name(self) -> str: ...
    @property
    def signature(self) -> Signature: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...
    def asset(self, name: str) -> bytes | None: ...
    def __call__(self, arrays: Sequence[Array]) -> list[Array]: ...
    def close(self) -> None:
        """End its use, and check that nothing wrote where it must not. Raises LlmosError."""
        ...


@dataclass(frozen=True)
class Batching:
    """How requests to a model may be batched.

    batch_symbol: the symbol of every tensor's first dimension, along which rows are independent; None: no batching.
    length_symbol: the symbol that is padded to the longest of a batch; None: requests of different sizes aren't batched.
    pad_values: the padding value of each input.
    """

    batch_symbol: str | None = None
    length_symbol: str | None = None
    pad_values: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Model) -> Batching:
        batch = _batch_symbol(model)
        if batch is None:
            return cls()
        length = _length_symbol(model)
        pads = {spec.name: 0 for spec in model.signature.inputs}
        if "input_ids" in pads:
            pads["input_ids"] = int(model.metadata.get("pad_token_id") or 0)
        return cls(batch, length, pads)


def _batch_symbol(model: Model) -> str | None:
    """Return the symbol whose rows the compiler has proven independent. The name `batch` alone proves nothing."""
    signature = model.signature
    symbol = signature.rows.independent if signature.rows else None
    tensors = (*signature.inputs, *signature.outputs)
    if symbol is None or not signature.inputs or any(spec.shape[:1] != (symbol,) for spec in tensors):
        return None
    return symbol


def _length_symbol(model: Model) -> str | None:
    """Return the token symbol of a sentence encoder: the attention mask hides the padding, and outputs don't have the symbol."""
    signature = model.signature
    mask = signature.input("attention_mask")
    if model.metadata.get("task") != SENTENCE_EMBEDDING or mask is None or len(mask.shape) != 2:
        return None
    symbol = mask.shape[1]
    if not isinstance(symbol, str) or any(spec.shape != mask.shape for spec in signature.inputs):
        return None
    return None if any(symbol in str(dim) for spec in signature.outputs for dim in spec.shape) else symbol


class ProgramModel:
    """An entry of a program as a `Model`, by default its default entry. Raises InputError for an unknown entry."""

    def __init__(self, program: Program, *, name: str | None = None, entry: str = "") -> None:
        manifest = program.manifest
        self._program = program
        self._entry = program[entry] if entry else program.default
        self._entry_name = entry
        if self._entry.state is not None:
            raise InputError(f"{manifest.name} keeps state from call to call, which requests can't share: run it with llmos.load")
        for spec in self._entry.inputs:
            if spec.updated:
                raise InputError(
                    f'{manifest.name} writes into its input "{spec.name}", which requests can\'t share: run it with llmos.load'
                )
        self.name: str = name or manifest.name
        self.metadata: Mapping[str, Any] = manifest.metadata_of(self._entry.spec.name)
        symbols = {symbol.name: (symbol.min, symbol.max) for symbol in manifest.symbols}
        self.signature = Signature(self._entry.inputs, self._entry.outputs, symbols, self._entry.spec.rows)

    @property
    def digest(self) -> str:
        """Return that of the artifact, which no other has."""
        return f"{self._program.artifact.digest} {self._entry_name}"

    def asset(self, name: str) -> bytes | None:
        artifact = self._program.artifact
        return artifact.asset(name) if f"assets/{name}" in artifact.manifest.assets else None

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        result = self._entry(*arrays)
        return list(result) if isinstance(result, tuple) else [result]

    def close(self) -> None:
        """End its use, and check code, weights and memory. Raises ArtifactError or ExecutionError."""
        try:
            self._program.check_integrity()
        finally:
            self._program.close()


def embedding_entry(manifest: Manifest) -> str | None:
    """Return the name of the entry that embeds texts; None where there is none."""
    names = [entry.name for entry in manifest.entries]
    return next((name for name in names if manifest.metadata_of(name).get("task") == SENTENCE_EMBEDDING), None)


def embedding_model(program: Program, name: str | None = None) -> ProgramModel | None:
    """Return the entry of a program that embeds texts, beside one that generates or alone; None where there is none.

    It is the program's, and ends with it: `close` is for who loaded the program.
    """
    entry = embedding_entry(program.manifest)
    return None if entry is None else ProgramModel(program, name=name, entry=entry)


def load_model(path: Path, name: str | None = None, entry: str = "") -> ProgramModel:
    """Load an entry of an artifact as a model. Raises ArtifactError, or InputError for an unknown entry."""
    from llmos.runtime.program import load

    return ProgramModel(load(path), name=name, entry=entry)
