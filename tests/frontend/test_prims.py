"""torch's primitive ops, views above all, and results of ops that only training reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llmos.compiler.frontend.torch import import_torch
from tests.conformance.inprocess import Compiled
from tests.frontend.harness import module_of

prims, aten = torch.ops.prims, torch.ops.aten


def agree(function: Any, *args: Tensor) -> None:
    module: nn.Module = module_of(function)
    rows = torch.export.Dim("rows", min=3, max=20)
    compiled = Compiled(import_torch(module, args, ({0: rows},)))
    for count in (4, 6):
        given = torch.cat([args[0], args[0]])[:count]
        for got, want in zip(compiled([given.numpy()]), module(given), strict=True):
            assert (got.shape, got.dtype) == (tuple(want.shape), want.numpy().dtype)
            np.testing.assert_allclose(got, want.numpy(), rtol=1e-5, atol=1e-6)


def test_views() -> None:
    def run(x: Tensor) -> tuple[Tensor, ...]:
        return (
            prims.view_of(x) * 2, prims.split_dim(x, 2, 2), prims.squeeze(x.unsqueeze(1), [1]), prims.collapse_view(x, 1, 2),
            prims.broadcast_in_dim(x, [x.shape[0], 5, 3, 4], [0, 2, 3]), prims.transpose(x, [2, 0, 1]), prims.rev(x, [1, 2]),
            prims.reshape(x, [x.shape[0], 12]), prims.collapse(x, 1, 2), prims.as_strided(x[1:], [2, 2], [3, 1], 0),
        )  # fmt: skip

    agree(run, torch.randn(4, 3, 4))


def test_numbers() -> None:
    def run(x: Tensor) -> tuple[Tensor, ...]:
        whole = prims.convert_element_type(x * 10, torch.int64)
        return (
            whole, prims.div(whole, 3), prims.div(x, 3.0), prims.cbrt(x), prims.where(x > 0, x, -x), prims.sum(x, [1, 2]),
            prims.prod(x, [1, 2]), prims.var(x, [1], 1.0), prims.cat([x, x], 1), prims.erf_inv(x / 5), prims.shift_left(whole, 2),
            prims.iota(4, start=1, step=2, dtype=torch.int64, device="cpu", requires_grad=False) + whole,
        )  # fmt: skip

    agree(run, torch.randn(4, 3, 4))


def test_statistics_that_batch_norm_has_none_of() -> None:
    weight, bias, mean, var = torch.randn(4, 3).abs().unbind(0)
    agree(lambda x: aten._native_batch_norm_legit_no_training(x, weight, bias, mean, var, 0.1, 1e-5), torch.randn(4, 3, 4))
