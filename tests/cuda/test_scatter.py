"""Scatters on the fake GPU, against eager torch: places that repeat, sums in order, axes that data and loops give, in place and not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmos.runtime.errors import InputError

from .fake import both_orders, driver, program


class Scatters(torch.nn.Module):
    """x: [rows, columns]; places: rows, or a row for each element; update: one for each place."""

    def forward(self, x: torch.Tensor, rows: torch.Tensor, update: torch.Tensor, places: torch.Tensor) -> list[torch.Tensor]:
        return [
            x.index_put((rows,), update),
            x.index_put((rows,), update, accumulate=True),
            x.scatter_add(0, places, update),
            x.index_put((rows, rows % x.shape[1]), update[:, 0]),
        ]


@pytest.mark.parametrize(("rows", "columns", "updates"), [(7, 5, 12), (200, 1, 3), (1, 40, 1), (300, 3, 0)])
def test_updates_come_in_order(rows: int, columns: int, updates: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, update = torch.randn(rows, columns, generator=generator), torch.randn(updates, columns, generator=generator)
    places = torch.randint(0, rows, (updates,), generator=generator)
    each = torch.randint(0, rows, (updates, columns), generator=generator)
    loaded = program(Scatters(), (x, places, update, each))
    for found, wanted in zip(both_orders(loaded, x, places, update, each), Scatters()(x, places, update, each), strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-6, atol=1e-6)


class Writes(torch.nn.Module):
    def forward(self, cache: torch.Tensor, rows: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
        cache.index_put_((rows,), update)
        return cache.sum(-1)


def test_in_place_only_what_changes_is_written() -> None:
    cache, update = torch.zeros(90, 6), torch.ones(2, 6)
    loaded = program(Writes(), (cache.clone(), torch.tensor([3, 80]), update))
    array = np.arange(540, dtype=np.float32).reshape(90, 6)
    wanted = array.copy()
    wanted[[3, 80]] = 1
    np.testing.assert_array_equal(loaded(array, np.array([3, 80]), update), wanted.sum(-1))
    np.testing.assert_array_equal(array, wanted)
    with pytest.raises(InputError, match="out of range"):
        loaded(array, np.array([3, 90]), update)
    driver().fake_cuda_reset()
