"""Elements of a value read at places that the value itself gives: whatever kernel makes the table has made all of it before it is read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.codegen.programs import Returns, compile_torch, dim


def read_in(table: Tensor, axis: int) -> Tensor:
    return torch.gather(table, axis, table.long().abs() % table.shape[axis])


# Of x [b, t, 12] of whole numbers: what makes the table, and the axis of its elements that are read.
TABLES: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "rows": (lambda x: x.amax(2), 1),
    "rows_of_two": (lambda x: x.amax((1, 2)), 0),
    "rows_kept": (lambda x: x.amax(2, keepdim=True), 1),
    "count": (lambda x: torch.count_nonzero(x, 2), 1),
    "softmax": (lambda x: (x.softmax(2) * 100).round(), 2),
    "softmax_of_other_rows": (lambda x: (x.softmax(2) * 100).round(), 1),
    "centered": (lambda x: x - x.amax(2, keepdim=True), 1),
    "columns": (lambda x: x.amax(1), 1),
    "columns_of_batch": (lambda x: x.amax(0) * 3, 1),
    "contraction": (lambda x: x @ x.new_ones(12, 32), 2),
    "contraction_of_other_rows": (lambda x: x @ x.new_ones(12, 32), 1),
    "contraction_by_batch": (lambda x: x @ x.transpose(1, 2), 2),
    "scan": (lambda x: x.cumsum(1), 1),
    "scan_of_rows": (lambda x: x.cumsum(2), 1),
    "sort": (lambda x: x.sort(1).values, 2),
    "elementwise": (lambda x: x * 3, 1),
    "window": (lambda x: torch.nn.functional.max_pool1d(x, 3, 1, 1), 2),
    "window_of_other_rows": (lambda x: torch.nn.functional.max_pool1d(x, 3, 1, 1), 1),
    "convolution": (lambda x: torch.nn.functional.conv1d(x.transpose(1, 2), x.new_ones(16, 12, 3), padding=1), 1),
    "padded": (lambda x: torch.nn.functional.pad(x, (1, 1, 2, 0)), 1),
    "joined": (lambda x: torch.cat([x, x + 1], 1), 1),
    "scatter": (lambda x: x.index_add(1, torch.zeros(1, dtype=torch.int64), x[:, :1]), 1),
}


@pytest.mark.parametrize("together", [False, True], ids=["alone", "with the table"])
def test_every_table_is_whole_before_it_is_read(together: bool) -> None:
    def output(make: Callable[[Tensor], Tensor], axis: int) -> Callable[[Tensor], Tensor]:
        return lambda x: read_in(make(x), axis) + (make(x) if together else 0)

    module = Returns(**{name: output(*table) for name, table in TABLES.items()})
    example = torch.randint(-20, 20, (3, 5, 12)).float()
    program = compile_torch(module, [example], [{0: dim("b"), 1: dim("t", 2)}])
    for b, t in ((7, 11), (2, 2), (1, 40)):
        x = torch.from_numpy(np.random.default_rng(t).integers(-20, 20, (b, t, 12))).float()
        for array, (name, want) in zip(program(x.numpy()), module(x).items(), strict=True):
            np.testing.assert_array_equal(array, want.numpy(), err_msg=f"{name} at {b}, {t}")
