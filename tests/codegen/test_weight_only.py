"""Products of float32 rows by weights of 4 and 8 bits: near the dequantized weight's, and the same bits for any rows and target."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pytest
import torch

from llmos.compiler.analysis.quantization import FLOAT8
from llmos.compiler.frontend.quantized import dequantize
from llmos.runtime.program import Program

from .programs import V3, V4, compile_torch, dim, in_turn, runnable

ROWS = (1, 3, 5, 8, 9, 31, 70)


@dataclass(frozen=True)
class Case:
    """A weight [n, k] of numbers of a dtype, with scales for each `group` k, or (0) for each channel; transposed: stored as [k, n]."""

    n: int
    k: int
    dtype: str
    group: int
    has_zero: bool = True
    transposed: bool = False

    def numbers(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        rng = torch.Generator().manual_seed(self.n * self.k)
        if self.dtype == FLOAT8:
            codes = torch.randint(0, 127, (self.n, self.k), dtype=torch.uint8, generator=rng)  # none is NaN
            signs = torch.randint(0, 2, codes.shape, dtype=torch.uint8, generator=rng) << 7
            return codes | signs, torch.rand((self.n,), generator=rng) * 0.1 + 0.01, None
        bits, signed = int(self.dtype[-1]), not self.dtype.startswith("u")
        low = -(1 << (bits - 1)) if signed else 0
        kind = torch.int8 if signed else torch.uint8
        shape = (self.n, -(-self.k // self.group)) if self.group else (self.n,)
        values = torch.randint(low, low + (1 << bits), (self.n, self.k), dtype=kind, generator=rng)
        scales = torch.rand(shape, generator=rng) * 0.1 + 0.01
        zero = torch.randint(low, low + (1 << bits), shape, dtype=kind, generator=rng) if self.has_zero else None
        return values, scales, zero

    @cached_property
    def module(self) -> Dequantized:
        return Dequantized(self)


class Dequantized(torch.nn.Module):
    """y = x W^T with W a dequantized buffer."""

    values: torch.Tensor
    scales: torch.Tensor
    zero: torch.Tensor | None

    def __init__(self, case: Case) -> None:
        super().__init__()
        values, scales, zero = case.numbers()
        self.case, self.axis = case, 1 if case.group else 0
        if case.transposed:
            values, self.axis = values.t().contiguous(), 1 - self.axis
            scales, zero = (each if each is None or each.ndim < 2 else each.t().contiguous() for each in (scales, zero))
        for name, each in (("values", values), ("scales", scales), ("zero", zero)):
            self.register_buffer(name, each)

    def weight(self) -> torch.Tensor:
        case = self.case
        made = dequantize(self.values, self.scales, self.zero, case.dtype, self.axis, case.group, torch.float32)
        return made if case.transposed else made.t()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight()


CASES = (
    Case(64, 32, "uint4", 32),  # one group
    Case(1, 64, "uint4", 32),
    Case(33, 96, "uint4", 32),
    Case(100, 160, "int4", 32, has_zero=False),
    Case(48, 256, "int4", 64),
    Case(130, 640, "uint4", 128),
    Case(50, 100, "uint4", 32),  # the last group is shorter
    Case(40, 77, "uint4", 64, has_zero=False),  # and ends within a word
    Case(96, 128, "uint4", 32, transposed=True),
    Case(70, 64, "int8", 0, has_zero=False),
    Case(33, 515, "int8", 0, has_zero=False),
    Case(48, 300, "uint8", 0),
    Case(64, 512, "int8", 0, transposed=True),
    Case(20, 256, "uint8", 128),
    Case(40, 515, FLOAT8, 0, has_zero=False),
    Case(64, 70, FLOAT8, 0, has_zero=False, transposed=True),
    Case(17, 5, "int4", 0),
)


def program(case: Case, target: str) -> Program:
    return compile_torch(case.module, [torch.zeros(2, case.k)], [{0: dim("m", 1, 128)}], runnable(target))


def activations(m: int, k: int) -> np.ndarray:
    return np.random.default_rng(k).standard_normal((128, k), np.float32)[:m]


@pytest.mark.sample(4, 7, 12, 15, 16, 19, 23, 27)
@pytest.mark.parametrize(("case", "targets"), in_turn(((case,) for case in CASES), ((V3, V4), (V3, "x86-64-v4-amx"))), ids=str)
def test_products_are_near_and_alike_everywhere(case: Case, targets: tuple[str, ...]) -> None:
    weight = case.module.weight().to(torch.float64).numpy()
    first: dict[int, np.ndarray] = {}
    for target in targets:
        made = program(case, target)
        assert [kernel.kind for kernel in made.manifest.kernels] == ["contraction"]
        for m in ROWS:
            x = activations(m, case.k)
            y = np.asarray(made(x))
            assert np.abs(y - x @ weight).max() <= 4e-6 * (np.abs(x) @ np.abs(weight)).max()
            np.testing.assert_array_equal(y, first.setdefault(m, y), err_msg=f"{target}, {m} rows")
    whole = first[ROWS[-1]]
    for m in ROWS:
        np.testing.assert_array_equal(first[m], whole[:m], err_msg=f"{m} rows alone and among {ROWS[-1]}")


@pytest.mark.parametrize(("dtype", "group", "bits"), [("uint4", 32, 4), ("int8", 0, 8)])
def test_the_weight_stays_packed(dtype: str, group: int, bits: int) -> None:
    made = program(Case(96, 128, dtype, group), V4)
    numbers, scales, zero = made.manifest.weights
    assert np.prod(numbers.shape) == 96 * 128 * bits // 8
    assert tuple(scales.shape) == tuple(zero.shape) == (2, 128 // (group or 128), 48)


def test_a_batch_of_rows() -> None:
    case = Case(50, 96, "uint4", 32)
    x = np.random.default_rng(0).standard_normal((3, 7, 96), np.float32)
    made = compile_torch(case.module, [torch.zeros(3, 7, 96)], None, V4)
    np.testing.assert_allclose(np.asarray(made(x)), x @ case.module.weight().numpy(), rtol=1e-4, atol=1e-4)


def test_a_bias_and_an_activation_follow_in_the_kernel() -> None:
    module = Case(100, 64, "uint4", 32).module
    bias = torch.randn(100)

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.product = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.gelu(self.product(x) + bias)

    x = torch.randn(9, 64)
    made = compile_torch(Layer(), [x], None, V4)
    assert [kernel.kind for kernel in made.manifest.kernels] == ["contraction"]
    np.testing.assert_allclose(np.asarray(made(x.numpy())), Layer()(x).numpy(), rtol=1e-4, atol=1e-4)


def test_a_weight_that_two_products_read_is_dequantized_at_compile_time() -> None:
    module = Case(64, 64, "uint4", 32).module

    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.product = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = self.product.weight()
            return (x @ weight) @ weight

    x = torch.randn(5, 64)
    made = compile_torch(Twice(), [x], None, V4)
    np.testing.assert_allclose(np.asarray(made(x.numpy())), Twice()(x).numpy(), rtol=1e-3, atol=1e-3)


def test_a_group_that_ends_within_a_word_is_dequantized_at_compile_time() -> None:
    case = replace(CASES[0], k=60, group=20)
    made = program(case, V4)
    assert [weight.dtype for weight in made.manifest.weights] == ["float32"]
    x = activations(4, 60)
    np.testing.assert_allclose(np.asarray(made(x)), x @ case.module.weight().numpy(), rtol=1e-4, atol=1e-4)
