"""The host processor. The C core decides which code variant of an artifact it runs."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import numpy as np

from llmos.runtime.artifact.dtypes import DTYPES
from llmos.runtime.artifact.reader import Artifact
from llmos.runtime.device import base
from llmos.runtime.device.base import Buffer, Verdict
from llmos.runtime.device.host_memory import available_bytes
from llmos.runtime.errors import ExecutionError, InputError, LlmosError
from llmos.runtime.native.abi import ALIGNMENT
from llmos.runtime.native.binding import Handle, core, num_threads


@dataclass(frozen=True)
class Host:
    """A CPU: architecture as in platform.machine(), and the features, in LLVM's names, that CPU and system both support."""

    arch: str
    features: frozenset[str]


@functools.cache
def host() -> Host:
    return Host(core().host_arch(), frozenset(core().host_features()))


def host_num_threads() -> int:
    return num_threads()


def judge(artifact: Artifact) -> tuple[Verdict, ...]:
    """Return one verdict for each variant, in manifest order (best first); at most one is chosen."""
    best = core().chosen_code(artifact.handle)
    codes = enumerate(artifact.manifest.code)
    return tuple(Verdict(code, core().missing(artifact.handle, index), index == best) for index, code in codes)


def choose(artifact: Artifact, target: str | None = None) -> int:
    """Return the index of the variant to load: the best that runs, or the one named `target`. Raises ArtifactError if there is none."""
    return base.choose(artifact.manifest.name, judge(artifact), host().arch, target)


class CpuModule:
    """Code in the C core; see device.base.Module."""

    def __init__(self, handle: Handle, target: str) -> None:
        self._handle = handle  # kept open by this reference
        self.target = target
        self.shapes = functools.partial(core().shapes, handle.value)
        self.run = functools.partial(core().run, handle.value)

    def error(self, code: int) -> LlmosError:
        return core().error(code)

    def check(self) -> None:
        core().check_program(self._handle)


class CpuBuffer:
    """Process memory aligned to 64 bytes."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        try:
            self._memory = (ctypes.c_uint8 * (num_bytes + ALIGNMENT))()
        except (MemoryError, ValueError, OverflowError) as error:
            raise ExecutionError(f"{num_bytes} bytes of memory can't be allocated") from error
        start = ctypes.addressof(self._memory)
        self.address = start + -start % ALIGNMENT


class CpuDevice:
    """See device.base.Device. All operations are synchronous."""

    name = "cpu"
    target = "native"

    def judge(self, artifact: Artifact) -> tuple[Verdict, ...]:
        return judge(artifact)

    def load(self, artifact: Artifact, target: str | None = None) -> CpuModule:
        index = choose(artifact, target)
        return CpuModule(core().open_program(artifact.handle, index), artifact.manifest.code[index].target)

    def allocate(self, num_bytes: int) -> CpuBuffer:
        return CpuBuffer(num_bytes)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return np.zeros(shape, DTYPES[dtype].storage)

    def free_bytes(self) -> int:
        return available_bytes()

    def copy(self, target: Buffer, source: Buffer) -> None:
        require_room(target, source)
        ctypes.memmove(target.address, source.address, source.num_bytes)

    def synchronize(self) -> None:
        pass


def require_room(target: Buffer, source: Buffer) -> None:
    if source.num_bytes > target.num_bytes:
        raise InputError(f"{source.num_bytes} bytes can't be copied into {target.num_bytes}")
