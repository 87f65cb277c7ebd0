"""What ops about the order of numbers give of NaN, against eager torch: at every place of a row, several of them, nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from llmos.compiler.frontend.torch import import_torch
from tests.codegen.programs import Returns
from tests.conformance.inprocess import Compiled

Tensor = torch.Tensor
NAN, INF = math.nan, math.inf
ROWS = [
    [1, NAN, 2, NAN, NAN, 0],
    [NAN] * 6,
    [1, 1, NAN, 2, 2, NAN],
    [0.0, -0.0, NAN, INF, -INF, 3],
    [3, 2, 1, 1, 3, 0],
    [NAN, 1, 1, 1, NAN, 5],
]
IDS = torch.tensor([[0, 1, 1, 0, 2, 2], [1, 1, 0, 0, 2, 1], [0, 0, 0, 0, 0, 0]])
BAG, STARTS = torch.tensor([0, 1, 2, 3, 4, 5, 5, 3, 1, 1, 0, 4]), torch.tensor([0, 2, 4, 8, 8, 9, 10])
EDGES, OTHER = torch.tensor([-1.0, 0.0, 1.0, NAN]), torch.tensor([NAN, 1.0, 0.0, -INF, INF, NAN])

PAIRS = {
    "max": lambda x: torch.max(x, 1),
    "min": lambda x: torch.min(x, 0),
    "cummax": lambda x: torch.cummax(x, 1),
    "cummin": lambda x: torch.cummin(x, 0),
    "median": lambda x: torch.median(x, 1)[:1],
    "nanmedian": lambda x: torch.nanmedian(x, 1)[:1],
    "sort": lambda x: torch.sort(x, dim=1, stable=True),
    "pool_1d": lambda x: F.max_pool1d(x[None], 3, 1, 1, return_indices=True),
    "pool_2d": lambda x: F.max_pool2d(x[None], 2, 2, 1, return_indices=True),
    "pool_dilated": lambda x: F.max_pool2d(x[None], 2, 1, 1, 2, return_indices=True),
    "pool_3d": lambda x: F.max_pool3d(x[None, None], (1, 2, 2), 1, return_indices=True),
    "pool_adaptive": lambda x: F.adaptive_max_pool2d(x[None], (3, 2), return_indices=True),
    "aminmax": lambda x: torch.aminmax(x, dim=1),
}
SINGLE = {
    "amax": lambda x: x.amax((0, 1)),
    "argmax": lambda x: x.argmax(1),
    "argmin": lambda x: x.argmin(0),
    "fmax": lambda x: torch.fmax(x, OTHER.to(x.dtype)),
    "minimum": lambda x: torch.minimum(x, OTHER.to(x.dtype)),
    "clamp": lambda x: x.clamp(-1, 1),
    "clamp_max": lambda x: x.clamp(max=OTHER.to(x.dtype)),
    "quantile": lambda x: torch.quantile(x.float(), 0.3, 1),
    "nanquantile": lambda x: torch.nanquantile(x.float(), 0.6, 1),
    "kthvalue": lambda x: torch.kthvalue(x, 2)[0],
    "topk": lambda x: torch.topk(x, 3)[0],
    "scatter": lambda x: x.scatter_reduce(0, IDS, x[:3], "amax"),
    "scatter_alone": lambda x: x.scatter_reduce(0, IDS, x[:3], "amin", include_self=False),
    "index_reduce": lambda x: x.index_reduce(0, IDS[0], x, "amax"),
    "bags": lambda x: F.embedding_bag(BAG, x, STARTS, mode="max"),
    "bags_padded": lambda x: F.embedding_bag(BAG, x, STARTS, mode="max", padding_idx=1),
    "norm": lambda x: torch.linalg.vector_norm(x, INF, 1),
    "distances": lambda x: torch.cdist(x.float(), x.float().flip(0), p=INF),
    "searchsorted": lambda x: torch.searchsorted(EDGES.to(x.dtype), x),
    "bucketize": lambda x: torch.bucketize(x, EDGES[:3].to(x.dtype), right=True),
}


@pytest.mark.sample(0)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_like_eager(dtype: torch.dtype) -> None:
    x = torch.tensor(ROWS).to(dtype)
    parts = {f"{name}_{i}": (lambda v, f=f, i=i: f(v)[i]) for name, f in PAIRS.items() for i in range(len(f(x)))}
    functions = {**SINGLE, **parts}
    found = Compiled(import_torch(Returns(**functions), (x,)))([x.numpy()])
    wrong = []
    for (name, function), got in zip(functions.items(), found, strict=True):
        want = function(x)
        if not np.array_equal(got, want.numpy(), equal_nan=got.dtype.kind == "f"):
            wrong.append(f"{name}: {got.reshape(-1)[:8]} instead of {want.reshape(-1)[:8]}")
    assert not wrong, "; ".join(wrong)


def test_the_mode_counts_each_nan_alone() -> None:
    """Eager torch sorts rows with a NaN by an order that isn't one; of such a row the mode is that of its numbers, where it has any."""
    x = torch.tensor(ROWS)
    values, places = Compiled(import_torch(Returns(v=lambda v: torch.mode(v, 1)[0], i=lambda v: torch.mode(v, 1)[1]), (x,)))([x.numpy()])
    np.testing.assert_array_equal(values, np.float32([0, NAN, 1, 0, 1, 1]))
    np.testing.assert_array_equal(places[[0, 2, 4, 5]], [5, 1, 3, 3])
