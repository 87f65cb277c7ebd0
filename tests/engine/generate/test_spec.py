"""What an artifact's metadata say of generation, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from llmos.runtime.engine.generate import CacheSpec, GenerationSpec
from llmos.runtime.errors import ArtifactError

GENERATION: dict[str, Any] = {
    "block_size": 16,
    "vocab_size": 512,
    "kv_dtype": "bfloat16",
    "max_length": 2048,
    "caches": [{"name": "cache.0", "window": None}, {"name": "cache.1", "window": 100}],
    "eos_token_ids": [2, 7],
    "bos_token_id": 1,
    "defaults": {"temperature": 0.6},
}
BLOCKS = {"cache.0": (4, 384), "cache.1": (2, 512)}


def metadata(**changes: Any) -> dict[str, Any]:
    return {"task": "text-generation", "generation": {**GENERATION, **changes}}


def test_the_fields_are_read() -> None:
    spec = GenerationSpec.of(metadata(), BLOCKS)
    assert spec.caches == (CacheSpec("cache.0", (4, 384)), CacheSpec("cache.1", (2, 512), 100))
    assert spec.block_bytes == (4 * 384 + 2 * 512) * 2
    assert GenerationSpec.of(metadata(kv_dtype="int8"), BLOCKS).block_bytes == 4 * 384 + 2 * 512
    assert (spec.eos_token_ids, spec.bos_token_id, spec.defaults) == ((2, 7), 1, {"temperature": 0.6})


@pytest.mark.parametrize(("windows", "window"), [([None, 100], None), ([100, 200], 200), ([64], 64)])
def test_blocks_are_behind_the_window_of_every_layer(windows: list[int | None], window: int | None) -> None:
    caches = [{"name": f"cache.{layer}", "window": each} for layer, each in enumerate(windows)]
    assert GenerationSpec.of(metadata(caches=caches), BLOCKS).window == window


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, r"metadata.generation.vocab_size: must be 1 or more"),
        ({"block_size": "16"}, r"metadata.generation.block_size: expected an integer"),
        ({"caches": [{"name": "cache.7"}]}, "the entry has no input 'cache.7'"),
        ({"caches": []}, "metadata.generation.caches: must be a list of caches"),
        ({"caches": [{"name": "cache.0", "window": 0}]}, "windows are null or 1 or more"),
        ({"kv_dtype": "float16"}, "kv_dtype: must be one of float32, bfloat16, int8, not 'float16'"),
    ],
    ids=str,
)
def test_wrong_fields_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        GenerationSpec.of(metadata(**changes), BLOCKS)


@pytest.mark.parametrize("found", [{}, {"task": "sentence-embedding"}, {"task": "text-generation"}])
def test_other_models_are_refused(found: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="does not generate text"):
        GenerationSpec.of(found, BLOCKS)
