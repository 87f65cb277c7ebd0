"""Blocks of GGUF tensors as integers with scales and minimums, and as floats (formulas: ggml-quants.c, dequantize_row_*).

    weight = values * scales + minimums, a scale and a minimum for `group_size` elements of a row

All scales are products of floats in float32, in ggml's order, so that the weights have its bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from llmos.models.gguf.types import BlockType
from llmos.runtime.errors import UserError

_CHUNK = 1 << 14  # blocks at a time: temporaries stay small beside the tensor


@dataclass(frozen=True)
class BlockIntegers:
    """values: int8 or uint8 of the tensor's shape. scales, minimums: float32 [..., row / group_size]; minimums None for 0.

    dtype: the smallest type of 4 or 8 bits that holds the values: "int4", "uint4", "int8" or "uint8".
    """

    values: np.ndarray
    scales: np.ndarray
    minimums: np.ndarray | None
    dtype: str
    group_size: int


@dataclass(frozen=True)
class Parts:
    """Of n blocks: values [n, elements], scales and minimums [n, groups]."""

    values: np.ndarray
    scales: np.ndarray
    minimums: np.ndarray | None = None


def unpacked(data: np.ndarray, kind: BlockType, shape: tuple[int, ...]) -> BlockIntegers:
    """The blocks of a quantized tensor as integers. Raises UserError for a scale or minimum that is NaN or infinite."""
    chunks = [_split(blocks, kind) for blocks in _chunks(data, kind)]
    values, scales, minimums = (_joined([getattr(each, name) for each in chunks]) for name in ("values", "scales", "minimums"))
    assert values is not None and scales is not None
    groups = (*shape[:-1], shape[-1] // kind.elements * scales.shape[1])
    return BlockIntegers(
        values.reshape(shape),
        scales.reshape(groups),
        None if minimums is None else minimums.reshape(groups),
        DTYPES[kind.name],
        kind.elements // scales.shape[1],
    )


def dequantized(data: np.ndarray, kind: BlockType) -> np.ndarray:
    """float32 [elements]. Raises UserError for a scale or minimum that is NaN or infinite."""
    if not kind.is_quantized:
        return _floats(data, kind.name)
    chunks = _chunks(data, kind)
    found = np.empty((sum(map(len, chunks)), kind.elements), np.float32)
    done = 0
    for blocks in chunks:
        parts = _split(blocks, kind)
        out = found[done : done + len(blocks)].reshape(len(blocks), parts.scales.shape[1], -1)
        np.multiply(parts.values.reshape(out.shape), parts.scales[..., None], out=out)
        if parts.minimums is not None:
            out += parts.minimums[..., None]
        done += len(blocks)
    return found.reshape(-1)


def _chunks(data: np.ndarray, kind: BlockType) -> list[np.ndarray]:
    blocks = data.reshape(-1, kind.num_bytes)
    return [blocks[start : start + _CHUNK] for start in range(0, len(blocks), _CHUNK)]


def _joined(arrays: list[np.ndarray | None]) -> np.ndarray | None:
    there = [each for each in arrays if each is not None]
    return np.concatenate(there) if there else None


def _split(blocks: np.ndarray, kind: BlockType) -> Parts:
    """Raises UserError for a scale or minimum that is NaN or infinite."""
    with np.errstate(invalid="ignore"):  # 0 times infinity
        parts = _SPLIT[kind.name](blocks)
    if not np.isfinite(parts.scales).all() or (parts.minimums is not None and not np.isfinite(parts.minimums).all()):
        raise UserError("has a scale that is NaN or infinite; copy the file, or quantize the model again")
    return parts


def _floats(data: np.ndarray, name: str) -> np.ndarray:
    if name == "BF16":
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return data.view("<f4" if name == "F32" else "<f2").astype(np.float32)


def _half(blocks: np.ndarray, start: int) -> np.ndarray:
    """The float16 at a byte of each block, as float32 [n, 1]."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view("<f2").astype(np.float32)


