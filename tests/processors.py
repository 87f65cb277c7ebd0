"""Processors that code is made for, and pretending that this machine is one of them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from llmos.compiler.backends.cpu import target

_V3 = ("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "popcnt", "sse4.2")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")


@dataclass(frozen=True)
class Processor:
    """What the compiler asks of a machine: its architecture, its features by LLVM's names, and a core's level-2 cache."""

    name: str
    arch: str
    features: tuple[str, ...]
    l2_bytes: int

    def pretend(self, patch: pytest.MonkeyPatch) -> None:
        """Make the compiler of this process take the machine for this processor. Its code runs only where the machine has the features."""
        patch.setattr(target, "_host_arch", lambda: self.arch)
        patch.setattr(target, "_host_features", lambda: frozenset(self.features))
        patch.setattr(target, "_host_l2_bytes", lambda: self.l2_bytes)


PROCESSORS = {
    each.name: each
    for each in (
        Processor("haswell", "x86_64", _V3, 256 << 10),
        Processor("zen3", "x86_64", _V3, 512 << 10),
        Processor("skylake-avx512", "x86_64", _V4, 1 << 20),
        Processor("icelake-server", "x86_64", (*_V4, "avx512vnni"), 1280 << 10),
        Processor("zen4", "x86_64", (*_V4, "avx512vnni", "avx512bf16"), 1 << 20),
        Processor("sapphirerapids", "x86_64", (*_V4, "avx512vnni", "avx512bf16", "amx-tile", "amx-bf16", "amx-int8"), 2 << 20),
        Processor("neoverse-n1", "aarch64", ("neon",), 1 << 20),
    )
}
