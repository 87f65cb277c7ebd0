"""Convolutions whose weight is an input with dynamic dims: filters, channels and windows other than the traced ones.

CI runs CASES of the generator; LLMOS_CONV_CASES is another number of them.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from llmos.compiler.frontend.torch import import_torch, to_numpy
from tests.conformance.inprocess import Compiled
from tests.conformance.opinfo import difference

CASES = int(os.environ.get("LLMOS_CONV_CASES", "5"))
AUTO = torch.export.Dim.AUTO


@dataclass(frozen=True)
class Sizes:
    """Of one call. In a transposed convolution channels and filters change places in the weight."""

    filters: int
    channels: int
    window: tuple[int, ...]
    image: tuple[int, ...]


CALLS = (
    Sizes(3, 2, (3, 2, 3), (7, 6, 8)),  # traced
    Sizes(3, 2, (2, 4, 2), (7, 6, 8)),
    Sizes(5, 4, (1, 1, 1), (9, 5, 4)),
    Sizes(1, 1, (5, 3, 2), (7, 6, 8)),
)


@dataclass(frozen=True)
class Convolution:
    rank: int
    transposed: bool
    groups: int
    stride: int
    padding: int | str
    dilation: int
    output_padding: int
    has_bias: bool
    has_batch: bool

    @classmethod
    def random(cls, seed: int) -> Convolution:
        rng = random.Random(seed)
        rank, transposed, stride = rng.choice((1, 2, 2, 3)), rng.random() < 0.5, rng.choice((1, 2))
        padding: Any = rng.choice((0, 1, 2) if transposed else (0, 1, "same", "valid"))
        stride = 1 if padding == "same" else stride
        extra = rng.choice((0, 1)) if transposed and stride == 2 else 0
        groups, dilation = rng.choice((1, 1, 2, 3)), rng.choice((1, 1, 2))
        return cls(rank, transposed, groups, stride, padding, dilation, extra, rng.random() < 0.5, rng.random() < 0.8)

    def arguments(self, sizes: Sizes) -> list[torch.Tensor]:
        outer, inner = (sizes.channels, sizes.filters) if self.transposed else (sizes.filters, sizes.channels)
        batch = (2,) if self.has_batch else ()
        x = torch.randn(*batch, sizes.channels * self.groups, *sizes.image[: self.rank])
        weight = torch.randn(outer * self.groups, inner, *sizes.window[: self.rank])
        return [x, weight, *([torch.randn(sizes.filters * self.groups)] if self.has_bias else [])]

    def module(self) -> torch.nn.Module:
        function: Any = getattr(F, f"conv_transpose{self.rank}d" if self.transposed else f"conv{self.rank}d")
        rest = (self.output_padding, self.groups, self.dilation) if self.transposed else (self.dilation, self.groups)

        def forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
            return function(x, weight, bias, self.stride, self.padding, *rest)

        return type("Module", (torch.nn.Module,), {"forward": staticmethod(forward)})()


@pytest.mark.sample(0, 2, 4)
@pytest.mark.parametrize("seed", range(CASES))
def test_a_weight_of_other_sizes_than_the_traced_ones(seed: int) -> None:
    torch.manual_seed(seed)
    case = Convolution.random(seed)
    traced = case.arguments(CALLS[0])
    shapes = tuple(dict.fromkeys(range(each.dim()), AUTO) for each in traced)
    program = torch.export.export(case.module(), tuple(traced), dynamic_shapes=shapes)
    compiled = Compiled(import_torch(program))

    compared = 0
    for sizes in CALLS:
        arguments = case.arguments(sizes)
        try:
            want = program.module()(*arguments)
        except Exception:  # export has fixed a size, or the window is larger than the image
            continue
        (got,) = compiled([to_numpy(each) for each in arguments])
        assert not difference(got, want), f"{case} at {sizes}: {difference(got, want)}"
        compared += 1
    assert compared
