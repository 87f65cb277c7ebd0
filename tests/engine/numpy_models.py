"""Small real models in numpy for tests of the engine and the server."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llmos.runtime.artifact.manifest import RowSpec, TensorSpec
from llmos.runtime.engine import Signature
from llmos.runtime.errors import ExecutionError

Array = np.ndarray[Any, Any]
SYMBOLS = {"batch": (1, 1024), "tokens": (1, 128)}
BY_BATCH = RowSpec("batch")
VOCABULARY = 1000


def tensor(name: str, dtype: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name, dtype, shape)


class Gate(Protocol):
    """What a model waits for before it computes: a threading.Event, or a file for a model in another process."""

    def wait(self, timeout: float | None = None, /) -> bool: ...

    def set(self) -> None: ...


@dataclass(frozen=True)
class FileGate:
    """Open once its file exists."""

    path: Path

    def wait(self, timeout: float | None = None, /) -> bool:
        end_s = time.monotonic() + (60 if timeout is None else timeout)
        while not self.path.exists() and time.monotonic() < end_s:
            time.sleep(0.002)
        return self.path.exists()

    def set(self) -> None:
        self.path.touch()


@dataclass
class NumpyModel:
    """Base of the models: counts its calls and can be slowed down or held at a gate."""

    name: str = "model"
    signature: Signature = field(default_factory=lambda: Signature((), ()))
    metadata: Mapping[str, Any] = field(default_factory=dict)
    assets: Mapping[str, bytes] = field(default_factory=dict)
    delay_s: float = 0.0
    gate: Gate | None = None
    digest: str = ""
    batches: list[tuple[int, ...]] = field(default_factory=list)

    def asset(self, name: str) -> bytes | None:
        return self.assets.get(name)

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        self.batches.append(arrays[0].shape)
        if self.gate is not None:
            assert self.gate.wait(60)
        time.sleep(self.delay_s)
        return self.compute(arrays)

    def compute(self, arrays: Sequence[Array]) -> list[Array]:
        raise NotImplementedError

    def close(self) -> None:
        pass


class Encoder(NumpyModel):
    """A sentence encoder: masked mean of an embedding table through one layer, normalized; ids outside the table fail the call.

    Sums run token by token, so that padding changes no bit, as in compiled kernels.
    """

    def __init__(self, width: int = 16, **options: Any) -> None:
        ids, mask = tensor("input_ids", "int64", "batch", "tokens"), tensor("attention_mask", "int64", "batch", "tokens")
        signature = Signature((ids, mask), (tensor("embeddings", "float32", "batch", width),), SYMBOLS, BY_BATCH)
        metadata = {"task": "sentence-embedding", "max_length": 64, **options.pop("metadata", {})}
        super().__init__(signature=signature, metadata=metadata, **options)
        random = np.random.default_rng(7)
        self.table = random.standard_normal((VOCABULARY, width)).astype(np.float32)
        self.weight = random.standard_normal((width, width)).astype(np.float32)

    def compute(self, arrays: Sequence[Array]) -> list[Array]:
        ids, mask = arrays
        if ids.min() < 0 or ids.max() >= VOCABULARY:
            raise ExecutionError("an index is out of range")
        total = np.zeros((len(ids), self.table.shape[1]), np.float32)
        for token in range(ids.shape[1]):
            total += self.table[ids[:, token]] * mask[:, token, None].astype(np.float32)
        hidden = np.tanh(np.einsum("bi,ij->bj", total / mask.sum(1, keepdims=True).astype(np.float32), self.weight))
        return [(hidden / np.sqrt((hidden * hidden).sum(1, keepdims=True))).astype(np.float32)]


class Affine(NumpyModel):
    """y = 2 x + 1 over [batch, 3], and the sum of each row."""

    def __init__(self, **options: Any) -> None:
        outputs = (tensor("y", "float32", "batch", 3), tensor("sum", "float64", "batch"))
        super().__init__(signature=Signature((tensor("x", "float32", "batch", 3),), outputs, SYMBOLS, BY_BATCH), **options)

    def compute(self, arrays: Sequence[Array]) -> list[Array]:
        return [2 * arrays[0] + 1, arrays[0].sum(1, dtype=np.float64)]


class Echo(NumpyModel):
    """Gives back one input of each dtype, unchanged."""

    DTYPES = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")

    def __init__(self, **options: Any) -> None:
        inputs = tuple(tensor(f"in_{dtype}", dtype, "rows", 2) for dtype in self.DTYPES)
        outputs = tuple(tensor(f"out_{dtype}", dtype, "rows", 2) for dtype in self.DTYPES)
        super().__init__(signature=Signature(inputs, outputs, {"rows": (0, 8)}, RowSpec("rows")), **options)

    def compute(self, arrays: Sequence[Array]) -> list[Array]:
        return list(arrays)


class NotFinite(NumpyModel):
    """Divides [batch, 3] by zero: 0 gives NaN, all else an infinity."""

    def __init__(self, **options: Any) -> None:
        x = tensor("x", "float32", "batch", 3)
        super().__init__(signature=Signature((x,), (x,), SYMBOLS, BY_BATCH), **options)

    def compute(self, arrays: Sequence[Array]) -> list[Array]:
        with np.errstate(divide="ignore", invalid="ignore"):
            return [arrays[0] / np.float32(0)]
