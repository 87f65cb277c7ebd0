"""Contractions on the fake GPU's tensor cores, against float64: tiles, their edges, both sides transposed, epilogues and batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from .fake import both_orders, program

ROWS = {0: torch.export.Dim("rows", min=1, max=2048)}
RELATIVE = {"fp32": 4e-6, "bf16": 1e-2}  # of the output's scale


class Linear(torch.nn.Module):
    def __init__(self, k: int, n: int) -> None:
        super().__init__()
        torch.manual_seed(k * n)
        self.linear = torch.nn.Linear(k, n)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(self.linear(x))


class Products(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x @ y, x.transpose(1, 2) @ x, (x * 2 + 1) @ y + 3


def assert_close(got: np.ndarray, want: torch.Tensor, relative: float) -> None:
    reference = want.detach().numpy()
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, reference, rtol=0, atol=relative * np.abs(reference).max())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("k", "n"), [(96, 64), pytest.param(33, 7, marks=pytest.mark.slow), pytest.param(100, 65, marks=pytest.mark.slow)])
def test_layers(precision: str, k: int, n: int) -> None:
    model = Linear(k, n)
    loaded = program(model, (torch.zeros(3, k),), (ROWS,), precision=precision)
    for rows in (1, 65):
        torch.manual_seed(rows)
        x = torch.randn(rows, k)
        assert_close(both_orders(loaded, x)[0], Linear(k, n).double()(x.double()), RELATIVE[precision])


def test_products_of_activations_in_batches() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 20, 36), torch.randn(2, 36, 40)
    loaded = program(Products(), (x, y), ({1: torch.export.Dim("rows", min=1, max=256)}, None))
    for got, want in zip(both_orders(loaded, x, y), Products()(x.double(), y.double()), strict=True):
        assert_close(got, want, RELATIVE["fp32"])


def test_a_row_has_the_same_bits_alone_and_in_a_batch() -> None:
    loaded = program(Linear(40, 24), (torch.zeros(3, 40),), (ROWS,))
    x = torch.randn(70, 40)
    whole = loaded(x)
    np.testing.assert_array_equal(whole[69:], loaded(x[69:]))


def test_infinities_stay_infinite() -> None:
    x, y = torch.ones(1, 2, 8), torch.ones(1, 8, 4)
    x[0, 0, 3] = torch.inf
    got = both_orders(program(Products(), (x, y)), x, y)[0]
    np.testing.assert_array_equal(got, (x @ y).numpy())


@pytest.mark.slow
def test_large_tiles() -> None:
    model = Linear(64, 1100)
    x = torch.randn(1030, 64)
    loaded = program(model, (torch.zeros(3, 64),), (ROWS,))
    assert_close(both_orders(loaded, x)[0], Linear(64, 1100).double()(x.double()), RELATIVE["fp32"])


def test_products_of_integers_are_exact() -> None:
    class Integers(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x @ y

    x, y = torch.randint(-9, 9, (3, 5)), torch.randint(-9, 9, (5, 4))
    np.testing.assert_array_equal(both_orders(program(Integers(), (x, y)), x, y)[0], (x @ y).numpy())
