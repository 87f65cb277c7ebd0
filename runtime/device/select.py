"""A device by its name, as the command line and the configuration of a server have it."""

from __future__ import annotations

import re

from llmos.runtime.device.base import Device
from llmos.runtime.device.cpu import CpuDevice
from llmos.runtime.errors import UserError

_CUDA = re.compile(r"cuda(?::(\d{1,4}))?")


def open_device(name: str) -> Device:
    """Return the device of a name: "cpu", or "cuda" or "cuda:N" for an NVIDIA GPU by its index.

    Raises UserError for another name, and ExecutionError where there is no driver, none that is new enough, or no such GPU.
    """
    if name == "cpu":
        return CpuDevice()
    found = _CUDA.fullmatch(name)
    if found is None:
        raise UserError(f"there is no device {name!r}: it must be cpu, cuda or cuda:N")
    from llmos.runtime.device.cuda import CudaDevice

    return CudaDevice(int(found[1] or 0))
