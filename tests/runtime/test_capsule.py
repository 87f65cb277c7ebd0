"""DLPack capsules of a device's memory: read by numpy, and freed once, whether anybody takes them or not."""

from __future__ import annotations

import ctypes
import gc
import weakref
from typing import Any

import numpy as np
import pytest

from llmos.runtime.device.capsule import device_capsule


class Owned:
    """An array of the host by way of `device_capsule`."""

    def __init__(self, count: int) -> None:
        self.memory = (ctypes.c_float * count)(*range(count))

    def __dlpack__(self, **options: Any) -> Any:
        return device_capsule(ctypes.addressof(self.memory), self.__dlpack_device__(), (2, 3), "float32", self)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


@pytest.mark.parametrize("taken", [False, True])
def test_the_owner_lives_as_long_as_a_capsule_or_who_takes_it(taken: bool) -> None:
    owner = Owned(6)
    alive = weakref.ref(owner)
    held: Any = np.from_dlpack(owner) if taken else owner.__dlpack__()
    del owner
    gc.collect()
    assert alive() is not None
    if taken:
        np.testing.assert_array_equal(held, np.arange(6, dtype=np.float32).reshape(2, 3))
    del held
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint64", "bfloat16", "float64", "complex64"])
def test_every_dtype_has_a_code(dtype: str) -> None:
    assert type(device_capsule(0, (2, 1), (), dtype, None)).__name__ == "PyCapsule"
