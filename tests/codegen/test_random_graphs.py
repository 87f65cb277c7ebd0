"""Random graphs of elementwise ops, reductions, products and moves, compiled and run at several batch sizes, against eager torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from .programs import assert_like_eager, compile_torch, dim

Tensor = torch.Tensor
ROWS, WIDTH, TRACED = 5, 12, 97  # no other dim of a graph is ever TRACED
BATCHES = (1, 2, 17, 50)


def _standardized(a: Tensor) -> Tensor:
    return (a - a.mean(-1, keepdim=True)) * torch.rsqrt(a.var(-1, keepdim=True, unbiased=False) + 1e-3)


UNARY: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.relu,
    torch.tanh,
    torch.neg,
    torch.sigmoid,
    lambda a: torch.exp(-a.abs()),
    lambda a: a * 0.5 + 1,
    lambda a: torch.softmax(a, -1),
    _standardized,
    lambda a: a.mean(-1, keepdim=True),
    lambda a: a.amax(-1),
    lambda a: a.mean(0),
    lambda a: a.mean(0, keepdim=True),
    lambda a: a.mean(-2),
    lambda a: a.cumsum(-1) * 0.1,
    lambda a: a.unsqueeze(1),
    lambda a: a.transpose(-1, -2),
    lambda a: a.transpose(0, 1),
    lambda a: a.flatten(-2),
    lambda a: a[..., 1:],
    lambda a: a[..., ::2],
    lambda a: torch.nn.functional.pad(a, (1, 2)),
    lambda a: torch.where(a > 0, a, a * 0.1),
    lambda a: a.flip(-1),
)
BINARY: tuple[Callable[[Tensor, Tensor, Tensor], Tensor], ...] = (
    lambda a, b, w: a + b,
    lambda a, b, w: a * b,
    lambda a, b, w: torch.maximum(a, b),
    lambda a, b, w: a - b * 0.5,
    lambda a, b, w: torch.cat([a, b], -1),
    lambda a, b, w: torch.cat([a, b], 1),
    lambda a, b, w: a @ w,
    lambda a, b, w: torch.nn.functional.gelu(a @ w) + b,
    lambda a, b, w: (a @ b.transpose(-1, -2)) * 0.1,
    lambda a, b, w: torch.softmax(a @ b.transpose(-1, -2), -1) @ b,
    lambda a, b, w: torch.stack([a, b], -1).amax(-1),
)


@dataclass(frozen=True)
class Step:
    """One op on two values made before."""

    function: Callable[[Tensor, Tensor, Tensor], Tensor]
    left: int
    right: int


class Graph(torch.nn.Module):
    """Runs steps; every value that no step reads is an output."""

    def __init__(self, steps: Sequence[Step]) -> None:
        super().__init__()
        self.steps = steps
        self.w = torch.nn.Parameter(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(1)) * 0.3)

    def forward(self, x: Tensor, y: Tensor) -> list[Tensor]:
        values = [x, y]
        for step in self.steps:
            values.append(step.function(values[step.left], values[step.right], self.w))
        read = {i for step in self.steps for i in (step.left, step.right)}
        return [value for i, value in enumerate(values) if i > 1 and (i not in read or i % 3 == 0)] or values[2:]


def plan(choices: Sequence[tuple[int, int, int]]) -> list[Step]:
    """The choices that fit the shapes at hand, found by running them at a batch size that no other dim has."""
    values = [torch.randn(TRACED, ROWS, WIDTH), torch.randn(TRACED, ROWS, WIDTH)]
    weight, steps = torch.randn(WIDTH, WIDTH), []
    for op, left, right in choices:
        step = Step(_function(op), len(values) - 1 - left % len(values), right % len(values))
        try:
            made = step.function(values[step.left], values[step.right], weight)
        except (RuntimeError, IndexError):
            continue
        if made.numel() == 0 or made.numel() > 1 << 20 or made.dim() > 5:
            continue
        steps.append(step)
        values.append(made)
    return steps


def _function(op: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    if op < len(UNARY):
        return lambda a, b, w: UNARY[op](a)
    return BINARY[op - len(UNARY)]


def check(choices: Sequence[tuple[int, int, int]]) -> None:
    steps = plan(choices)
    if not steps:
        return
    graph = Graph(steps).eval()
    batch = dim("batch", 1, 200)
    program = compile_torch(graph, [torch.randn(TRACED, ROWS, WIDTH) for _ in range(2)], [{0: batch}, {0: batch}])
    for size in BATCHES:
        assert_like_eager(program, graph, torch.randn(size, ROWS, WIDTH), torch.randn(size, ROWS, WIDTH), rtol=1e-4, atol=1e-5)


choice = st.tuples(st.integers(0, len(UNARY) + len(BINARY) - 1), st.integers(0, 3), st.integers(0, 9))


@seed(20)
@settings(max_examples=30, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.lists(choice, min_size=3, max_size=10))
def test_a_random_graph_gives_what_torch_gives(choices: list[tuple[int, int, int]]) -> None:
    torch.manual_seed(0)
    check(choices)
