"""No op does more than its size asks for: loop iterations as polynomials of a dynamic size, no copies of whole tensors in loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import sympy
import torch

from llmos.compiler.analysis.generic import Generic
from llmos.compiler.backends.cpu.backend import CpuBackend
from llmos.compiler.backends.cpu.planned import CpuPlanned
from llmos.compiler.backends.cpu.program import emit_kernels
from llmos.compiler.backends.cpu.target import resolve
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.backends.planning import run_passes
from llmos.compiler.frontend.torch import import_torch
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.shapes import Shapes
from llmos.compiler.ir.sizes import SymbolTable
from tests.frontend.harness import module_of

N = torch.export.Dim("n", min=2, max=1 << 20)
F = torch.nn.functional

# Functions of x [3, n] whose work is that of n elements, or of n log n.
LINEAR: dict[str, Callable[[torch.Tensor], object]] = {
    "cumsum": lambda x: x.cumsum(1),
    "cumprod": lambda x: x.cumprod(-1),
    "cummax": lambda x: torch.cummax(x, 1)[1],
    "logcumsumexp": lambda x: torch.logcumsumexp(x, 1),
    "sort": lambda x: torch.sort(x, 1),
    "argsort": lambda x: torch.argsort(x, 1, descending=True),
    "topk": lambda x: torch.topk(x, 2, 1),
    "kthvalue": lambda x: torch.kthvalue(x, 2, 1),
    "median": lambda x: torch.median(x, 1),
    "nanmedian": lambda x: torch.nanmedian(x, 1)[0],
    "mode": lambda x: torch.mode(x, 1),
    "searchsorted": lambda x: torch.searchsorted(x.sort(1)[0], x),
    "bucketize": lambda x: torch.bucketize(x, x[0].sort()[0]),
    "adaptive_max_pool": lambda x: F.adaptive_max_pool1d(x[None], 7),
    "histc": lambda x: torch.histc(x, 40, -1, 1),
    "isin": lambda x: torch.isin(x, x.flip(1)),
    "segment_reduce": lambda x: torch.segment_reduce(x, "max", lengths=torch.ones_like(x, dtype=torch.int64), axis=1),
    "embedding_bag": lambda x: F.embedding_bag(x[0].long().clamp(0, 4), torch.ones(5, 2), torch.arange(x.shape[1]), mode="max"),
    "softmax": lambda x: x.softmax(1),
    "flip": lambda x: x.flip(1).roll(1, 1),
}


def loop_sizes(block: ir.Block, shapes: Shapes, times: sympy.Expr = sympy.S.One) -> Iterator[sympy.Expr]:
    """Iterations of every innermost loop of a block, as an expression of the symbols; a loop of unknown bounds counts once."""
    for op in [op.operation for op in block.operations]:
        if op.name == "linalg.generic":
            yield times * sympy.Mul(*Generic(op).loop_sizes(shapes))
        elif op.name.startswith("tm_tensor."):
            yield times * sympy.Mul(*shapes.shape(op.results[0]))
        elif op.name == "scf.for":
            bound = op.operands[1]
            turns = shapes.index(bound) if shapes.has_index(bound) else sympy.S.One
            yield times * turns
            yield from loop_sizes(op.regions[0].blocks[0], shapes, times * turns)


@pytest.mark.parametrize("name", LINEAR)
def test_work_is_linear(name: str) -> None:
    module = import_torch(module_of(LINEAR[name]), (torch.randn(3, 9),), ({1: N},)).module
    with module.context:
        main = module.body.operations[0].operation
        table = SymbolTable.of(module)
        n = table.symbols[0].expr
        for size in loop_sizes(main.regions[0].blocks[0], Shapes.of(main, table)):
            at = [int(size.subs(n, value)) for value in (1000, 10000)]
            assert at[1] <= 11 * at[0], f"{size} iterations"


@pytest.mark.parametrize(
    "function", [lambda x: torch.linalg.cholesky(x), lambda x: torch.linalg.qr(x)[1], lambda x: torch.linalg.eigh(x)[0]]
)
def test_loops_over_elements_copy_nothing(function: Callable[[torch.Tensor], object]) -> None:
    """An allocation inside a loop is a copy of a tensor of which one element is written."""
    imported = import_torch(module_of(function), (torch.eye(6).expand(3, 6, 6).contiguous(),), ({0: N},))
    planned = run_passes(imported, CompileOptions(repro=None), CpuBackend())
    assert isinstance(planned, CpuPlanned)
    kernels = emit_kernels(planned.program, resolve("x86-64-v3")[0])
    found: list[str] = []

    def visit(op: ir.Operation) -> ir.WalkResult:
        if op.name == "memref.alloc" and _is_in_loop(op):
            found.append(str(op))
        return ir.WalkResult.ADVANCE

    kernels.operation.walk(visit)
    assert found == []


def _is_in_loop(op: ir.Operation) -> bool:
    parent = op.parent
    while parent is not None and parent.name != "builtin.module":
        if parent.name in ("scf.for", "scf.while"):
            return True
        parent = parent.operation.parent
    return False
