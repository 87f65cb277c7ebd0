"""Convolutions channels last: windows read where they lie, against eager torch, and the same bits in a batch and alone."""

from __future__ import annotations

import numpy as np
import pytest

from .images import Convolution
from .programs import V3, V4

SHAPES = {
    "plain": Convolution(16, 48, (3, 3), (9, 11)),
    "padded": Convolution(16, 64, (3, 3), (7, 7), padding=1),
    "residual": Convolution(32, 96, (3, 3), (14, 14), padding=1, residual=True),
    "strided": Convolution(24, 40, (3, 3), (13, 17), stride=2, padding=1),
    "pointwise": Convolution(16, 96, (1, 1), (7, 9)),
    "pointwise_strided": Convolution(17, 33, (1, 1), (8, 10), stride=2),
    "dilated": Convolution(8, 100, (3, 3), (11, 12), dilation=2, padding=2),
    "far_outside": Convolution(8, 16, (5, 3), (2, 3), padding=4),
    "first_layer": Convolution(3, 64, (7, 7), (23, 22), stride=2, padding=3),
    "gray": Convolution(1, 32, (5, 5), (12, 12), padding=2),
    "few_columns": Convolution(64, 9, (3, 3), (8, 8), padding=1, relu=False),
    "three_columns": Convolution(16, 3, (3, 3), (8, 8), padding=1),
    "grouped": Convolution(32, 64, (3, 3), (6, 6), padding=1, groups=2, residual=True),
    "line": Convolution(19, 50, (5,), (37,), stride=2, padding=2),
    "volume": Convolution(8, 24, (2, 3, 3), (4, 5, 6), padding=1),
    "whole_image": Convolution(8, 24, (6, 6), (6, 6)),
    "one_pixel": Convolution(16, 16, (1, 1), (1, 1)),
}


@pytest.mark.parametrize(
    ("name", "target"), [*((name, V4) for name in SHAPES), *((name, V3) for name in ("padded", "strided", "few_columns"))]
)
def test_against_eager(name: str, target: str) -> None:
    conv = SHAPES[name]
    weights = conv.weights()
    program = conv.compile(weights, target)
    for batch in (1, 3):
        inputs = conv.inputs(batch)
        found = program(*inputs)
        np.testing.assert_allclose(found, conv.eager(weights, inputs), rtol=2e-5, atol=2e-5)
        for image in range(batch):
            np.testing.assert_array_equal(program(*[each[image : image + 1] for each in inputs])[0], found[image])
