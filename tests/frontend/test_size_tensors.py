"""Sizes that a model carries in tensors and reads back as numbers are sizes; numbers that data makes become some."""

from __future__ import annotations

import torch

from tests.frontend.harness import check


def test_slices_and_limits_made_of_sizes() -> None:
    table = torch.arange(256.0).reshape(64, 4)

    def model(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        span = torch.tensor(min(x.shape[1], 20))
        window = table[32 - span : 32 + span]
        return window * 2, torch.clamp((x * 9).long() + span, 0, span * 2 - 1), x + span

    check(model, sizes=((2, 5), (4, 31), (1, 1)))


def test_a_number_of_data_is_a_size_that_the_program_computes() -> None:
    def model(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        size = (i[0] + torch.tensor(x.shape[1])).item()
        torch._check(size > 0)
        torch._check(size < 90)
        return torch.zeros(size) + x.sum()  # type: ignore[arg-type]

    check(model, (("B", "T", 8), ("int64", "B")), sizes=((2, 5), (4, 31), (1, 2)))
