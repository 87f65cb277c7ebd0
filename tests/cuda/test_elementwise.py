"""Elementwise kernels, moves and gathers on the fake GPU, against eager torch: sizes around a block, and accesses of 16 bytes and fewer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmos.runtime.errors import InputError

from .fake import both_orders, program

BATCH = {0: torch.export.Dim("batch", min=1, max=4096)}


class Chain(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.nn.functional.gelu(x + y) * torch.tanh(x), (x.T + 1).contiguous()


class Pick(torch.nn.Module):
    def forward(self, table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return table[index] * 2


@pytest.mark.parametrize("columns", [64, 7])
def test_chains_and_transpositions(columns: int) -> None:
    model = Chain()
    loaded = program(model, (torch.zeros(3, columns), torch.zeros(columns)), (BATCH, None))
    for rows in (1, 5, 37):
        torch.manual_seed(rows)
        x, y = torch.randn(rows, columns), torch.randn(columns)
        for got, want in zip(both_orders(loaded, x, y), model(x, y), strict=True):
            np.testing.assert_allclose(got, want.numpy(), rtol=1e-5, atol=1e-6)


def test_gathers_check_their_indices() -> None:
    table = torch.arange(40.0).reshape(10, 4)
    loaded = program(Pick(), (table, torch.zeros(3, dtype=torch.int64)), (None, BATCH))
    index = torch.tensor([9, 0, 3, 3, 7])
    np.testing.assert_array_equal(both_orders(loaded, table, index)[0], (table[index] * 2).numpy())
    with pytest.raises(InputError, match=r"an index in the data is out of range"):
        loaded(table, torch.tensor([0, 10]))
    np.testing.assert_array_equal(loaded(table, index), (table[index] * 2).numpy())  # the error is not kept


def test_no_elements() -> None:
    class Add(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, 3:] + 1

    loaded = program(Add(), (torch.zeros(2, 4),), ({1: torch.export.Dim("columns", min=3, max=9)},))
    assert both_orders(loaded, torch.zeros(2, 3))[0].shape == (2, 0)
