"""Integers of 64 bits pass through no float: constants and fills of 2^53 + 1 and of the ends of each type arrive as they are.

`LLMOS_PROPERTY_CASES=1000` tries every op and number instead of a sample.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from llmos.compiler.frontend.onnx import import_onnx
from llmos.compiler.frontend.torch import import_torch
from tests.conformance.inprocess import Compiled
from tests.frontend.harness import module_of
from tests.properties.onnx_nodes import by_evaluator, one_node

CASES = int(os.environ.get("LLMOS_PROPERTY_CASES", "0"))
NUMBERS = (2**53 + 1, 2**63 - 1, -(2**63), -(2**53) - 1)

FUNCTIONS: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "add": lambda x, n: x + n,
    "mul": lambda x, n: x * n,
    "eq": lambda x, n: x == n,
    "less": lambda x, n: x < n,
    "clamp": lambda x, n: x.clamp(max=n),
    "clamp-min": lambda x, n: x.clamp(min=n),
    "maximum": lambda x, n: torch.maximum(x, torch.tensor(n)),
    "where": lambda x, n: torch.where(x > 0, x, n),
    "masked-fill": lambda x, n: x.masked_fill(x > 0, n),
    "full": lambda x, n: x + torch.full((3,), n),
    "full-like": lambda x, n: torch.full_like(x, n),
    "new-full": lambda x, n: x.new_full((2, 2), n),
    "fill": lambda x, n: torch.fill(x, n),
    "index-fill": lambda x, n: x.index_fill(1, torch.tensor([0, 2]), n),
    "pad": lambda x, n: torch.constant_pad_nd(x, [1, 2], n),
    "arange": lambda x, n: x + torch.arange(n - 2, n + 1) if abs(n) < 2**60 else x,
    "scalar": lambda x, n: x + torch.scalar_tensor(n, dtype=torch.int64),
    "sum": lambda x, n: (x + n).sum(1),
    "cumsum": lambda x, n: (x + n).cumsum(1),
    "amax": lambda x, n: torch.cat([x, torch.full((3, 1), n)], 1).amax(1),
    "sort": lambda x, n: torch.cat([x, torch.full((3, 1), n)], 1).sort(1)[0],
    "scatter": lambda x, n: x.scatter(1, torch.zeros(3, 1, dtype=torch.int64), n),
}


def sampled(names: Any, numbers: Any) -> list[tuple[str, int]]:
    pairs = [(name, number) for name in names for number in numbers]
    return pairs if CASES else random.Random(0).sample(pairs, 7)


def test_torch_programs() -> None:
    """All functions in one program a number, which is one compile."""
    x = torch.tensor([[1, -1, 2**53 + 1], [2**63 - 1, -(2**63), 0], [2**53, 2**62, 5]])
    for number in NUMBERS if CASES else NUMBERS[:1]:
        module = module_of(lambda x, number=number: tuple(function(x, number) for function in FUNCTIONS.values()))
        outputs = Compiled(import_torch(module, (x,)))([x.numpy()])
        for name, got, want in zip(FUNCTIONS, outputs, module(x), strict=True):
            np.testing.assert_array_equal(got, want.numpy(), err_msg=f"{name} of {number}")


ONNX_OPS = ("Pad", "Clip", "Where", "Max", "Add", "Equal", "Expand", "OneHot", "BitwiseXor")


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
@pytest.mark.parametrize(("op", "place"), sampled(ONNX_OPS, range(3)))
def test_onnx_nodes(op: str, place: int, dtype: str) -> None:
    limits = np.iinfo(dtype)
    number = (2**53 + 1, limits.max, limits.min)[place]
    x = np.array([[1, 2**53 + 1, limits.max], [0, 5, limits.min]], dtype)
    inputs: dict[str, np.ndarray] = {"x": x}
    constants: dict[str, np.ndarray] = {"n": np.array(number, dtype)}
    if op == "Pad":
        constants = {"pads": np.array([0, 1, 1, 2]), **constants}
    elif op == "Clip":
        constants = {"low": np.array(limits.min, dtype), **constants}
    elif op == "Where":
        inputs = {"c": x > 3, **inputs}
    elif op == "Expand":
        inputs, constants = {"x": np.array([number], dtype)}, {"shape": np.array([3, 50])}
    elif op == "OneHot":
        inputs, constants = {"x": np.array([0, 2, 1])}, {"depth": np.array(4), "values": np.array([0, number], dtype)}
    model = one_node(op, inputs, constants)
    want = by_evaluator(model, inputs)
    assert want is not None
    (got,) = Compiled(import_onnx(model))(list(inputs.values()))
    assert got.dtype == want[0].dtype
    np.testing.assert_array_equal(got, want[0])


@pytest.mark.parametrize("equation", ["ijk->ij", "iij->j", "ijj", "ijk,kj->i"])
@pytest.mark.parametrize("dtype", ["int32", "uint8"])
def test_an_einsum_keeps_its_type(equation: str, dtype: str) -> None:
    x = np.arange(27).reshape(3, 3, 3).astype(dtype)
    inputs = {"x": x, "y": x[0]} if "," in equation else {"x": x}
    model = one_node("Einsum", inputs, equation=equation)
    (got,) = Compiled(import_onnx(model))(list(inputs.values()))
    want = np.einsum(equation, *[each.astype(np.int64) for each in inputs.values()]).astype(dtype)
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


def test_zeros_are_quantized_with_a_scale_of_one() -> None:
    model = one_node("DynamicQuantizeLinear", {"x": np.zeros(4, np.float32)}, outputs=3)
    quantized, scale, zero = Compiled(import_onnx(model))([np.zeros(4, np.float32)])
    assert quantized.tolist() == [0, 0, 0, 0] and scale == 1 and zero == 0
