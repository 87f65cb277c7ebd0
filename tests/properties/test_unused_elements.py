"""An infinity or NaN reaches what it is an element of, and nothing else: no op multiplies what it leaves out by zero.

LLMOS_UNUSED_TRIALS is how many places of each input are tried.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import numpy as np
import pytest
import torch

from llmos.runtime.program import Program
from tests.codegen.programs import V3, Returns, compile_torch, run

F = torch.nn.functional
Tensor = torch.Tensor
TRIALS = int(os.environ.get("LLMOS_UNUSED_TRIALS", "6"))
IDS, OFFSETS = torch.tensor([1, 3, 3, 0, 5, 1]), torch.tensor([0, 2, 2])
PLACES = torch.tensor([[0, 2, 1], [3, 3, 0]])
LABELS = torch.tensor([2, -100, 0, 1, -100, 3, 4, 0])
KEPT = torch.arange(24).reshape(4, 6) % 3 != 0
BOUNDS = torch.linspace(-1, 1, 5)


def bag(mode: str, **options: object) -> Callable[[Tensor], Tensor]:
    return lambda x: F.embedding_bag(IDS, x, OFFSETS, mode=mode, **options)  # type: ignore[arg-type]


# of x [8, 6]
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "bag_sum": bag("sum"),
    "bag_mean": bag("mean"),
    "bag_max": bag("max"),
    "bag_sum_padded": bag("sum", padding_idx=3),
    "bag_mean_padded": bag("mean", padding_idx=1),
    "bag_weighted": bag("sum", per_sample_weights=torch.linspace(0.5, 1, 6)),
    "embedding": lambda x: F.embedding(PLACES, x),
    "gather": lambda x: x.gather(0, PLACES),
    "take_along": lambda x: torch.take_along_dim(x, PLACES.T.repeat(3, 1)[:8], 1),
    "index_select": lambda x: x.index_select(1, PLACES[0]),
    "masked_sum": lambda x: torch.where(KEPT.repeat(2, 1), x, 0.0).sum(1),
    "masked_fill_mean": lambda x: x.masked_fill(~KEPT.repeat(2, 1), 0.0).mean(0),
    "nansum": lambda x: x.nansum(1),
    "nanmean": lambda x: x.nanmean(0),
    "cross_entropy": lambda x: F.cross_entropy(x, LABELS, reduction="none"),
    "nll_mean": lambda x: F.nll_loss(x, LABELS),
    "nll_weighted": lambda x: F.nll_loss(x, LABELS, weight=torch.linspace(1, 2, 6)),
    "triangle": lambda x: x.tril(),
    "upper": lambda x: x.triu(1).sum(1),
    "trace": lambda x: x.trace(),
    "diagonal": lambda x: x.diagonal(1).sum(),
    "histogram_of_weights": lambda x: torch.histogram(torch.linspace(-1, 1, 48), BOUNDS, weight=x.flatten()).hist,
    "segments": lambda x: torch.segment_reduce(x, "sum", lengths=torch.tensor([3, 0, 5]), axis=0, unsafe=True, initial=0.0),
    "segment_means": lambda x: torch.segment_reduce(x, "mean", lengths=torch.tensor([3, 1, 4]), axis=0, unsafe=True),
    "sums_of_parts": lambda x: x.unfold(1, 3, 2).sum(-1),
    "index_add": lambda x: torch.zeros(5, 6).index_add(0, PLACES.flatten().repeat(2)[:8], x),
    "scatter_add": lambda x: torch.zeros(9, 6).scatter_add(0, torch.arange(48).reshape(8, 6) % 9, x),
    "fold": lambda x: F.fold(x.T.reshape(1, 6, 8)[:, :, :6], (4, 3), (3, 1), stride=1),
    "convolution": lambda x: F.conv1d(x.unsqueeze(0), torch.ones(2, 8, 3), padding=1),
    "transposed": lambda x: F.conv_transpose1d(x.unsqueeze(0), torch.ones(8, 2, 3), stride=2),
    "depthwise": lambda x: F.conv1d(x.unsqueeze(0), torch.ones(8, 1, 3), padding=2, groups=8),
    "average": lambda x: F.avg_pool1d(x, 2, 2, 1),
    "adaptive": lambda x: F.adaptive_avg_pool1d(x, 4),
    "running_sum": lambda x: x.cumsum(1),
    "product": lambda x: x @ torch.ones(6, 3),
    "group_norm": lambda x: F.group_norm(x.reshape(4, 2, 6), 2),
    "layer_norm": lambda x: F.layer_norm(x, (6,)),
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(0),
    "normalized": lambda x: F.normalize(x, dim=1),
    "rotated": lambda x: x.roll((1, 2), (0, 1)).flip(0),
    "padded": lambda x: F.pad(x.unsqueeze(0), (2, 1), mode="reflect"),
}


@pytest.fixture(scope="module")
def program() -> Program:
    return compile_torch(Returns(**FUNCTIONS), [torch.randn(8, 6)], target=V3)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_is_left_out_has_no_effect(value: float, program: Program) -> None:
    left_out = {"bag_max"} if math.isnan(value) else set()  # torch's maximum over a bag passes NaN over
    places = torch.randperm(48, generator=torch.Generator().manual_seed(5))[:TRIALS]
    wrong = set()
    for place in places.tolist():
        x = torch.randn(48, generator=torch.Generator().manual_seed(place))
        x[place] = value
        for name, found in run(program, x.reshape(8, 6)).items():
            want = FUNCTIONS[name](x.reshape(8, 6)).numpy()
            if name not in left_out and not np.array_equal(np.isfinite(found), np.isfinite(want)):
                wrong.add(f"{name}: {value} at {divmod(place, 6)} gives {found.tolist()}, not {want.tolist()}")
    assert not wrong, "\n".join(sorted(wrong))
