"""Elementwise programs and moves of every dtype, broadcasts, and what a program may take and return."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from .programs import V3, V4, Returns, assert_like_eager, compile_torch, dim

F = torch.nn.functional
Tensor = torch.Tensor
Function = Callable[[Tensor, Tensor], Tensor]
SIZES = ((1, 2), (2, 3), (5, 17), (31, 48), (3, 5000))  # 5000: more than one chunk of a flat loop
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.uint8,
        torch.bool,
    )
}

ANY: dict[str, Function] = {
    "copy": lambda x, y: x,
    "transposed": lambda x, y: x.transpose(0, 1),
    "concatenated": lambda x, y: torch.cat([x, y], 1),
    "equal": lambda x, y: x == y,
    "chosen": lambda x, y: torch.where(x == y, x, y),
    "float": lambda x, y: x.float(),
    "half": lambda x, y: x.half(),
    "double": lambda x, y: x.double(),
    "byte": lambda x, y: x.to(torch.int8),
    "long": lambda x, y: x.long(),
    "bool": lambda x, y: x.bool(),
    "padded": lambda x, y: F.pad(x, (1, 2)),
    "expanded": lambda x, y: x[None].expand(3, *x.shape).clone(),
    "flipped": lambda x, y: x.flip(1),
}
NUMBERS: dict[str, Function] = {
    "sum": lambda x, y: x + y,
    "product": lambda x, y: x * y - x,
    "maximum": lambda x, y: torch.maximum(x, y),
    "less": lambda x, y: x < y,
    "column": lambda x, y: x + y[:, :1] * 2,
    "row": lambda x, y: x - y[:1],
    "total": lambda x, y: x.sum(1),
    "largest": lambda x, y: x.amax(0),
    "where_largest": lambda x, y: x.argmax(1),
    "absolute": lambda x, y: x.abs(),
    "relu": lambda x, y: x.relu(),
    "clamped": lambda x, y: x.clamp(1, 5),
    "quotient": lambda x, y: x / (y.abs() + 1),
    "running": lambda x, y: x.cumsum(0),
    "bfloat16": lambda x, y: x.bfloat16(),
}
INTEGERS: dict[str, Function] = {
    "floor_divided": lambda x, y: x // (y.abs() + 1),
    "remainder": lambda x, y: x % (y.abs() + 1),
    "and": lambda x, y: x & y,
    "not": lambda x, y: ~x,
}
FLOATS: dict[str, Function] = {
    "exp": lambda x, y: x.exp(),
    "tanh": lambda x, y: x.tanh(),
    "root": lambda x, y: x.abs().sqrt(),
    "floor": lambda x, y: x.floor(),
    "rounded": lambda x, y: (x * 3).round(),
    "power": lambda x, y: x.abs().pow(1.7),
    "softmax": lambda x, y: torch.softmax(x, -1),
    "matmul": lambda x, y: x @ y.transpose(0, 1),
    "fmod": lambda x, y: torch.fmod(x, y),
}
BOOLS: dict[str, Function] = {
    "and": lambda x, y: x & y,
    "xor": lambda x, y: x ^ y,
    "not": lambda x, y: ~x,
    "count": lambda x, y: x.sum(1),
    "any": lambda x, y: x.any(0),
    "all": lambda x, y: x.all(1),
}


def functions(dtype: torch.dtype) -> dict[str, Function]:
    if dtype == torch.bool:
        return ANY | BOOLS
    return ANY | NUMBERS | (FLOATS if dtype.is_floating_point else INTEGERS)


def sample(dtype: torch.dtype, *shape: int) -> Tensor:
    if dtype == torch.bool:
        return torch.rand(shape) > 0.5
    if dtype.is_floating_point:
        return torch.randn(shape).to(dtype)
    return torch.randint(0 if dtype == torch.uint8 else -50, 100, shape).to(dtype)


@pytest.mark.sample(0, 1, 2, 4, 7, 8, 11, 12)
@pytest.mark.parametrize(("name", "target"), [*((name, V4) for name in DTYPES), ("float32", V3), ("bfloat16", V3), ("bool", V3)])
def test_every_dtype(name: str, target: str) -> None:
    dtype = DTYPES[name]
    torch.manual_seed(0)
    module = Returns(**functions(dtype))
    b, n = dim("b"), dim("n", 2, 6000)
    program = compile_torch(module, [sample(dtype, 3, 5), sample(dtype, 3, 5)], [{0: b, 1: n}] * 2, target)
    tolerance = 2e-2 if dtype in (torch.float16, torch.bfloat16) else 1e-5
    for shape in SIZES:
        assert_like_eager(program, module, sample(dtype, *shape), sample(dtype, *shape), rtol=tolerance, atol=tolerance)


def test_integer_division_never_traps() -> None:
    """By 0 it gives 0, and the most negative number over -1 wraps: data must not kill a server."""
    module = Returns(quotient=lambda x, y: torch.div(x, y, rounding_mode="trunc"), remainder=lambda x, y: torch.fmod(x, y))
    n = dim("n")
    example = [torch.arange(1, 5, dtype=torch.int32) for _ in range(2)]
    program = compile_torch(module, example, [{0: n}] * 2)
    lowest = -(2**31)
    x = torch.tensor([5, lowest, 7, -7, 0], dtype=torch.int32)
    y = torch.tensor([0, -1, -1, 2, 0], dtype=torch.int32)
    quotient, remainder = program(x.numpy(), y.numpy())
    assert quotient.tolist() == [0, lowest, -7, -3, 0]
    assert remainder.tolist() == [0, 0, 0, -1, 0]


class Weights(torch.nn.Module):
    """Weights, inputs and views as outputs, each once or twice."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.randn(7, 5))

    def forward(self, x: Tensor, unused: Tensor) -> dict[str, Tensor]:
        y = x + 1
        return {
            "weight": self.w, "weight_again": self.w, "doubled": self.w * 2, "transposed": self.w.t(), "rows": self.w[1:3],
            "input": x, "input_again": x, "result": y, "result_again": y, "flat": y.reshape(-1), "used_later": y * 2, "view": x[None],
            "constant": torch.tensor([1.0, 2.0, 3.0]), "ones": torch.ones(3), "twice_read": x * x + x,
        }  # fmt: skip


