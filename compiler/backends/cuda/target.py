"""The GPUs that code is made for."""

from __future__ import annotations

import difflib
import platform
from dataclasses import dataclass

from llmos.compiler.backends.target import Target
from llmos.runtime.errors import UserError

PREFIX = "cuda:"
WORDS = ("portable", "native")  # what stands for all targets


@dataclass(frozen=True)
class HostTarget:
    """The processor that starts kernels: any of this machine's architecture, since host functions do little."""

    arch: str
    triple: str
    cpu: str
    features: str = ""


HOSTS = {
    "x86_64": HostTarget("x86_64", "x86_64-unknown-linux-gnu", "x86-64"),
    "aarch64": HostTarget("aarch64", "aarch64-unknown-linux-gnu", "generic"),
}


@dataclass(frozen=True, kw_only=True)
class CudaTarget(Target):
    """One code variant of an artifact.

    chip: as LLVM and ptxas name it; one that ends in "a" has instructions that no later chip runs. ptx: version of PTX, which decides the
    oldest driver. host: the processor that starts kernels.
    """

    device: str = "cuda"
    chip: str
    ptx: int
    host: HostTarget

    triple = "nvptx64-nvidia-cuda"

    @property
    def cpu(self) -> str:
        """LLVM's name of the chip."""
        return self.chip

    @property
    def features(self) -> str:
        """LLVM's feature string."""
        return f"+ptx{self.ptx}"

    def runs_here(self) -> bool:
        """Return False: a compile runs no code of a GPU."""
        return False

    def this_machine(self) -> str:
        """Return that times of the machine that compiles mean nothing."""
        return "no GPU"

    @property
    def requirements(self) -> str:
        """What a machine needs, in words."""
        return f"{self.host.arch} with an NVIDIA GPU that runs {self.chip}"


def targets() -> list[CudaTarget]:
    """Return all targets, best first: in that order a machine picks among the variants of an artifact. Raises UserError on a machine
    whose processor no host function is made for."""
    arch = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    if arch not in HOSTS:
        raise UserError(f"the cuda backend makes host functions for {' and '.join(HOSTS)}, and this machine is {arch}")
    host = HOSTS[arch]
    return [
        CudaTarget(name=f"{PREFIX}sm_100", chip="sm_100", ptx=86, host=host),
        CudaTarget(name=f"{PREFIX}sm_90a", chip="sm_90a", ptx=80, host=host),
        CudaTarget(name=f"{PREFIX}sm_80", chip="sm_80", ptx=70, host=host),
    ]


def parse_target(name: str) -> CudaTarget:
    """Return the target of a name, with or without "cuda:". Raises ValueError, with the names there are."""
    for target in targets():
        if name in (target.name, target.chip):
            return target
    raise ValueError(f"{name!r} is no target; there are {', '.join(target.name for target in targets())}")


def resolve(text: str) -> list[CudaTarget]:
    """Return the targets that `--target TEXT` stands for, best first: all for "portable" and "native". Raises UserError for an unknown
    name."""
    if text in WORDS:
        return targets()
    chosen = {_named(part.strip()) for part in text.split(",")}
    return [target for target in targets() if target in chosen]


def _named(name: str) -> CudaTarget:
    try:
        return parse_target(name)
    except ValueError as error:
        close = difflib.get_close_matches(name, [target.name for target in targets()], n=1)
        raise UserError(f"{error}{f'; did you mean {close[0]}?' if close else ''}") from None
