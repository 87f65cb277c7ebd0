"""Random numbers: Philox if the program has a seed input. Otherwise random ops are rejected, because compiled models are deterministic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import Builder, Meta, Tensor
from llmos.compiler.frontend.dims import Shape
from llmos.compiler.frontend.ops.shapes import computed, element
from llmos.compiler.frontend.philox import KEY_STEPS, MULTIPLIERS, ROUNDS
from llmos.compiler.frontend.scalars import Scalar
from llmos.compiler.ir.bindings import ir
from llmos.runtime.errors import UnsupportedError

U64, _LOW = torch.uint64, 0xFFFFFFFF
_OPS = (
    "rand.default rand_like.default randn.default randn_like.default randint.default randint.low randint_like.default "
    "randint_like.low_dtype randint_like.Tensor randperm.default bernoulli.default bernoulli.p bernoulli.Tensor "
    "multinomial.default normal.Tensor_Tensor "
    "normal.Tensor_float normal.float_Tensor normal.float_float normal_functional.default uniform.default exponential.default "
    "cauchy.default geometric.default log_normal.default native_dropout.default rrelu_with_noise.default "
    "rrelu_with_noise_functional.default fractional_max_pool2d.default fractional_max_pool3d.default poisson.default binomial.default"
)


def refusals() -> Mapping[str, Callable[..., Any]]:
    """Return the aten ops that draw random numbers, each with a lowering that raises UnsupportedError."""
    return {_OPS: _refuse}


def _refuse(*_: Any, **__: Any) -> Any:
    raise UnsupportedError(
        'draws random numbers: call model.eval(), pass them as an input, or compile with random="seed" (--random seed) for an input '
        "that they all follow from"
    )


def philox(b: Builder, result: Meta, seed: Tensor, stream: int, size: Any) -> Tensor:
    """Lower `llmos::philox`: the first two words of Philox4x32-10 for the counter (row-major index, stream) and the key `seed`.

    Return int64 elements with the 64 bits; seed is int64 or uint64 [].
    """
    dense = b.dense(seed)

    def body(at: list[ir.Value]) -> Scalar:
        key = Scalar(element(dense, []).value, U64)
        counter = [*_halves(_number(b, at, result.shape)), s.constant(stream, U64), s.constant(0, U64)]
        low, high, *_ = _rounds(counter, list(_halves(key)))
        return Scalar((low | (high << 32)).value, torch.int64)

    return computed(b, result, body)


def _number(b: Builder, at: Sequence[ir.Value], shape: Shape) -> Scalar:
    """Return the row-major index of the element."""
    number = s.constant(0, U64)
    for index, size in zip(at, shape, strict=True):
        extent = Scalar(s.from_index(b.index(size), torch.int64).value, U64)
        number = number * extent + Scalar(s.from_index(index, torch.int64).value, U64)
    return number


def _halves(v: Scalar) -> tuple[Scalar, Scalar]:
    return v & _LOW, v >> 32


def _rounds(c: list[Scalar], k: list[Scalar]) -> list[Scalar]:
    """Run the ten rounds. Words are 64-bit integers below 2^32, so that products need no second type."""
    for _ in range(ROUNDS):
        (low0, high0), (low1, high1) = (_halves(word * constant) for word, constant in zip(c[::2], MULTIPLIERS, strict=True))
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(word + step) & _LOW for word, step in zip(k, KEY_STEPS, strict=True)]
    return c
