"""GGUF files for tests, byte by byte: what the format's own writer would refuse to write can be written too."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def entry(key: str, code: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", code) + value


def array(code: int, count: int, values: bytes) -> bytes:
    return struct.pack("<IQ", code, count) + values


@dataclass
class Tensor:
    name: str | bytes
    dims: tuple[int, ...]  # the row's length first, as the file has them
    code: int
    data: bytes
    offset: int | None = None  # None: after the one before


@dataclass
class File:
    entries: list[bytes] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    num_entries: int | None = None
    num_tensors: int | None = None
    alignment: int = 32

    def header(self) -> bytes:
        infos, offset = b"", 0
        for each in self.tensors:
            place = offset if each.offset is None else each.offset
            dims = struct.pack(f"<{len(each.dims)}Q", *each.dims)
            infos += text(each.name) + struct.pack("<I", len(each.dims)) + dims + struct.pack("<IQ", each.code, place)
            offset += -(-len(each.data) // self.alignment) * self.alignment
        counts = [len(self.tensors) if self.num_tensors is None else self.num_tensors]
        counts.append(len(self.entries) if self.num_entries is None else self.num_entries)
        return self.magic + struct.pack("<IQQ", self.version, *counts) + b"".join(self.entries) + infos

    def bytes(self) -> bytes:
        header = self.header()
        data = b"".join(each.data + b"\0" * (-len(each.data) % self.alignment) for each in self.tensors)
        return header + b"\0" * (-len(header) % self.alignment) + data


def sample() -> File:
    """Some of everything."""
    rng = np.random.default_rng(0)
    floats = rng.standard_normal((3, 32)).astype(np.float32)
    halves = np.full((2, 1), 0.5, np.float16).view(np.uint8)
    q8 = np.concatenate([halves, rng.integers(0, 256, (2, 32), dtype=np.uint8)], axis=1)
    entries = [
        entry("general.architecture", 8, text("llama")),
        entry("llama.block_count", 4, struct.pack("<I", 2)),
        entry("general.file_type", 6, struct.pack("<f", 1.5)),
        entry("tokenizer.ggml.add_bos_token", 7, b"\1"),
        entry("tokenizer.ggml.tokens", 9, array(8, 3, text("a") + text("ü") + text(b"\xff"))),
        entry("tokenizer.ggml.scores", 9, array(6, 3, struct.pack("<3f", 0, -1, 2))),
    ]
    tensors = [
        Tensor("output_norm.weight", (32, 3), 0, floats.tobytes()),
        Tensor("token_embd.weight", (32, 2), 8, q8.tobytes()),
        Tensor("rope", (4,), 1, np.arange(4, dtype=np.float16).tobytes()),
    ]
    return File(entries, tensors)
