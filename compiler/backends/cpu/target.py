"""The processors that code is made for."""

from __future__ import annotations

import difflib
import platform
from dataclasses import dataclass, replace
from pathlib import Path

from llmos.compiler.backends.options import CompileOptions
from llmos.runtime.errors import UserError

_X86_64_V3 = ("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "popcnt", "sse4.2")
_X86_64_V4 = (*_X86_64_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_BF16 = ("avx512vnni", "avx512bf16")
_AMX = ("amx-tile", "amx-bf16")


@dataclass(frozen=True)
class Target:
    """One code variant of an artifact.

    `cpu` and `features` go to LLVM's code generator; `required` are the features, in LLVM's names, that a machine must have to run the
    code. `vector_bits` is the width of a vector register, `num_registers` how many of them there are. `l2_bytes` is what a core has of
    level-2 cache: of the processors that a target stands for a usual one, of "native" this machine's. `near_bytes` is how much of a
    contraction's panel is read again and again from the first cache; 0 where the second sends it as fast as it is multiplied.
    `emulates` are the features that kernels use and the machine need not have (`emulated_on`).
    """

    name: str
    arch: str
    triple: str
    cpu: str
    features: str
    vector_bits: int
    num_registers: int
    l2_bytes: int
    required: tuple[str, ...]
    near_bytes: int = 0
    emulates: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name

    def has(self, feature: str) -> bool:
        """Whether kernels may use a feature, by LLVM's name for it."""
        return feature in self.required or feature in self.emulates

    def emulated_on(self, machine: Target) -> Target:
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
            features=machine.features,
            required=machine.required,
            emulates=self.required,
        )

    def helps(self, precision: str) -> bool:
        """Whether code of a precision is any different here than on the next target: matrix tiles do nothing for float32."""
        return precision == "bf16" or not self.has("amx-bf16")

    def code_target(self, precision: str) -> Target:
        """The plainest target whose code is the same at a precision: float32 uses no product of bfloat16, so that code is compiled once."""
        kernels, at, machine = self.name.partition("@")
        plain = kernels.removesuffix("-bf16").removesuffix("-amx")
        return Target.parse(f"{plain}{at}{machine}") if precision == "fp32" else self

    @classmethod
    def parse(cls, text: str) -> Target:
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

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")

# Best first within an architecture: that is the order in which a machine picks among the variants of an artifact.
TARGETS: tuple[Target, ...] = (
    Target(
        name="x86-64-v4-amx",
        arch="x86_64",
        triple="x86_64-unknown-linux-gnu",
        cpu="x86-64-v4",
        features=f"+avx512vnni,+avx512bf16,+amx-tile,+amx-bf16,{_FULL_WIDTH}",
        vector_bits=512,
        num_registers=32,
        l2_bytes=2 << 20,
        required=(*_X86_64_V4, *_BF16, *_AMX),
    ),
    Target(
        name="x86-64-v4-bf16",
        arch="x86_64",
        triple="x86_64-unknown-linux-gnu",
        cpu="x86-64-v4",
        features=f"+avx512vnni,+avx512bf16,{_FULL_WIDTH}",
        vector_bits=512,
        num_registers=32,
        l2_bytes=2 << 20,
        required=(*_X86_64_V4, *_BF16),
    ),
    Target(
        name="x86-64-v4",
        arch="x86_64",
        triple="x86_64-unknown-linux-gnu",
        cpu="x86-64-v4",
        features=_FULL_WIDTH,
        vector_bits=512,
        num_registers=32,
        l2_bytes=2 << 20,
        required=_X86_64_V4,
    ),
    Target(
        name="x86-64-v3",
        arch="x86_64",
        triple="x86_64-unknown-linux-gnu",
        cpu="x86-64-v3",
        features="",
        vector_bits=256,
        num_registers=16,
        l2_bytes=1 << 19,
        required=_X86_64_V3,
        near_bytes=16 << 10,
    ),
    Target(
        name="aarch64",
        arch="aarch64",
        triple="aarch64-unknown-linux-gnu",
        cpu="generic",
        features="+neon",
        vector_bits=128,
        num_registers=32,
        l2_bytes=1 << 20,
        required=("neon",),
    ),
)


def resolve(name: str, precision: str = "fp32") -> list[Target]:
    """The targets that `--target NAME` stands for at a precision, best first.

    "portable": all of this machine's architecture that help. "native": the best of them that this machine runs. Otherwise one or more
    names, separated by commas. Raises UserError for an unknown name or a machine that no target fits.
    """
    if name == "portable":
        return _of_this_architecture(precision)
    if name == "native":
        return [_native(precision)]
    order = [target.name for target in TARGETS]
    chosen = {_named(part.strip()) for part in name.split(",")}
    return sorted(chosen, key=lambda target: (order.index(target.name.partition("@")[0]), target.name))


def targets_of(options: CompileOptions) -> list[Target]:
    """What `resolve` says of a compile's options."""
    return resolve(options.target, options.precision)


def runs_here(target: Target) -> bool:
    """Whether this machine runs the target's code."""
    return target.arch == _host_arch() and set(target.required) <= _host_features()


def _named(name: str) -> Target:
    try:
        return Target.parse(name)
    except ValueError as error:
        names = [target.name for target in TARGETS]
        close = difflib.get_close_matches(name, [*names, "portable", "native"], n=1)
        hint = f"; did you mean {close[0]}?" if close else ", portable and native"
        raise UserError(f"{error}{hint}") from None


def _of_this_architecture(precision: str) -> list[Target]:
    arch = _host_arch()
    found = [target for target in TARGETS if target.arch == arch and target.helps(precision)]
    if not found:
        raise UserError(f"no target for this machine's architecture, {arch}; name one with --target")
    return found


def _native(precision: str) -> Target:
    candidates = _of_this_architecture(precision)
    features = _host_features()
    for target in candidates:
        if all(feature in features for feature in target.required):
            return replace(target, l2_bytes=_host_l2_bytes() or target.l2_bytes)
    missing = sorted(set(candidates[-1].required) - features)
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
