"""Blocks of every type: the bits of the gguf package's dequantization, as floats and as integers with scales and minimums."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from llmos.compiler.analysis.quantization import RANGES
from llmos.models.gguf.blocks import dequantized, unpacked
from llmos.models.gguf.types import TYPES, BlockType
from llmos.runtime.errors import UserError

KINDS = {gguf.GGMLQuantizationType(code): kind for code, kind in TYPES.items()}
QUANTIZED = {kind.name: (code, kind) for code, kind in KINDS.items() if kind.is_quantized}
HALVES = {"Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
GROUPS = {"Q4_0": 32, "Q4_1": 32, "Q5_0": 32, "Q5_1": 32, "Q8_0": 32, "Q4_K": 32, "Q5_K": 32, "Q6_K": 16}


def random_blocks(kind: BlockType, count: int, seed: int = 0) -> np.ndarray:
    """All bits random but those of the scales, which are finite halves of both signs, zeros and subnormals among them."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, kind.num_bytes), dtype=np.uint8)
    for place in HALVES[kind.name]:
        scales = (rng.standard_normal(count) * 10.0 ** rng.integers(-8, 4, count)).astype(np.float16)
        scales[rng.random(count) < 0.1] = 0
        blocks[:, place : place + 2] = scales.view(np.uint8).reshape(count, 2)
    return blocks


@pytest.mark.parametrize("name", QUANTIZED)
def test_bits_of_random_blocks(name: str) -> None:
    code, kind = QUANTIZED[name]
    blocks = random_blocks(kind, 1000)
    wanted = gguf.dequantize(blocks, code)
    got = dequantized(blocks.reshape(-1), kind).reshape(wanted.shape)
    np.testing.assert_array_equal(got.view(np.uint32), wanted.view(np.uint32))


@pytest.mark.parametrize("name", QUANTIZED)
def test_integers_are_the_weights(name: str) -> None:
    """Values in the range of their type; the scales' groups lie along rows."""
    _, kind = QUANTIZED[name]
    blocks = random_blocks(kind, 24)
    found = unpacked(blocks.reshape(-1), kind, (3, 2, 4 * kind.elements))
    assert found.values.shape == (3, 2, 4 * kind.elements) and found.group_size == GROUPS[name]
    assert found.scales.shape == (3, 2, 4 * kind.elements // found.group_size) and found.scales.dtype == np.float32
    low, high = RANGES[found.dtype]
    assert found.values.min() >= low and found.values.max() <= high
    assert found.values.dtype == (np.uint8 if found.dtype.startswith("u") else np.int8)
    weight = found.values * np.repeat(found.scales, found.group_size, axis=-1)
    if found.minimums is not None:
        weight = weight + np.repeat(found.minimums, found.group_size, axis=-1)
    np.testing.assert_array_equal(weight.reshape(-1), dequantized(blocks.reshape(-1), kind))


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_what_the_package_quantizes(name: str) -> None:
    code = gguf.GGMLQuantizationType[name]
    rows = np.random.default_rng(1).standard_normal((5, 96)).astype(np.float32)
    data = np.ascontiguousarray(gguf.quantize(rows, code)).view(np.uint8)
    got = dequantized(data.reshape(-1), KINDS[code]).reshape(rows.shape)
    np.testing.assert_array_equal(got, gguf.dequantize(data, code).reshape(rows.shape))
    assert np.abs(got - rows).max() < (1e-6 if name == "F32" else 0.5)


def test_many_blocks_are_taken_in_parts() -> None:
    code, kind = QUANTIZED["Q4_1"]
    blocks = random_blocks(kind, (1 << 15) + 7)
    np.testing.assert_array_equal(dequantized(blocks.reshape(-1), kind), gguf.dequantize(blocks, code).reshape(-1))
    assert unpacked(blocks.reshape(-1), kind, (len(blocks), 32)).scales.shape == (len(blocks), 1)


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scales_that_are_no_numbers(name: str, value: float) -> None:
    _, kind = QUANTIZED[name]
    for place in HALVES[name]:
        blocks = random_blocks(kind, 6)
        blocks[3, place : place + 2] = np.array([value], np.float16).view(np.uint8)
        with pytest.raises(UserError, match="NaN or infinite"):
            dequantized(blocks.reshape(-1), kind)
        with pytest.raises(UserError, match="NaN or infinite"):
            unpacked(blocks.reshape(-1), kind, (6, kind.elements))
