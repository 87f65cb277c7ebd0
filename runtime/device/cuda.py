"""An NVIDIA GPU, by the driver of the machine: the C core loads it when the first device is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from llmos.runtime.artifact.dtypes import DTYPES
from llmos.runtime.artifact.reader import Artifact
from llmos.runtime.device import base
from llmos.runtime.device.base import Buffer, Verdict
from llmos.runtime.device.capsule import KDL_CUDA, device_capsule
from llmos.runtime.device.cpu import CpuModule, require_room
from llmos.runtime.native.binding import Handle, core


@dataclass(frozen=True)
class GpuBuffer:
    """Memory of a GPU."""

    num_bytes: int
    handle: Handle

    @property
    def address(self) -> int:
        """Return the address, which the GPU alone reads and writes."""
        return self.handle.value or 0


@dataclass(frozen=True)
class GpuArray:
    """A dense, row-major array in the memory of a GPU; by DLPack a call, or another framework, takes it where it lies."""

    buffer: GpuBuffer
    shape: tuple[int, ...]
    dtype: str
    index: int

    def __dlpack__(self, *, stream: int | None = None, max_version: tuple[int, int] | None = None) -> Any:
        """Return a capsule that keeps the memory. What was written before in the GPU's default stream is in it."""
        return device_capsule(self.buffer.address, self.__dlpack_device__(), self.shape, self.dtype, self.buffer)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return kDLCUDA and the index of the GPU."""
        return KDL_CUDA, self.index


class CudaDevice:
    """See device.base.Device. Raises ExecutionError where there is no driver, none that is new enough, or no GPU of that index."""

    def __init__(self, index: int = 0) -> None:
        self._gpu = core().open_gpu(index)
        info = core().describe_gpu(self._gpu)
        self.index = index
        self.name = f"cuda:{index}"
        self.chip = f"sm_{info.major}{info.minor}"
        self.target = "cuda:sm_90a" if self.chip == "sm_90" else "cuda:sm_100" if info.major >= 10 else "cuda:sm_80"
        self.product: str = info.name.decode(errors="replace")
        self.num_bytes = int(info.num_bytes)

    def judge(self, artifact: Artifact) -> tuple[Verdict, ...]:
        best = core().chosen_code(artifact.handle, self._gpu)
        codes = enumerate(artifact.manifest.code)
        return tuple(Verdict(code, core().missing(artifact.handle, index, self._gpu), index == best) for index, code in codes)

    def load(self, artifact: Artifact, target: str | None = None) -> CpuModule:
        """Copy kernels and weights to the GPU. Its runs take and give host memory."""
        index = base.choose(artifact.manifest.name, self.judge(artifact), f"{self.product}, {self.chip}", target, self.target)
        return CpuModule(core().open_program(artifact.handle, index, self._gpu), artifact.manifest.code[index].target)

    def allocate(self, num_bytes: int) -> GpuBuffer:
        return GpuBuffer(num_bytes, core().gpu_allocate(self._gpu, num_bytes))

    def zeros(self, shape: tuple[int, ...], dtype: str) -> GpuArray:
        num_bytes = math.prod(shape) * DTYPES[dtype].num_bytes
        buffer = self.allocate(num_bytes)
        core().gpu_clear(self._gpu, buffer.address, num_bytes)
        return GpuArray(buffer, shape, dtype, self.index)

    def free_bytes(self) -> int:
        return core().gpu_free_bytes(self._gpu)

    def copy(self, target: Buffer, source: Buffer) -> None:
        require_room(target, source)
        core().gpu_copy(self._gpu, target.address, source.address, source.num_bytes)

    def synchronize(self) -> None:
        core().gpu_synchronize(self._gpu)