def test_weights_inputs_and_repeated_values_as_outputs() -> None:
    module = Weights()
    program = compile_torch(module, [torch.randn(3, 5), torch.randn(2)], [{0: dim("b")}, {}])
    for batch in (1, 2, 17):
        assert_like_eager(program, module, torch.randn(batch, 5), torch.randn(2), exact=True)


def test_scalars_in_and_out() -> None:
    module = Returns(
        total=lambda x, y: x.sum(), doubled=lambda x, y: y * 2, scaled=lambda x, y: x * y, same=lambda x, y: y, highest=lambda x, y: x.max()
    )
    program = compile_torch(module, [torch.randn(3, 5), torch.tensor(2.0)], [{0: dim("b")}, {}])
    for batch in (1, 7):
        assert_like_eager(program, module, torch.randn(batch, 5), torch.tensor(1.5))


def test_a_program_without_symbols() -> None:
    module = Returns(doubled=lambda x: x * 2, counted=lambda x: torch.arange(5) * 2)
    assert_like_eager(compile_torch(module, [torch.randn(3, 5)]), module, torch.randn(3, 5))


def test_a_zero_that_is_added_takes_the_sign_of_a_negative_zero() -> None:
    module = Returns(
        number=lambda x: x + 0.0,
        whole=lambda x: x + 0,
        tensor=lambda x: x + torch.zeros(4),
        less=lambda x: x - 0.0,
        scaled=lambda x: torch.add(x, 0.0, alpha=-1),
        scaled_back=lambda x: torch.add(x, -0.0, alpha=-1),
        scaled_away=lambda x: torch.add(x, 5.0, alpha=0),
        negative=lambda x: x + -0.0,
    )
    x = torch.tensor([-0.0, 0.0, -1.0, 1.0])
    program = compile_torch(module, [torch.randn(4)])
    for array, (name, want) in zip(program(x.numpy()), module(x).items(), strict=True):
        np.testing.assert_array_equal(np.signbit(array), np.signbit(want.numpy()), err_msg=name)
