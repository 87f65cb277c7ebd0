"""What the metadata of an artifact say of generation: the shape of its cache, its context and its special tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmos.runtime.artifact.dtypes import DTYPES
from llmos.runtime.artifact.fields import Fields
from llmos.runtime.errors import ArtifactError

TEXT_GENERATION = "text-generation"  # metadata["task"] of an artifact that generates
GENERATION = "generation"  # metadata key: the fields of GenerationSpec
CACHE_DTYPES = ("float32", "bfloat16", "int8")


@dataclass(frozen=True)
class CacheSpec:
    """The cache of one layer, [blocks, *block_shape]. window: how many positions, its own included, a token attends to; None: all."""

    name: str
    block_shape: tuple[int, ...]
    window: int | None = None


@dataclass(frozen=True)
class GenerationSpec:
    """A causal language model as the engine sees it.

    block_size: tokens of a block. kv_dtype: of the caches. max_length: most positions of a request. defaults: sampling parameters that the
    model's authors recommend.
    """

    vocab_size: int
    max_length: int
    caches: tuple[CacheSpec, ...]
    block_size: int = 16
    kv_dtype: str = "float32"
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def block_bytes(self) -> int:
        """Return the bytes of a block in all caches."""
        return sum(math.prod(cache.block_shape) for cache in self.caches) * DTYPES[self.kv_dtype].num_bytes

    @property
    def window(self) -> int | None:
        """Return the window behind which no layer reads, None if some layer reads everything."""
        windows = [cache.window for cache in self.caches]
        return None if None in windows else max((window for window in windows if window is not None), default=None)

    @classmethod
    def of(cls, metadata: Mapping[str, Any], block_shapes: Mapping[str, tuple[int, ...]]) -> GenerationSpec:
        """Read the metadata of a manifest, with the shape of a block of each cache.

        Raises ArtifactError if they are not those of a causal language model.
        """
        if metadata.get("task") != TEXT_GENERATION or GENERATION not in metadata:
            raise ArtifactError("this artifact does not generate text: compile the directory of a causal language model")
        fields = Fields(f"metadata.{GENERATION}", metadata[GENERATION])
        caches = tuple(_cache(Fields(f"{fields.path}.caches[{i}]", each), block_shapes) for i, each in enumerate(fields.array("caches")))
        spec = cls(
            vocab_size=fields.integer("vocab_size"),
            max_length=fields.integer("max_length"),
            caches=caches,
            block_size=fields.integer("block_size"),
            kv_dtype=fields.string("kv_dtype"),
            eos_token_ids=tuple(int(each) for each in fields.array("eos_token_ids")),
            bos_token_id=fields.value.get("bos_token_id"),
            defaults=fields.value.get("defaults") or {},
        )
        _check(spec, fields.path)
        return spec


def _cache(fields: Fields, block_shapes: Mapping[str, tuple[int, ...]]) -> CacheSpec:
    name, window = fields.string("name"), fields.value.get("window")
    if name not in block_shapes:
        raise ArtifactError(f"{fields.path}.name: the entry has no input {name!r}")
    return CacheSpec(name, block_shapes[name], None if window is None else fields.integer("window"))


def _check(spec: GenerationSpec, path: str) -> None:
    sizes = ("vocab_size", "max_length", "block_size")
    wrong = [name for name in sizes if getattr(spec, name) < 1]
    if wrong:
        raise ArtifactError(f"{path}.{wrong[0]}: must be 1 or more")
    if not spec.caches or any(cache.window is not None and cache.window < 1 for cache in spec.caches):
        raise ArtifactError(f"{path}.caches: must be a list of caches whose windows are null or 1 or more")
    if spec.kv_dtype not in CACHE_DTYPES:
        raise ArtifactError(f"{path}.kv_dtype: must be one of {', '.join(CACHE_DTYPES)}, not {spec.kv_dtype!r}")
