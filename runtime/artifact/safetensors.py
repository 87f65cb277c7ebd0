"""The weights member: a safetensors file whose tensors are aligned to 64 bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from math import prod

from llmos.runtime.artifact.dtypes import DTYPES
from llmos.runtime.artifact.manifest import WeightSpec
from llmos.runtime.errors import ArtifactError
from llmos.runtime.native.abi import ALIGNMENT

# The format allows no gaps between tensors, so padding is a tensor with this name and a number.
PADDING_PREFIX = "__padding__."


def layout(weights: Iterable[tuple[str, str, tuple[int, ...]]]) -> tuple[WeightSpec, ...]:
    """Lay out (name, dtype, shape) consecutively. Raises ArtifactError for an unknown dtype or a reserved name."""
    specs: list[WeightSpec] = []
    offset = 0
    for name, dtype, shape in weights:
        if dtype not in DTYPES:
            raise ArtifactError(f"weight {name!r}: dtype {dtype!r} can't be stored")
        if is_reserved(name):
            raise ArtifactError(f"weight {name!r}: the name is reserved")
        num_bytes = prod(shape) * DTYPES[dtype].num_bytes
        specs.append(WeightSpec(name, dtype, tuple(int(dim) for dim in shape), offset, num_bytes))
        offset += aligned(num_bytes)
    return tuple(specs)


def is_reserved(name: str) -> bool:
    """Whether a name is reserved by the file format."""
    return name.startswith(PADDING_PREFIX) or name == "__metadata__"


def aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def data_bytes(weights: tuple[WeightSpec, ...]) -> int:
    return weights[-1].offset + aligned(weights[-1].num_bytes) if weights else 0


def header(weights: tuple[WeightSpec, ...]) -> bytes:
    """Return the length field and the JSON header, padded with spaces to a multiple of 64 bytes."""
    tensors: dict[str, object] = {}
    for index, weight in enumerate(weights):
        end = weight.offset + weight.num_bytes
        tensors[weight.name] = _tensor(DTYPES[weight.dtype].safetensors, weight.shape, weight.offset, end)
        if end % ALIGNMENT:
            tensors[f"{PADDING_PREFIX}{index}"] = _tensor("U8", (-end % ALIGNMENT,), end, aligned(end))
    text = json.dumps(tensors, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _tensor(dtype: str, shape: tuple[int, ...], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
