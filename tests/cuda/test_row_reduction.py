"""Row kernels on the fake GPU, against eager torch: rows of a warp and of a block, short ones in registers, and sizes around both."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from .fake import both_orders, program

Function = Callable[[torch.Tensor], torch.Tensor]
FUNCTIONS: dict[str, Function] = {
    "softmax": lambda x: torch.softmax(x, -1),
    "layer_norm": lambda x: torch.nn.functional.layer_norm(x, x.shape[-1:]),
    "rms_norm": lambda x: x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6),
    "l2_norm": lambda x: torch.nn.functional.normalize(x, dim=-1),
    "sum": lambda x: x.sum(-1),
    "max": lambda x: x.amax(-1),
    "argmax": lambda x: x.argmax(-1),
}


class Rows(torch.nn.Module):
    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [FUNCTIONS[name](x) for name in self.names]


def check(columns: int, rows: list[int], dynamic: bool = False) -> None:
    model = Rows(list(FUNCTIONS))
    shapes = {0: torch.export.Dim("batch", min=1, max=512)}
    if dynamic:
        shapes[1] = torch.export.Dim("columns", min=1, max=5000)
    loaded = program(model, (torch.randn(3, columns),), (shapes,))
    for count in rows:
        torch.manual_seed(count)
        x = torch.randn(count, columns) * 3
        for name, got, want in zip(model.names, both_orders(loaded, x), model(x), strict=True):
            np.testing.assert_allclose(got, want.numpy(), rtol=2e-5, atol=2e-5, err_msg=f"{name} of {count}x{columns}")


@pytest.mark.parametrize("columns", [384, 33])
def test_rows_in_registers(columns: int) -> None:
    check(columns, [1, 9])


@pytest.mark.slow
@pytest.mark.parametrize("columns", [1, 2, 31, 32, 127, 128, 129, 1023, 1024, 2047, 2048, 2049, 2052, 8192, 9000])
def test_rows_of_every_shape(columns: int) -> None:
    check(columns, [1, 3, 4, 5])


def test_rows_of_a_block() -> None:
    check(2100, [1, 2])


def test_rows_whose_length_a_call_gives() -> None:
    model = Rows(["softmax", "sum"])
    shapes = {0: torch.export.Dim("batch", min=1, max=512), 1: torch.export.Dim("columns", min=1, max=5000)}
    loaded = program(model, (torch.randn(3, 40),), (shapes,))
    for count, columns in ((1, 1), (5, 40), (2, 3001)):
        x = torch.randn(count, columns)
        for got, want in zip(both_orders(loaded, x), model(x), strict=True):
            np.testing.assert_allclose(got, want.numpy(), rtol=2e-5, atol=2e-5)
