"""From a number to a random graph, and from a graph that fails to the smallest that still does.

A plan is the list of random choices; what doesn't fit the values at hand is left out when the graph is built, so any part of a plan is
a plan too. (hypothesis makes and shrinks its examples in the same way, but repeats itself: of 60 of its graphs 25 were alike.)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from .graph import Graph, Input, Misfit, Sizes
from .ops import OPS
from .orders import ORDERS
from .places import PLACES
from .signals import SIGNALS

# What a graph runs at, (batch, tokens), the traced size first. Windows over tokens need a few of them; torch.export refuses many graphs
# for a batch of 1, because they hold an op that treats a dim of size 1 in another way.
SMALL: tuple[Sizes, ...] = ((7, 11), (1, 1), (2, 17), (3, 40))
LARGE: tuple[Sizes, ...] = ((7, 11), (1, 6), (2, 18), (1, 67))
LARGER: tuple[Sizes, ...] = ((7, 11), (3, 8), (5, 18), (3, 67))
MAX_OPS, NUM_CHOICES = 15, 8
# Graphs of lower numbers are made of OPS alone. A new op goes to the end of its file, and moves the numbers of these only.
FIRST_OF_ALL = 100_000
ALL = (*OPS, *ORDERS, *PLACES, *SIGNALS)

Kind = tuple[torch.dtype, tuple[int | str, ...]]
FIRST: tuple[Kind, ...] = ((torch.float32, ("b", "t", 12)), (torch.float32, ("b", 6, "t")), (torch.float32, ("b", 3, "t", 10)))
OTHERS: tuple[Kind, ...] = (
    (torch.float32, ("b", "t", 12)),
    (torch.int64, ("b", "t")),
    (torch.bool, ("b", "t")),
    (torch.float32, ()),
    (torch.float32, ("t", 12)),
    (torch.float32, ("b", 12)),
    (torch.float32, ("b", 1, 12)),
    (torch.float32, ("t",)),
    (torch.int64, ("b", "t", 12)),
    (torch.int32, ("b",)),
    (torch.float16, ("b", "t", 12)),
    (torch.bfloat16, ("b", "t", 12)),
    (torch.float64, ("t", 1)),
    (torch.uint8, ("b", "t", 1)),
    (torch.float32, (12, 12)),
    (torch.float32, ("b", 0, 12)),
    (torch.int64, ()),
)


@dataclass(frozen=True)
class Step:
    """An op, and the numbers that choose its operands and options."""

    op: int
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    inputs: tuple[Kind, ...]
    sizes: tuple[Sizes, ...]
    steps: tuple[Step, ...]
    max_ops: int = MAX_OPS

    def graph(self) -> Graph:
        graph = Graph(tuple(Input(f"x{i}", dtype, dims) for i, (dtype, dims) in enumerate(self.inputs)), self.sizes)
        for step in self.steps:
            try:
                graph.add(ALL[step.op], step.numbers)
            except Misfit:
                continue
            if len(graph.body) == self.max_ops:
                break
        return graph


def random_plan(seed: int, max_ops: int = MAX_OPS) -> Plan:
    """The plan of that number: 3 to `max_ops` ops, more choices than that, since not all fit."""
    source = random.Random(seed)
    inputs = (source.choice(FIRST), *source.sample(OTHERS, source.randrange(4)))
    count = source.randint(6, 2 * max_ops)
    ops = len(OPS) if seed < FIRST_OF_ALL else len(ALL)
    steps = tuple(Step(source.randrange(ops), tuple(source.randrange(1000) for _ in range(NUM_CHOICES))) for _ in range(count))
    return Plan(inputs, source.choice((SMALL, LARGE, LARGE, LARGER, LARGER)), steps, max_ops)


def shrink(plan: Plan, fails: Callable[[Plan], bool], limit: int = 150) -> Plan:
    """The smallest plan found in `limit` tries that still fails: fewer steps, fewer inputs, fewer sizes, first options."""
    tried = {plan.graph().source()}
    better = True
    while better:
        better = False
        for smaller in _smaller(plan):
            graph = smaller.graph()
            if not graph.body or graph.source() in tried:
                continue
            tried.add(graph.source())
            if len(tried) > limit:
                return plan
            if fails(smaller):
                plan, better = smaller, True
                break
    return plan


def _smaller(plan: Plan) -> Iterator[Plan]:
    size = len(plan.steps)
    length = size // 2
    while length:
        for start in range(size - length, -1, -length):
            yield replace(plan, steps=plan.steps[:start] + plan.steps[start + length :])
        length //= 2
    for i in range(1, len(plan.inputs)):
        yield replace(plan, inputs=plan.inputs[:i] + plan.inputs[i + 1 :])
    for i, step in enumerate(plan.steps):
        for j, number in enumerate(step.numbers):
            if number:
                numbers = (*step.numbers[:j], 0, *step.numbers[j + 1 :])
                yield replace(plan, steps=(*plan.steps[:i], Step(step.op, numbers), *plan.steps[i + 1 :]))
