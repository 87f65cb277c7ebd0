"""Weights beside the IR: named arrays that stay in their file until somebody reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from llmos.compiler.ir.attributes import PackedLayout


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
        """Return the dense row-major array, loaded once; bfloat16 as uint16."""
        return self.load()

    @classmethod
    def of(cls, array: np.ndarray) -> Weight:
        """Return a weight of an array in memory; its dtype is numpy's name."""
        return cls(array.dtype.name, array.shape, lambda: array)


@dataclass(frozen=True)
class BoundWeight(Weight):
    """A weight as the code reads it.

    `source` is the model's weight that it is made of, rounded to bfloat16 where `dtype` says so; `layout` how it is packed, None where it
    lies as it is.
    """

    source: str = ""
    layout: PackedLayout | None = None


def is_same_weight(one: Weight, other: Weight) -> bool:
    """Whether two weights have the same dtype, shape and bytes."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    first, second = (np.ascontiguousarray(each.load()).reshape(-1).view(np.uint8) for each in (one, other))
    return bool(np.array_equal(first, second))