def _nibbles(codes: np.ndarray, run: int) -> np.ndarray:
    """uint8 [n, bytes] -> [n, 2 * bytes]: of each run of bytes first all low halves, then all high ones."""
    runs = codes.reshape(len(codes), -1, 1, run)
    return np.concatenate([runs & 0xF, runs >> 4], axis=2).reshape(len(codes), -1)


def _bits(codes: np.ndarray) -> np.ndarray:
    """uint8 [n, 4] -> [n, 32], the lowest bit of the first byte first."""
    return np.unpackbits(np.ascontiguousarray(codes), axis=1, bitorder="little")


def _signed(values: np.ndarray, middle: int) -> np.ndarray:
    return values.view(np.int8) - np.int8(middle)


def _q4_0(blocks: np.ndarray) -> Parts:
    return Parts(_signed(_nibbles(blocks[:, 2:], 16), 8), _half(blocks, 0))


def _q4_1(blocks: np.ndarray) -> Parts:
    return Parts(_nibbles(blocks[:, 4:], 16), _half(blocks, 0), _half(blocks, 2))


def _q5_0(blocks: np.ndarray) -> Parts:
    return Parts(_signed(_nibbles(blocks[:, 6:], 16) | _bits(blocks[:, 2:6]) << 4, 16), _half(blocks, 0))


def _q5_1(blocks: np.ndarray) -> Parts:
    return Parts(_nibbles(blocks[:, 8:], 16) | _bits(blocks[:, 4:8]) << 4, _half(blocks, 0), _half(blocks, 2))


def _q8_0(blocks: np.ndarray) -> Parts:
    return Parts(np.ascontiguousarray(blocks[:, 2:]).view(np.int8), _half(blocks, 0))


def _k_scales(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and minimums float32 [n, 8] of Q4_K and Q5_K: 6-bit factors in 12 bytes from byte 4, times the block's two halves.

    The first four of each in the low 6 bits of 4 bytes; of the other four the low 4 bits in the last 4 bytes, the high 2 above the first.
    """
    low, mins, rest = (blocks[:, start : start + 4] for start in (4, 8, 12))
    factors = np.concatenate([low & 0x3F, (rest & 0xF) | (low >> 6) << 4], axis=1)
    minimums = np.concatenate([mins & 0x3F, rest >> 4 | (mins >> 6) << 4], axis=1)
    return _half(blocks, 0) * factors, -(_half(blocks, 2) * minimums)


def _q4_k(blocks: np.ndarray) -> Parts:
    return Parts(_nibbles(blocks[:, 16:], 32), *_k_scales(blocks))


def _q5_k(blocks: np.ndarray) -> Parts:
    """The fifth bits of group g are bit g of 32 bytes."""
    places = np.arange(8, dtype=np.uint8)[:, None]
    fifth = (blocks[:, None, 16:48] >> places & 1).reshape(len(blocks), -1)
    return Parts(_nibbles(blocks[:, 48:], 32) | fifth << 4, *_k_scales(blocks))


def _q6_k(blocks: np.ndarray) -> Parts:
    """Two halves of 128: low 4 bits in 64 bytes, high 2 bits in 32 bytes, four numbers 32 apart in each."""
    places = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = (blocks[:, 128:192].reshape(len(blocks), 2, 1, 32) >> places & 3).reshape(len(blocks), -1)
    factors = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    return Parts(_signed(_nibbles(blocks[:, :128], 64) | high << 4, 32), _half(blocks, 208) * factors)


_SPLIT: Mapping[str, Callable[[np.ndarray], Parts]] = MappingProxyType(
    {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k}
)
DTYPES: Mapping[str, str] = MappingProxyType(
    {
        "Q4_0": "int4", "Q4_1": "uint4", "Q4_K": "uint4", "Q5_0": "int8", "Q5_1": "uint8", "Q5_K": "uint8", "Q6_K": "int8", "Q8_0": "int8"
    }
)  # fmt: skip
