"""What an artifact's metadata say of generation, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from llmos.runtime.engine.generate import CacheSpec, GenerationSpec
from llmos.runtime.errors import ArtifactError

GENERATION: dict[str, Any] = {
    "block_size": 16,
    "vocab_size": 512,
    "num_layers": 2,
    "num_kv_heads": 4,
    "head_dim": 8,
    "kv_dtype": "bfloat16",
    "max_length": 2048,
    "caches": [{"name": "cache.0", "window": None}, {"name": "cache.1", "window": 100}],
    "eos_token_ids": [2, 7],
    "bos_token_id": 1,
    "defaults": {"temperature": 0.6},
}


def metadata(**changes: Any) -> dict[str, Any]:
    return {"task": "text-generation", "generation": {**GENERATION, **changes}}


def test_the_fields_are_read() -> None:
    spec = GenerationSpec.of(metadata())
    assert spec.caches == (CacheSpec("cache.0"), CacheSpec("cache.1", 100))
    assert (spec.cache_shape, spec.block_bytes) == ((4, 2 * 16 * 8), 2 * 4 * 256 * 2)
    assert (spec.eos_token_ids, spec.bos_token_id, spec.defaults) == ((2, 7), 1, {"temperature": 0.6})


@pytest.mark.parametrize(("windows", "window"), [([None, 100], None), ([100, 200], 200), ([64], 64)])
def test_blocks_are_behind_the_window_of_every_layer(windows: list[int | None], window: int | None) -> None:
    caches = [{"name": f"cache.{layer}", "window": each} for layer, each in enumerate(windows)]
    assert GenerationSpec.of(metadata(caches=caches)).window == window


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, r"metadata.generation.vocab_size: must be 1 or more"),
        ({"head_dim": "8"}, r"metadata.generation.head_dim: expected an integer"),
        ({"caches": []}, "metadata.generation.caches: must be a list of caches"),
        ({"caches": [{"name": "cache.0", "window": 0}]}, "windows are null or 1 or more"),
        ({"kv_dtype": "float16"}, "kv_dtype: must be one of float32, bfloat16, not 'float16'"),
    ],
    ids=str,
)
def test_wrong_fields_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        GenerationSpec.of(metadata(**changes))


@pytest.mark.parametrize("found", [{}, {"task": "sentence-embedding"}, {"task": "text-generation"}])
def test_other_models_are_refused(found: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="does not generate text"):
        GenerationSpec.of(found)
