"""Convolutions whose weight is no parameter: made of constants, of views, or of the input itself.

`LLMOS_PROPERTY_CASES=1` tries every weight with every convolution instead of a sample.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llmos.compiler.frontend.torch import import_torch
from tests.conformance.inprocess import Compiled
from tests.frontend.harness import module_of

Weight = Callable[[torch.Tensor], torch.Tensor]

# Of x [2, 3, 6, 6]: [3 or more, 3, window...]
WEIGHTS: dict[str, Weight] = {
    "eye": lambda x: torch.eye(3)[:, :, None, None],
    "eye-windows": lambda x: torch.eye(3)[None, None].expand(3, 3, 3, 3),
    "one-hot": lambda x: F.one_hot(torch.arange(3), 3).float()[:, :, None, None],
    "one-number": lambda x: torch.full((1, 1, 1, 1), 0.5).expand(4, 3, 2, 3),
    "outer": lambda x: torch.outer(torch.arange(3.0), torch.tensor([1.0, 2.0, 1.0]))[None, None].expand(4, 3, 3, 3),
    "outer-of-input": lambda x: torch.outer(x[0, 0, 0, :3], x[0, 0, :3, 0])[None, None].expand(4, 3, 3, 3),
    "diagonal": lambda x: torch.diag_embed(x[0, 0, 0, :3])[:, :, None, None],
    "transposed": lambda x: x[:1, :3, :2, :2].permute(1, 0, 2, 3).expand(3, 3, 2, 2),
    "flipped": lambda x: x[:1, :3, :3, :3].flip(-1).expand(4, 3, 3, 3),
    "mean": lambda x: x.mean((0, 2, 3), keepdim=True).expand(4, 3, 2, 2),
}
CONVOLUTIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "plain": lambda x, w: F.conv2d(x, w),
    "strided": lambda x, w: F.conv2d(x, w, None, 2, 1),
    "depthwise": lambda x, w: F.conv2d(x, w[:3, :1], None, 1, 0, 1, 3),
    "transposed": lambda x, w: F.conv_transpose2d(x, w[:3], None, 2),
}


def sampled() -> list[tuple[str, str]]:
    pairs = [(weight, kind) for weight in WEIGHTS for kind in CONVOLUTIONS]
    known = [("eye", "plain"), ("diagonal", "depthwise"), ("flipped", "depthwise")]
    return pairs if os.environ.get("LLMOS_PROPERTY_CASES") else [*known, *random.Random(0).sample(pairs, 4)]


@pytest.mark.parametrize(("weight", "kind"), sampled())
def test_a_computed_weight(weight: str, kind: str) -> None:
    def run(x: torch.Tensor) -> torch.Tensor:
        return CONVOLUTIONS[kind](x, WEIGHTS[weight](x))

    x = torch.randn(2, 3, 6, 6)
    (got,) = Compiled(import_torch(module_of(run), (x,)))([x.numpy()])
    np.testing.assert_allclose(got, run(x).numpy(), rtol=1e-4, atol=1e-4)
