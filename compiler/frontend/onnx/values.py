"""Values on the edges of an ONNX graph during execution: a tensor, a constant value, or a sequence of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from llmos.compiler.frontend.onnx.low_precision import LowPrecisionTensor


@dataclass(frozen=True, eq=False)
class ConstantValue:
    """A value known before any kernel runs: a constant, or integers computed from the sizes of the inputs.

    `array` holds numbers, or (dtype object) Python ints mixed with torch.SymInt, SymFloat and SymBool; `dtype` is what ONNX
    calls its elements. `key` names the buffer of the module that holds the same constant, if there is one.
    """

    array: np.ndarray
    dtype: np.dtype
    key: str | None = None

    @property
    def is_symbolic(self) -> bool:
        """Whether elements may follow from sizes of the inputs."""
        return self.array.dtype == object


Value: TypeAlias = torch.Tensor | LowPrecisionTensor | ConstantValue | list[Any] | None


def constant_value(array: Any, dtype: Any = None) -> ConstantValue:
    """Make a constant value from anything numpy accepts; object arrays of plain numbers become numeric."""
    array = np.asarray(array)
    wanted = np.dtype(dtype) if dtype is not None else np.dtype(np.int64) if array.dtype == object else array.dtype
    is_plain = array.dtype != object or all(isinstance(item, (bool, int, float, np.generic)) for item in array.flat)
    if is_plain and array.dtype != wanted:
        array = array.astype(wanted)
    return ConstantValue(array, wanted)


def sizes(values: Any) -> ConstantValue:
    """Make a rank-1 int64 constant value of dims, which may be symbolic."""
    values = list(values)
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return constant_value(array, np.int64)


def scalar_of(value: ConstantValue) -> Any:
    """Return the only element of a constant value, as a Python number or a symbol."""
    item = value.array.reshape(-1)[0]
    return item.item() if isinstance(item, np.generic) else item
