"""Windows and interpolation read what they cover and nothing else: an infinity or a NaN in an image reaches what it reaches in torch.

`LLMOS_PROPERTY_CASES=1000` tries that many more programs than CI does.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llmos.compiler.frontend.torch import import_torch
from tests.conformance.inprocess import Compiled
from tests.frontend.harness import module_of

CASES = int(os.environ.get("LLMOS_PROPERTY_CASES", "0"))
Function = Callable[[torch.Tensor], torch.Tensor]


def pooled(rng: random.Random, rank: int) -> Function:
    pool = getattr(F, f"adaptive_avg_pool{rank}d")
    sizes = [rng.randint(1, 9) for _ in range(rank)]
    return lambda x: pool(x, sizes)


def averaged(rng: random.Random, rank: int) -> Function:
    pool = getattr(F, f"{rng.choice(['avg', 'max'])}_pool{rank}d")
    window, stride = rng.randint(1, 3), rng.randint(1, 3)
    return lambda x: pool(x, window, stride, window // 2, ceil_mode=True)


def resized(rng: random.Random, rank: int) -> Function:
    modes = {1: ["linear"], 2: ["bilinear", "bicubic"], 3: ["trilinear"]}[rank]
    mode, sizes, corners = rng.choice([*modes, "nearest", "nearest-exact"]), [rng.randint(1, 12) for _ in range(rank)], rng.random() < 0.5
    options: dict[str, Any] = {} if "nearest" in mode else {"align_corners": corners}
    return lambda x: F.interpolate(x, sizes, mode=mode, **options)


def antialiased(rng: random.Random, rank: int) -> Function:
    mode, sizes = rng.choice(["bilinear", "bicubic"]), [rng.randint(2, 12) for _ in range(2)]
    return lambda x: F.interpolate(x.reshape(*x.shape[:2], -1, x.shape[-1]), sizes, mode=mode, antialias=True)


def sampled(rng: random.Random, rank: int) -> Function:
    rank = max(rank, 2)
    torch.manual_seed(rng.randrange(2**30))
    grid = torch.rand(1, *[4] * rank, rank) * 3 - 1.5
    mode = rng.choice(["bilinear", "nearest", *(["bicubic"] if rank == 2 else [])])
    padding, corners = rng.choice(["zeros", "border", "reflection"]), rng.random() < 0.5
    return lambda x: F.grid_sample(x.reshape(*x.shape[:2], *x.shape[2:][-rank:]), grid, mode, padding, corners)


def convolved(rng: random.Random, rank: int) -> Function:
    conv = getattr(F, f"conv{rank}d")
    torch.manual_seed(rng.randrange(2**30))
    size, stride, groups = rng.choice([1, 2, 5]), rng.randint(1, 2), rng.choice([1, 2])
    weight = torch.randn(4, 2 // groups, *[size] * rank)
    return lambda x: conv(x, weight, None, stride, size // 2, 1, groups)


def transposed(rng: random.Random, rank: int) -> Function:
    conv = getattr(F, f"conv_transpose{rank}d")
    torch.manual_seed(rng.randrange(2**30))
    size, stride = rng.randint(1, 4), rng.randint(1, 3)
    weight = torch.randn(2, 3, *[size] * rank)
    return lambda x: conv(x, weight, None, stride, min(1, size - 1))


KINDS = [pooled, averaged, resized, antialiased, sampled, convolved, transposed]


def case(seed: int) -> tuple[Function, torch.Tensor]:
    """A function of an image, and one with a few elements that aren't finite."""
    rng = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    rank = 2 if kind is antialiased else rng.randint(1, 3)
    if kind is sampled:
        rank = rng.randint(2, 3)
    shape = (1, 2, *[rng.randint(4, 9) for _ in range(rank)])
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    for value in (float("inf"), float("nan")):
        x.view(-1)[rng.randrange(x.numel())] = value
    return kind(rng, rank), x


@pytest.mark.parametrize("seed", range(CASES or len(KINDS)))
def test_what_is_not_finite_reaches_what_covers_it(seed: int) -> None:
    function, x = case(seed)
    (got,), want = Compiled(import_torch(module_of(function), (x,)))([x.numpy()]), function(x).numpy()
    assert got.shape == want.shape
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want))
    finite = np.isfinite(want)
    np.testing.assert_allclose(got[finite], want[finite], rtol=1e-4, atol=1e-4)
