"""Tensors with static dimensions of size 0 and 1 beside dynamic ones: every kind of kernel computes nothing, and the right shape of it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.codegen.programs import V3, Returns, compile_torch, dim

SHAPES = [("b", 0, 12), ("b", 12, 0), (0, "b", 12), ("b", 1, 0), ("b", 0, 1), (1, 0, "b"), (0, 1, "b"), ("b", 0, 64)]


def reduced(name: str, dims: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    return lambda x: getattr(x, name)(dims)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_made_of_nothing(shape: tuple[int | str, ...]) -> None:
    outputs: dict[str, Callable[[Tensor], Tensor]] = {
        "softmax": lambda x: x.softmax(-1),
        "softmax_of_columns": lambda x: x.softmax(0),
        "cumsum": lambda x: x.cumsum(1),
        "transposed": lambda x: x.transpose(0, 2).contiguous() + 1,
        "doubled": lambda x: x * 2,
        "joined": lambda x: torch.cat([x, x + 1], 1),
        "product": lambda x: x @ x.transpose(1, 2),
        "product_of_columns": lambda x: x.transpose(1, 2) @ x,
        "sorted": lambda x: x.sort(-1).values,
        "gathered": lambda x: x.index_select(0, torch.tensor([0, 0])) if shape[0] != 0 else x,
        "padded": lambda x: torch.nn.functional.pad(x, (1, 1)),
    }
    for count in (1, 2, 3):
        for dims in combinations(range(3), count):
            label = "".join(map(str, dims))
            for name in ("sum", "mean", "var"):
                outputs[f"{name}_{label}"] = reduced(name, dims)
            if all(shape[d] != 0 for d in dims):
                outputs[f"amin_{label}"], outputs[f"amax_{label}"] = reduced("amin", dims), reduced("amax", dims)
    example = torch.randn([3 if size == "b" else int(size) for size in shape])
    module = Returns(**outputs)
    program = compile_torch(module, [example], [{shape.index("b"): dim("b")}], target=V3)
    for size in (1, 3, 17):
        x = torch.randn([size if each == "b" else int(each) for each in shape])
        found, expected = program(x.numpy()), module(x)
        for array, (name, want) in zip(found, expected.items(), strict=True):
            assert array.shape == tuple(want.shape), name
            np.testing.assert_allclose(array, want.numpy(), rtol=1e-5, atol=1e-6, err_msg=name)
