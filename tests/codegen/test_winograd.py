"""Winograd's algorithm: its transforms in exact arithmetic, its kernels against float64, the same bits in a batch and alone."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest

from llmos.compiler.analysis.winograd import POINTS, TAPS, Minimal, matrices, transform_kernel
from llmos.runtime.native.binding import num_threads, set_num_threads

from .images import Convolution
from .programs import V3, V4, in_turn

MAX_ERROR = {2: 2e-6, 4: 1e-5}  # of the output's scale, against float64, over 256 channels of noise; 5e-7 and 4e-6 are usual


@dataclass(frozen=True)
class Exact:
    """Arithmetic of fractions."""

    def add(self, a: Fraction, b: Fraction) -> Fraction:
        return a + b

    def sub(self, a: Fraction, b: Fraction) -> Fraction:
        return a - b

    def fma(self, factor: float, a: Fraction, b: Fraction) -> Fraction:
        return Fraction(factor) * a + b


@pytest.mark.parametrize("m", POINTS)
def test_the_transforms_are_those_of_cook_and_toom(m: int) -> None:
    side, fast = m + TAPS - 1, Minimal(m, Exact())
    unit = [[Fraction(i == j) for i in range(side)] for j in range(side)]
    exact = matrices(m)
    assert [list(row) for row in zip(*map(fast.inputs, unit), strict=True)] == exact.inputs
    assert [list(row) for row in zip(*map(fast.outputs, unit), strict=True)] == exact.outputs


@pytest.mark.parametrize("m", POINTS)
def test_the_algorithm_is_a_convolution(m: int) -> None:
    """In one dimension: Aᵀ [(G g) ∘ (Bᵀ d)] = the sums over the taps, as polynomials over fractions."""
    exact, side = matrices(m), m + TAPS - 1
    for tap in range(TAPS):
        kernel = [row[tap] for row in exact.kernel]
        for at in range(side):
            moved = [k * row[at] for k, row in zip(kernel, exact.inputs, strict=True)]
            outputs = [sum(a * b for a, b in zip(row, moved, strict=True)) for row in exact.outputs]
            assert outputs == [Fraction(at == i + tap) for i in range(m)]


def test_a_kernel_is_transformed_in_float64_and_rounded_once() -> None:
    taps = np.random.default_rng(0).standard_normal((3, 3, 5, 7)).astype(np.float32)
    g = np.array(matrices(4).kernel, np.float64)
    for c, f in ((0, 0), (4, 6)):
        expected = g @ taps[:, :, c, f].astype(np.float64) @ g.T
        np.testing.assert_array_equal(transform_kernel(taps, 4)[:, c, f].reshape(6, 6), expected.astype(np.float32))


SHAPES = {
    "padded": Convolution(64, 64, (3, 3), (12, 12), padding=1),
    "residual": Convolution(64, 48, (3, 3), (14, 14), padding=1, residual=True),
    "cut_tiles": Convolution(64, 96, (3, 3), (13, 7), padding=1),
    "no_padding": Convolution(32, 32, (3, 3), (9, 11), relu=False),
    "wide_padding": Convolution(32, 32, (3, 3), (5, 6), padding=2),
    "few_columns": Convolution(64, 9, (3, 3), (8, 8), padding=1, relu=False),
    "odd_columns": Convolution(32, 100, (3, 3), (8, 8), padding=1, residual=True),
    "one_tile": Convolution(32, 64, (3, 3), (2, 2), padding=1),
    "many_blocks": Convolution(64, 64, (3, 3), (41, 39), padding=1, residual=True),
    "deep": Convolution(256, 64, (3, 3), (8, 8), padding=1),
}


@pytest.mark.parametrize(
    ("target", "name", "m"), [*in_turn(((V4, name) for name in SHAPES), (2, 4)), (V3, "residual", 4), (V3, "cut_tiles", 2)]
)
def test_against_float64(target: str, name: str, m: int) -> None:
    conv = SHAPES[name]
    weights = conv.weights()
    program = conv.compile(weights, target, winograd=str(m))
    assert [kernel.kind for kernel in program.manifest.kernels] == ["winograd"]
    for batch in (1, 3):
        inputs = conv.inputs(batch)
        found, expected = program(*inputs), conv.eager(weights, inputs)
        assert np.abs(found - expected).max() <= MAX_ERROR[m] * np.abs(expected).max()
        for image in range(batch):
            np.testing.assert_array_equal(program(*[each[image : image + 1] for each in inputs])[0], found[image])


def test_one_thread_and_two() -> None:
    conv = SHAPES["many_blocks"]
    program, inputs = conv.compile(conv.weights(), V4, winograd="4"), conv.inputs(3)
    before, found = num_threads(), []
    try:
        for threads in (1, 2):
            set_num_threads(threads)
            found.append(program(*inputs))
    finally:
        set_num_threads(before)
    np.testing.assert_array_equal(*found)
