"""Windows over what a contraction makes, in one dispatch: every edge of the bands, panels and images, and bits that no split changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from llmos.runtime.native.binding import num_threads, set_num_threads

from .programs import ChannelsLast, assert_like_eager, compile_torch, dim, in_turn


def convolution(channels: int, out: int, size: int = 1, **options: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, out, size, **options), nn.ReLU6())


def depthwise(channels: int, size: int, **options: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, channels, size, groups=channels, **options), nn.Hardswish())


CASES: dict[str, tuple[nn.Module, tuple[int, int, int]]] = {  # and the image: height, width, channels
    "one_panel": (nn.Sequential(convolution(16, 40), depthwise(40, 3, padding=1)), (12, 11, 16)),
    "panels_and_a_rest": (nn.Sequential(convolution(24, 100), depthwise(100, 3, padding=1, stride=2)), (9, 14, 24)),
    "narrow": (nn.Sequential(convolution(7, 9), depthwise(9, 5, padding=2)), (7, 7, 7)),
    "bands": (nn.Sequential(convolution(8, 64), depthwise(64, 3, padding=1, stride=2)), (50, 112, 8)),
    "bands_of_a_wide_stride": (nn.Sequential(convolution(8, 64), depthwise(64, 2, padding=1, stride=3)), (47, 100, 8)),
    "dilated": (nn.Sequential(convolution(12, 48), depthwise(48, 3, padding=2, dilation=2)), (10, 30, 12)),
    "no_padding": (nn.Sequential(convolution(12, 33), depthwise(33, 3)), (10, 8, 12)),
    "conv_and_pool": (nn.Sequential(convolution(12, 56, 3, padding=1), nn.MaxPool2d(3, 2, 1)), (30, 31, 12)),
    "far_into_the_padding": (nn.Sequential(convolution(8, 32), depthwise(32, 4, padding=3, stride=4)), (5, 6, 8)),
    "mean": (nn.Sequential(convolution(9, 20, 2, stride=2), nn.AvgPool2d(2)), (20, 12, 9)),
}


def kinds(program: object) -> set[str]:
    return {kernel.kind for kernel in program.manifest.kernels}  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "target"), in_turn((name,) for name in CASES))
def test_like_eager(name: str, target: str) -> None:
    module, image = ChannelsLast(CASES[name][0]), CASES[name][1]
    program = compile_torch(module, [torch.randn(2, *image)], [{0: dim("n", 1, 16)}], target)
    assert "contraction_window" in kinds(program)
    for batch in (1, 3):
        assert_like_eager(program, module, torch.randn(batch, *image), rtol=2e-5)


def test_one_image() -> None:
    """A batch of one is no loop dim."""
    module = ChannelsLast(CASES["panels_and_a_rest"][0])
    program = compile_torch(module, [torch.randn(1, 9, 14, 24)])
    assert "contraction_window" in kinds(program)
    assert_like_eager(program, module, torch.randn(1, 9, 14, 24), rtol=2e-5)


@pytest.mark.sample(0)
@pytest.mark.parametrize("name", ["bands", "conv_and_pool"])
def test_bits_depend_neither_on_threads_nor_on_the_batch(name: str) -> None:
    module, image = ChannelsLast(CASES[name][0]), CASES[name][1]
    program = compile_torch(module, [torch.randn(2, *image)], [{0: dim("n", 1, 16)}])
    x = np.random.default_rng(0).standard_normal((3, *image), np.float32)
    before, found = num_threads(), []
    try:
        for count in (1, 2):
            set_num_threads(count)
            found.append(program(x))
    finally:
        set_num_threads(before)
    np.testing.assert_array_equal(*found)
    np.testing.assert_array_equal(program(x[1:2])[0], found[0][1])
