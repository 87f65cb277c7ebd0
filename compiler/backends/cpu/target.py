"""The processors that code is made for."""

from __future__ import annotations

import difflib
import os
import platform
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llmos.compiler.backends.target import Target
from llmos.runtime.errors import UserError

_X86_64_V3 = ("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "popcnt", "sse4.2")
_X86_64_V4 = (*_X86_64_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_VNNI = ("avx512vnni",)
_BF16 = (*_VNNI, "avx512bf16")
_AMX = ("amx-tile", "amx-bf16", "amx-int8")

# Features whose instructions kernels use, by what they multiply; float32 is multiplied by the baseline's.
_MULTIPLIES = {"bf16": {"avx512bf16", "amx-bf16"}, "int8": {"avx512vnni", "avxvnni", "amx-int8"}}


@dataclass(frozen=True, kw_only=True)
class CpuTarget(Target):
    """One code variant of an artifact.

    cpu: what LLVM calls the processor. baseline: features that `cpu` implies. extensions: features beyond those. Both are in LLVM's names,
    and a machine must have them all to run the code. flags: LLVM's settings that are no features.
    vector_bits: width of a vector register. num_registers: how many of them there are. l2_bytes: level-2 cache of a core; of the
    processors that a target stands for a usual one, of "native" this machine's. near_bytes: how much of a contraction's panel is read
    again and again from the level-1 cache; 0 where level 2 sends it as fast as it is multiplied.
    emulated: the target whose kernels these are, where the machine may lack what they use (`emulated_on`).
    """

    device: str = "cpu"
    arch: str
    triple: str
    cpu: str
    vector_bits: int
    num_registers: int
    l2_bytes: int
    baseline: tuple[str, ...] = ()
    extensions: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    near_bytes: int = 0
    emulated: CpuTarget | None = None

    @property
    def required(self) -> tuple[str, ...]:
        """Features, in LLVM's names, that a machine must have to run the code."""
        return (*self.baseline, *self.extensions)

    @property
    def features(self) -> str:
        """LLVM's feature string."""
        return ",".join([*[f"+{feature}" for feature in self.extensions], *self.flags])

    @property
    def emulates(self) -> tuple[str, ...]:
        """Features that kernels use and the machine need not have."""
        return self.emulated.required if self.emulated else ()

    def has(self, feature: str) -> bool:
        """Whether kernels may use a feature, by LLVM's name for it."""
        return feature in self.required or feature in self.emulates

    def emulated_on(self, machine: CpuTarget) -> CpuTarget:
        """This target's kernels as code for another's processors of the same architecture: slow, for checking the kernels' numbers there.

        LLVM splits wide vectors; what else the machine lacks is written out (backends/cpu/emulation.py). Raises ValueError where the
        architectures differ.
        """
        if machine.arch != self.arch:
            raise ValueError(f"{self} can't be emulated on {machine}: {self.arch} is not {machine.arch}")
        return replace(
            self,
            name=f"{self.name}@{machine.name}",
            cpu=machine.cpu,
            baseline=machine.baseline,
            extensions=machine.extensions,
            flags=machine.flags,
            emulated=self,
        )

    def code_target(self, multiplied: Collection[str]) -> CpuTarget:
        """The plainest target whose code is the same for kernels that multiply those types beside float32: "bf16", "int8"."""
        if self.emulated is not None:
            machine = CpuTarget.parse(self.name.partition("@")[2])
            return self.emulated.code_target(multiplied).emulated_on(machine)
        alike = [each for each in TARGETS if each.cpu == self.cpu and each._multiplies_by(multiplied) == self._multiplies_by(multiplied)]
        return replace(alike[-1], l2_bytes=self.l2_bytes)

    def _multiplies_by(self, multiplied: Collection[str]) -> set[str]:
        """Features that products of some types use here."""
        return {feature for each in multiplied for feature in _MULTIPLIES[each] if self.has(feature)}

    def runs_here(self) -> bool:
        """Whether this machine runs the target's code."""
        return self.arch == _host_arch() and set(self.required) <= _host_features()

    def this_machine(self) -> str:
        """What times depend on, in words."""
        return f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {self.l2_bytes >> 10} KiB of level-2 cache"

    @property
    def requirements(self) -> str:
        """What a machine needs, in words: the architecture and the last features of the list, which the fewest have."""
        return f"{self.arch} with {', '.join(self.required[-3:])}"

    @classmethod
    def parse(cls, text: str) -> CpuTarget:
        """The target of that name, or of "KERNELS@MACHINE" (`emulated_on`). Raises ValueError, with the names there are."""
        kernels, _, machine = text.partition("@")
        if machine:
            return cls.parse(kernels).emulated_on(cls.parse(machine))
        for target in TARGETS:
            if target.name == text:
                return target
        raise ValueError(f"{text!r} is no target; there are {', '.join(target.name for target in TARGETS)}")


# LLVM prefers 256-bit vectors on x86 by default: right for the frequency limits of the first AVX-512 chips, half the speed on today's.
_FULL_WIDTH = "-prefer-256-bit"

_CPU_INFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")

_V4 = CpuTarget(
    name="x86-64-v4",
    arch="x86_64",
    triple="x86_64-unknown-linux-gnu",
    cpu="x86-64-v4",
    vector_bits=512,
    num_registers=32,
    l2_bytes=2 << 20,
    baseline=_X86_64_V4,
    flags=(_FULL_WIDTH,),
)
_V3 = CpuTarget(
    name="x86-64-v3",
    arch="x86_64",
    triple="x86_64-unknown-linux-gnu",
    cpu="x86-64-v3",
    vector_bits=256,
    num_registers=16,
    l2_bytes=1 << 19,
    baseline=_X86_64_V3,
    near_bytes=16 << 10,
)
_AARCH64 = CpuTarget(
    name="aarch64",
    arch="aarch64",
    triple="aarch64-unknown-linux-gnu",
    cpu="generic",
    vector_bits=128,
    num_registers=32,
    l2_bytes=1 << 20,
    extensions=("neon",),
)

# Best first within an architecture: that is the order in which a machine picks among the variants of an artifact.
TARGETS: tuple[CpuTarget, ...] = (
    replace(_V4, name="x86-64-v4-amx", extensions=(*_BF16, *_AMX)),
    replace(_V4, name="x86-64-v4-bf16", extensions=_BF16),
    replace(_V4, name="x86-64-v4-vnni", extensions=_VNNI),
    _V4,
    replace(_V3, name="x86-64-v3-vnni", extensions=("avxvnni",)),
    _V3,
    _AARCH64,
)


WORDS = ("portable", "native")  # what stands for targets that this machine decides


def resolve(name: str) -> list[CpuTarget]:
    """The targets that `--target NAME` stands for, best first; `code_targets` says which of them code is made for.

    "portable": all of this machine's architecture. "native": the best of them that this machine runs. Otherwise one or more names,
    separated by commas. Raises UserError for an unknown name or a machine that no target fits.
    """
    if name == "portable":
        return _of_this_architecture()
    if name == "native":
        return [_native()]
    chosen = {_named(part.strip()) for part in name.split(",")}
    return sorted(chosen, key=lambda target: (TARGETS.index(target.emulated or target), target.name))


def code_targets(name: str, targets: Sequence[CpuTarget], multiplied: Collection[str]) -> list[CpuTarget]:
    """Of the targets that `resolve(name)` gave, those that code of some products is made for (`CpuTarget.code_target`).

    Each that is named stays as it is. Of others whose code is the same, the plainest one remains.
    """
    if name not in WORDS:
        return list(targets)
    return list(dict.fromkeys(target.code_target(multiplied) for target in targets))


def _named(name: str) -> CpuTarget:
    try:
        return CpuTarget.parse(name)
    except ValueError as error:
        names = [target.name for target in TARGETS]
        close = difflib.get_close_matches(name, [*names, *WORDS], n=1)
        hint = f"; did you mean {close[0]}?" if close else ", portable and native"
        raise UserError(f"{error}{hint}") from None


def _of_this_architecture() -> list[CpuTarget]:
    arch = _host_arch()
    found = [target for target in TARGETS if target.arch == arch]
    if not found:
        raise UserError(f"no target for this machine's architecture, {arch}; name one with --target")
    return found


def _native() -> CpuTarget:
    candidates = _of_this_architecture()
    for target in candidates:
        if target.runs_here():
            return replace(target, l2_bytes=_host_l2_bytes() or target.l2_bytes)
    missing = sorted(set(candidates[-1].required) - _host_features())
    raise UserError(f"this machine runs no target: {candidates[-1].name} needs {', '.join(missing)}; name another with --target")


def _host_arch() -> str:
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())


def _host_l2_bytes() -> int | None:
    """Of one core, where the system says."""
    for cache in sorted(_CACHES.glob("index*")):
        try:
            level, size = ((cache / name).read_text().strip() for name in ("level", "size"))
        except OSError:
            continue
        if level == "2" and size.removesuffix("K").isdecimal():
            return int(size.removesuffix("K")) << 10
    return None


def _host_features() -> frozenset[str]:
    # The runtime's own answer: what the processor has and the system lends. Asking makes the system lend the tile registers.
    from llmos.runtime.native.binding import core

    return frozenset(core().host_features())


def _processor() -> str:
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
