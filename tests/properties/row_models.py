"""Models whose rows depend on one another, models whose rows don't, and random graphs that may be either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llmos.compiler.analysis.independence import Function
from llmos.compiler.analysis.independence.entry import objections
from llmos.compiler.backends.cpu.backend import CpuBackend
from llmos.compiler.backends.cpu.planned import CpuPlanned
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.backends.planning import run_passes
from llmos.compiler.frontend.torch import import_torch
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.shapes import Shapes
from tests.fuzz.graph import Graph, Input, Misfit, Value
from tests.fuzz.ops import OPS
from tests.fuzz.plan import FIRST, OTHERS, random_plan

OPTIONS = CompileOptions(target="native", cache=False, repro=None, accuracy_report=False)
ROWS, TOKENS = torch.export.Dim("points", min=2, max=50), torch.export.Dim("tokens", min=3, max=50)

# Expressions of x [points, tokens, 12] and ids [points, tokens].
INDEPENDENT = (
    "x.relu() + ids[:, :, None]",
    "torch.softmax(x, 1)",
    "x.cumsum(1)",
    "x.mean((1, 2))",
    "x.flatten(0, 1).relu().reshape(x.shape[0], x.shape[1], 12)",
    "(x.transpose(0, 1).flatten(0, 1) + 1).reshape(x.shape[1], x.shape[0], 12).transpose(0, 1)",
    "F.scaled_dot_product_attention(x, x, x)",
    "x.sort(-1)[0]",
    "x.topk(3, 2)[1]",
    "torch.gather(x, 1, x.argmax(1, keepdim=True))",
    "torch.arange(9.)[ids]",
    "torch.cat([x[:, 1:], x.flip(1)], 1)",
    "F.pad(x, (1, 1))",
    "x * torch.arange(x.shape[1])[None, :, None] / x.shape[1]",
    "torch.ones(x.shape[0], 3)",
    "x @ x.transpose(1, 2)",
    "x + torch.arange(12.)[None, None].expand(x.shape[0], 1, 12).reshape(x.shape[0], 12)[:, None]",
    "F.conv1d(x.transpose(1, 2), torch.ones(4, 12, 3), padding=1)",
    "torch.roll(x, 1, 1).tril()",
)
DEPENDENT = (
    "x - x.mean(0)",
    "torch.softmax(x, 0)",
    "x.sort(0)[0]",
    "x.topk(2, 0)[0].sum(0, keepdim=True) + x",
    "x.cumsum(0)",
    "x / x.amax(0, keepdim=True)",
    "torch.softmax(x[:, 0] @ x[:, 0].t(), -1) @ x[:, 0]",
    "F.batch_norm(x.transpose(1, 2), None, None, training=True)",
    "x + torch.arange(x.shape[0])[:, None, None]",
    "x * (torch.arange(x.shape[0]) % 2)[:, None, None]",
    "x * x.shape[0]",
    "x * min(x.shape[0], 5)",
    "torch.full((x.shape[0], 2), 0) + x.shape[0]",
    "x[:, :, x.shape[0] % 3]",
    "x.flip(0)",
    "x.roll(1, 0)",
    "x + x[0]",
    "x + x[-1]",
    "x / x.norm()",
    "x.reshape(-1, x.shape[0], 12).transpose(0, 1)",
    "torch.eye(x.shape[0]) @ x[:, 0]",
    "x[:, 0, :1] * x[:, 0, 0]",
    "x[torch.arange(x.shape[0]).flip(0)]",
    "x[ids[:, 0].clamp(0, x.shape[0] - 1)]",
    "F.embedding(torch.arange(x.shape[0]).clamp(max=3), torch.arange(8.).reshape(4, 2))",
    "x[:, 0, :1] * torch.ones(x.shape[0], x.shape[0]).tril().sum(1, keepdim=True)",
    "x.repeat(2, 1, 1)[:x.shape[0]]",
    "x.repeat_interleave(2, 0)[:x.shape[0]]",
    "F.conv1d(x[:, 0].t()[None], torch.ones(12, 1, 3), groups=12, padding=1)[0].t()",
    "torch.diff(x, dim=0, prepend=x[:1])",
    "torch.slice_scatter(x, x[:1] * 2, 0, 0, 1)",
    "x.transpose(0, 1).reshape(x.shape[0], x.shape[1], 12)",
    "torch.round(x / (x.max() - x.min()) * 255)",
    "torch.full((1,), 2.0).expand(x.shape[0]).cumsum(0)",
)


def module(expressions: Sequence[str]) -> torch.nn.Module:
    """A model with one output for each expression."""
    scope: dict[str, object] = {"torch": torch, "F": torch.nn.functional}
    exec(f"class Model(torch.nn.Module):\n    def forward(self, x, ids):\n        return ({', '.join(expressions)},)", scope)
    made = scope["Model"]
    assert isinstance(made, type)
    return made().eval()  # type: ignore[no-any-return]


def arguments(rows: int = 4, tokens: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((rows, tokens, 12), generator=generator), torch.randint(0, 9, (rows, tokens), generator=generator)


def reasons(model: torch.nn.Module, given: Sequence[torch.Tensor], dynamic_shapes: object, symbol: str) -> list[str]:
    """For each output what the compiler says against joining requests along `symbol`."""
    planned = run_passes(import_torch(model, given, dynamic_shapes), OPTIONS, CpuBackend())
    assert isinstance(planned, CpuPlanned)
    program, entry = planned.program, planned.record.entries[0]
    with planned.module.context, ir.Location.unknown():
        functions = {each.name: Function(each.func, each.shapes) for each in program.dispatches}
        return objections(Function(program.main, Shapes.of(program.main, program.table)), functions, entry.inputs, symbol)


@dataclass
class RowGraph(Graph):
    """A random graph that returns what it made last of those that have a row for each row of its inputs."""

    def outputs(self) -> list[Value]:
        sizes = [batch for batch, _ in self.sizes]
        made = self.values[len(self.inputs) :]
        found = [v for v in made if v.rank and [sample.shape[0] for sample in v.samples] == sizes]
        return found[-1:] or made[-1:]


def random_graph(seed: int, max_ops: int = 5) -> RowGraph:
    """Graph number `seed`, of inputs that all have the batch first."""
    plan = random_plan(seed, max_ops)
    batched = [kind for kind in (*FIRST, *OTHERS) if kind[1][:1] == ("b",) and 0 not in kind[1]]
    kinds = [FIRST[seed % len(FIRST)], *[batched[(seed * 7 + i) % len(batched)] for i in range(seed % 3)]]
    graph = RowGraph(tuple(Input(f"x{i}", dtype, dims) for i, (dtype, dims) in enumerate(kinds)), ((7, 11), (3, 8), (5, 18), (2, 6)))
    for step in plan.steps:
        try:
            graph.add(OPS[step.op], step.numbers)
        except Misfit:
            continue
        if len(graph.body) == max_ops:
            break
    return graph
