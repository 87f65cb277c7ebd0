"""Convolutions of dequantized tensors become contractions in the kernels' form, with the zero point around the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.passes import Upstream
from llmos.passes.channels_last import ChannelsLast
from llmos.passes.quant.fuse_dequantize import FuseDequantize
from llmos.passes.quant.lower_zero_points import LowerZeroPoints
from tests.passes.ir_tests import apply, check

from .quant_tests import Program, examples, kernel_forms
from .test_fuse_dequantize import dequantized
from .test_lower_zero_points import DTYPES, integers

PASSES = (ChannelsLast(), FuseDequantize(), LowerZeroPoints(), Upstream("canonicalize"), Upstream("cse"))


def convolution(
    x: torch.Tensor, w: torch.Tensor, zx: int, zw: torch.Tensor | None, dynamic: bool = False, **windows: int | tuple[int, int]
) -> Program:
    """x [batch, c, h, w] by w [n, c, kh, kw], as the importer of QLinearConv has it."""
    one = torch.ones(())
    weights = [w] if zw is None else [w, zw]

    def function(w: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        a = dequantized(rest[-1], one, torch.full((), zx, dtype=x.dtype), 1)
        return torch.nn.functional.conv2d(a, dequantized(w, one, rest[0] if zw is not None else None, 0), **windows)  # type: ignore[arg-type]

    return Program.of(function, weights, x, dynamic=dynamic)


def expect_same(program: Program, num_products: int = 1) -> None:
    want = program.run()
    apply(program.module, *PASSES)
    assert kernel_forms(program.module) == num_products
    for got, each in zip(program.run(), want, strict=True):
        np.testing.assert_array_equal(got, each)


@settings(max_examples=examples(8, 20), deadline=None)
@given(
    left=st.sampled_from(list(DTYPES)),
    right=st.sampled_from(list(DTYPES)),
    zeros=st.booleans(),
    c=st.integers(2, 5),
    n=st.integers(2, 9),
    kernel=st.tuples(st.integers(3, 4), st.integers(2, 4)),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dynamic=st.booleans(),
    seed=st.integers(0, 99),
)
def test_numbers(
    left: str,
    right: str,
    zeros: bool,
    c: int,
    n: int,
    kernel: tuple[int, int],
    stride: int,
    dilation: int,
    padding: tuple[int, int],
    dynamic: bool,
    seed: int,
) -> None:
    x, w = integers(left, 2, c, 9, 8, seed=seed), integers(right, n, c, *kernel, seed=seed + 1)
    zx, zw = int(integers(left, seed=seed + 2)), integers(right, n, seed=seed + 3)
    expect_same(convolution(x, w, zx, zw if zeros else None, dynamic, stride=stride, dilation=dilation, padding=padding))


def test_the_zero_point_lies_around_the_image() -> None:
    program = convolution(integers("uint8", 2, 8, 5, 5), integers("int8", 16, 8, 3, 3), 7, None, padding=1)
    check(
        apply(program.module, *PASSES),
        """
        CHECK: %[[ZERO:.*]] = arith.constant 7 : i8
        CHECK: tensor.pad
        CHECK: tensor.yield %[[ZERO]] : i8
        CHECK: tensor<2x5x5x8xi8> to tensor<2x7x7x8xi8>
        CHECK: ins(%{{.*}}, %{{.*}} : tensor<2x7x7x8xi8>, tensor<3x3x8x16xi8>)
        CHECK: arith.subi
        """,
    )


def test_signs_are_flipped_before_the_image_is_padded() -> None:
    program = convolution(integers("int8", 2, 8, 5, 5), integers("int8", 16, 8, 3, 3), -7, None, padding=1)
    check(
        apply(program.module, *PASSES),
        """
        CHECK: %[[ZERO:.*]] = arith.constant 121 : i8
        CHECK: arith.xori
        CHECK: tensor.pad
        CHECK: tensor.yield %[[ZERO]] : i8
        CHECK-NOT: arith.xori
        CHECK: return
        """,
    )


def test_a_padding_other_than_zero_stays() -> None:
    def function(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        a = dequantized(x, torch.ones(()), torch.full((), 3, dtype=torch.uint8), 1)
        padded = torch.nn.functional.pad(a, (1, 1, 1, 1), value=1.0)
        return torch.nn.functional.conv2d(padded, dequantized(w, torch.ones(()), None, 0))

    program = Program.of(function, [integers("int8", 16, 8, 3, 3)], integers("uint8", 2, 8, 5, 5))
    assert kernel_forms(apply(program.module, *PASSES)) == 0


def exact(x: torch.Tensor, w: torch.Tensor, zx: int, **windows: int) -> np.ndarray:
    """The convolution of x - zx by w in float64, which holds every sum, rounded once."""
    centered = x.to(torch.float64) - zx
    return torch.nn.functional.conv2d(centered, w.to(torch.float64), **windows).to(torch.float32).numpy()


@pytest.mark.parametrize(
    ("c", "n", "kernel", "groups", "kind"),
    [(128, 4, 3, 2, "muli"), (300, 2, 1, 1, ""), (6, 6, 7, 6, "mulf"), (5, 10, 5, 5, "mulf"), (3, 3, 17, 3, "muli")],
)
def test_sums_in_groups_are_exact(c: int, n: int, kernel: int, groups: int, kind: str) -> None:
    """Numbers near the largest: float32 would round sums of more than 258 products."""
    x, w = integers("uint8", 1, c, 18, 18) | 0xF0, (integers("int8", n, c // groups, kernel, kernel, seed=1) & 0x7F) | 0x60
    program = convolution(x, w, 1, None, padding=1, groups=groups)
    module = apply(program.module, *PASSES)
    np.testing.assert_array_equal(program.run()[0], exact(x, w, 1, padding=1, groups=groups))
    if kind:
        check(module, f"CHECK: arith.{kind} %in, %in")


def test_scales_of_a_depthwise_convolution_follow_its_sums() -> None:
    x, w = integers("uint8", 2, 8, 5, 5), integers("int8", 8, 1, 3, 3, seed=1)

    def function(w: torch.Tensor, scales: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        a = dequantized(x, torch.full((), 0.1), torch.full((), 3, dtype=torch.uint8), 1)
        return torch.nn.functional.conv2d(a, dequantized(w, scales, None, 0), padding=1, groups=8)

    scales = torch.linspace(0.01, 0.08, 8)
    program = Program.of(function, [w, scales], x, dynamic=False)
    apply(program.module, *PASSES)
    sums = exact(x, w, 3, padding=1, groups=8)
    want = sums * np.float32(0.1) * scales.numpy().reshape(1, 8, 1, 1)
    np.testing.assert_array_equal(program.run()[0], want)


def test_a_convolution_in_groups_is_no_matrix_product() -> None:
    program = convolution(integers("uint8", 2, 8, 5, 5), integers("int8", 16, 2, 3, 3), 7, None, padding=1, groups=4)
    assert kernel_forms(apply(program.module, *PASSES)) == 0
