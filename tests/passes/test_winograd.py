"""winograd: which convolutions are computed by fewer multiplications, and how large their tiles are."""

from __future__ import annotations

import pytest
import torch

from llmos.compiler.ir.attributes import WINOGRAD
from llmos.compiler.ir.bindings import ir
from llmos.passes import Pass
from llmos.passes.channels_last import ChannelsLast
from llmos.passes.fold_weight_computation import FoldWeightComputation
from llmos.passes.form_dispatches import FormDispatches
from llmos.passes.pack_weights import PackWeights
from llmos.passes.winograd import Winograd

from .ir_tests import apply, check, functions, generics

conv = torch.nn.functional.conv2d


def dispatched(function: object, size: tuple[int, ...], *weights: torch.Tensor, passes: tuple[Pass, ...] = ()) -> ir.Module:
    module = generics(function, torch.randn(2, *size), weights=weights)
    return apply(module, ChannelsLast(), FoldWeightComputation(), FormDispatches(), *passes)


def tiles(module: ir.Module) -> list[int]:
    """m of each dispatch that is marked."""
    return [ir.IntegerAttr(f.attributes[WINOGRAD]).value for f in functions(module) if WINOGRAD in f.attributes]


def test_a_convolution_is_marked_and_its_weight_packed_for_tiles_of_that_size() -> None:
    check(
        dispatched(
            lambda w, x: torch.relu(conv(x, w, padding=1)), (64, 28, 28), torch.randn(64, 64, 3, 3), passes=(Winograd(), PackWeights())
        ),
        """
        CHECK: func.func @main(
        CHECK-SAME: llmos.packed = [array<i64: 0>, array<i64: 2, 3, 1>, array<i64>, array<i64: 4>]
        CHECK: llmos.packed = [array<i64: 0>, array<i64: 2, 3, 1>, array<i64>, array<i64: 4>]
        CHECK-SAME: llmos.dispatch = "winograd"
        CHECK-SAME: llmos.winograd = 4
        """,
    )


@pytest.mark.parametrize(
    ("image", "channels", "m"),
    [
        ((56, 56), 64, 4),
        ((14, 14), 256, 4),
        ((7, 7), 512, 2),  # four times the bytes of the weight for few tiles is more than four times fewer products save
        ((2, 2), 512, 0),
        ((28, 28), 16, 0),
        ((28, 28), 40, 0),  # not in vectors
    ],
)
def test_what_is_the_least_work_is_chosen(image: tuple[int, int], channels: int, m: int) -> None:
    module = dispatched(lambda w, x: conv(x, w, padding=1), (channels, *image), torch.randn(channels, channels, 3, 3), passes=(Winograd(),))
    assert tiles(module) == ([m] if m else [])


W = torch.randn(64, 64, 3, 3)


@pytest.mark.parametrize(
    ("function", "weight"),
    [
        (lambda w, x: conv(x, w, padding=1, stride=2), W),
        (lambda w, x: conv(x, w, padding=2, dilation=2), W),
        (lambda w, x: conv(x, w), torch.randn(64, 64, 1, 1)),
        (lambda w, x: conv(x, w, padding=2), torch.randn(64, 64, 5, 5)),
        (lambda w, x: conv(x, w, padding=1), torch.randn(64, 64, 1, 3)),
        (lambda w, x: conv(x, w, padding=1, groups=2), torch.randn(64, 32, 3, 3)),
        (lambda w, x: conv(x, x.mean() * w, padding=1), W),
        (lambda w, x: conv(x, w.float(), padding=1), W.bfloat16()),
    ],
    ids=["stride", "dilation", "1x1", "5x5", "1x3", "groups", "no_constant", "bfloat16"],
)
def test_is_left_to_the_direct_sum(function: object, weight: torch.Tensor) -> None:
    assert tiles(dispatched(function, (64, 28, 28), weight, passes=(Winograd("4"),))) == []


def test_an_image_of_unknown_size_is_left() -> None:
    height = torch.export.Dim("height", min=8, max=64)
    from llmos.compiler.frontend.torch import import_torch

    from .ir_tests import PRELUDE, Call

    module = import_torch(
        Call(lambda w, x: conv(x, w, padding=1), W).eval(), (torch.randn(1, 64, 28, 28),), (({2: height},),), name="m"
    ).module
    assert tiles(apply(module, *PRELUDE, ChannelsLast(), FoldWeightComputation(), FormDispatches(), Winograd("4"))) == []
