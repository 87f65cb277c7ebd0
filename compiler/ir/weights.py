"""Weights beside the IR: named arrays that stay in their file until somebody reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Weight:
    """One named constant tensor.

    `dtype` is a numpy name or "bfloat16"; `load` gives the dense row-major array when it is called (mmapped where the file allows;
    bfloat16 as uint16).
    """

    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]

    @cached_property
    def array(self) -> np.ndarray:
        return self.load()

    @classmethod
    def of(cls, array: np.ndarray) -> Weight:
        return cls(array.dtype.name, array.shape, lambda: array)
