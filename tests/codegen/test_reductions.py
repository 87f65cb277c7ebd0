"""Reductions over any dims, and everything that becomes a row kernel, over rows shorter and longer than a vector."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from .programs import V3, V4, Returns, assert_like_eager, compile_torch, dim

F = torch.nn.functional
Tensor = torch.Tensor
Reduce = Callable[..., Tensor]
LENGTHS = (1, 2, 15, 16, 17, 100, 1000)
REDUCTIONS: dict[str, Reduce] = {"sum": torch.sum, "mean": torch.mean, "amax": torch.amax, "amin": torch.amin}
DIMS = ((0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2))


def reduction(function: Reduce, dims: tuple[int, ...], keepdim: bool) -> Reduce:
    return lambda x: function(x, dims, keepdim=keepdim)


def test_every_choice_of_dims() -> None:
    module = Returns(
        **{
            f"{name}{''.join(map(str, dims))}{'_kept' if keep else ''}": reduction(function, dims, keep)
            for name, function in REDUCTIONS.items()
            for dims in DIMS
            for keep in (False, True)
        }
    )
    program = compile_torch(module, [torch.randn(3, 5, 7)], [{0: dim("b"), 1: dim("n")}])
    for shape in ((1, 1, 7), (2, 3, 7), (17, 16, 7), (5, 100, 7)):
        assert_like_eager(program, module, torch.randn(shape), atol=1e-4)  # sums of thousands cancel


ROWS: dict[str, Reduce] = {
    "softmax": lambda x: torch.softmax(x, -1),
    "log_softmax": lambda x: torch.log_softmax(x, -1),
    "softmax_over_columns": lambda x: torch.softmax(x, 0),
    "rms_norm": lambda x: x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6),
    "l2_norm": lambda x: F.normalize(x, dim=-1),
    "variance": lambda x: x.var(-1, unbiased=False),
    "deviation": lambda x: x.std(-1, unbiased=False),
    "argmax": lambda x: x.argmax(-1),
    "argmin_over_columns": lambda x: x.argmin(0),
    "running_sum": lambda x: x.cumsum(-1),
    "running_sum_down": lambda x: x.cumsum(0),
    "logsumexp": lambda x: torch.logsumexp(x, -1),
    "product": lambda x: x.prod(-1),
    "any": lambda x: (x > 0).any(-1),
    "all_over_columns": lambda x: (x > -1).all(0),
    "two_norms": lambda x: F.layer_norm(F.layer_norm(x, x.shape[-1:]) * 2 + x, x.shape[-1:]),
    "normalized_then_read": lambda x: (x - x.mean(-1, keepdim=True)).exp().amax(-1) + x[:, 0],
}


@pytest.mark.parametrize("target", [V4, V3])
def test_rows_of_any_length(target: str) -> None:
    functions = {name: f for name, f in ROWS.items() if name != "two_norms"}  # layer_norm's length is static
    module = Returns(**functions)
    program = compile_torch(module, [torch.randn(3, 5)], [{0: dim("b"), 1: dim("n")}], target)
    for rows, length in zip((1, 2, 3, 5, 4, 7, 2), LENGTHS, strict=True):
        assert_like_eager(program, module, torch.randn(rows, length), atol=5e-5)


@pytest.mark.sample(0, 3, 6)
@pytest.mark.parametrize("length", LENGTHS)
def test_rows_of_a_known_length(length: int) -> None:
    module = Returns(**ROWS)
    program = compile_torch(module, [torch.randn(3, length)], [{0: dim("b")}])
    for rows in (1, 2, 17):
        assert_like_eager(program, module, torch.randn(rows, length), atol=5e-5)


def test_a_reduction_whose_epilogues_differ_in_shape() -> None:
    """One loop space can't write both: a value and its transposition are two dispatches."""
    module = Returns(
        plain=lambda x: x.sum(1) + 1, transposed=lambda x: (x.sum(1) * 2).t(), extended=lambda x: x.sum(1).exp()[..., None] * 2
    )
    program = compile_torch(module, [torch.randn(3, 5, 7)], [{0: dim("b"), 2: dim("n")}])
    for shape in ((2, 5, 9), (1, 5, 1), (20, 5, 50)):
        assert_like_eager(program, module, torch.randn(shape))
