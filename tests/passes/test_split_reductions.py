"""split-reductions: a long reduction to one result is made in parts of equal length, then joined."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmos.compiler.ir.bindings import ir
from llmos.passes.split_reductions import SplitReductions
from tests.codegen.programs import V3, Returns, assert_like_eager, compile_torch

from .ir_tests import apply, check, generics

SMALL = SplitReductions(min_elements=1 << 10, part=256)


def reductions(module: ir.Module) -> int:
    return sum("reduction" in line for line in str(module).splitlines() if "linalg.generic" in line)


def split(function: object, *inputs: torch.Tensor, of: SplitReductions = SMALL) -> ir.Module:
    return apply(generics(function, *inputs, dynamic=False), of)


def test_a_sum() -> None:
    check(
        split(lambda x: x.sum(), torch.zeros(4096)),
        """
        CHECK: affine_map<(d0, d1) -> (d0 * 256 + d1)>
        CHECK: tensor.empty() : tensor<16xf32>
        CHECK: iterator_types = ["parallel", "reduction"]} ins(%{{.*}} : tensor<4096xf32>, tensor<16x256xi1>)
        CHECK: iterator_types = ["reduction"]} ins(%{{.*}} : tensor<16xf32>)
        CHECK-SAME: outs(%{{.*}} : tensor<f32>)
        """,
    )


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x: x.amax(1), (1, 4096)),
        (lambda x: (x * x).sum(1, keepdim=True), (1, 4096)),
        (lambda x: x.sum(), (64, 64)),
        (lambda x: x.sum((1, 2)), (1, 64, 64)),
        (lambda x: x.prod(), (8192,)),
        (lambda x: x.argmax(), (4096,)),
    ],
)
def test_what_is_split(function: object, shape: tuple[int, ...]) -> None:
    assert reductions(split(function, torch.zeros(shape))) > reductions(generics(function, torch.zeros(shape), dynamic=False))


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x: x.sum(1), (2, 4096)),  # two results
        (lambda x: (x * x).sum(), (64, 64)),  # what an elementwise op makes, of two dimensions
        (lambda x: x.sum(), (512,)),  # few elements
        (lambda x: x.sum(), (4099,)),  # no parts of equal length
        (lambda x: x.argsort(), (4096,)),  # no reduction
        (lambda x: x + 1, (4096,)),
    ],
)
def test_what_stays(function: object, shape: tuple[int, ...]) -> None:
    before = str(generics(function, torch.zeros(shape), dynamic=False))
    assert str(split(function, torch.zeros(shape))) == before


def test_dynamic_sizes_stay() -> None:
    module = generics(lambda x: x.sum(), torch.zeros(4, 4096))
    before = str(module)
    assert str(apply(module, SMALL)) == before


FUNCTIONS = {
    "sum": lambda x: x.sum(),
    "mean": lambda x: x.mean(),
    "amax": lambda x: x.amax(1),
    "amin": lambda x: x.reshape(-1).amin(),
    "std": lambda x: x.std(),
    "norm": lambda x: torch.linalg.vector_norm(x),
    "columns": lambda x: x.reshape(-1, 4).sum(0),
    "softmax": lambda x: x.softmax(1)[:, ::4096],
    "count": lambda x: (x > 0).sum(),
    "any": lambda x: (x > 9).any(),
    "product": lambda x: (1 + x.double() / 65536).prod(1),
    "middle": lambda x: x.reshape(2, 512, 4, 128).sum((1, 3)),
}


def test_numbers() -> None:
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 1 << 18), np.float32))
    module = Returns(**FUNCTIONS)
    assert_like_eager(compile_torch(module, [x], None, V3), module, x)
    x[1, 77] = torch.nan
    assert_like_eager(compile_torch(module, [x], None, V3), module, x)
