"""Operators over dynamic dimensions, compiled once and run at three sizes that weren't traced, each dim more than 1.

Elementwise operators and reductions are op_db's, on [batch, tokens] and, for a second operand, [tokens]; the others are listed here.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.testing._internal.opinfo.core import BinaryUfuncInfo, ReductionOpInfo, UnaryUfuncInfo

from llmos.compiler.frontend.torch import import_torch, to_numpy
from tests.conformance.inprocess import Compiled
from tests.conformance.opinfo import check_answer, difference, entries
from tests.conformance.outcome import Outcome, judge

TRACED = (3, 4)
SIZES = ((2, 5), (5, 3), (7, 6))
Operands = tuple[torch.Tensor, ...]
Function = Callable[..., Any]

_X = (("B", "T", 8),)
_XY = (("B", "T", 8), ("B", "T", 8))
_SQUARE = (("B", 4, 4),)

# name -> function, and the shapes of its inputs
LISTED: Mapping[str, tuple[Function, Sequence[tuple[Any, ...]]]] = {
    "matmul": (lambda x, y: x @ y.mT, _XY),
    "matmul-vector": (lambda x: x @ torch.ones(8), _X),
    "linear": (lambda x: F.linear(x, torch.ones(5, 8) * 0.1, torch.ones(5)), _X),
    "bmm": (lambda x, y: torch.bmm(x.mT, y), _XY),
    "baddbmm": (lambda x, y: torch.baddbmm(x @ x.mT, x, y.mT, beta=0.5), _XY),
    "einsum": (lambda x, y: torch.einsum("btk,bsk->bts", x, y), _XY),
    "attention": (lambda x, y: F.scaled_dot_product_attention(x, y, y), _XY),
    "attention-causal": (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), _X),
    "outer": (lambda x: torch.outer(x[0, :, 0], x[0, :, 1]), _X),
    "layer-norm": (lambda x: F.layer_norm(x, (8,)), _X),
    "rms-norm": (lambda x: F.rms_norm(x, (8,)), _X),
    "group-norm": (lambda x: F.group_norm(x.mT, 2), _X),
    "softmax": (lambda x: x.softmax(1), _X),
    "log-softmax": (lambda x: x.log_softmax(-1), _X),
    "view-flatten": (lambda x: x.view(x.shape[0] * x.shape[1], 8) + 1, _X),
    "view-heads": (lambda x: x.view(*x.shape[:2], 2, 4).transpose(1, 2).reshape(x.shape[0], 2, -1), _X),
    "reshape-minus-one": (lambda x: x.reshape(-1, 4), _X),
    "flatten": (lambda x: x.flatten(1), _X),
    "unflatten": (lambda x: x.unflatten(-1, (2, 4)) * 2, _X),
    "permute": (lambda x: x.permute(2, 0, 1) + 1, _X),
    "expand": (lambda x: x[:, :1].expand(-1, x.shape[1], -1) + 1, _X),
    "cat": (lambda x, y: torch.cat([x, y, x], 1), _XY),
    "stack": (lambda x, y: torch.stack([x, y], 1), _XY),
    "split": (lambda x: x.split(3, -1)[1], _X),
    "slice": (lambda x: x[:, 1:, ::2], _X),
    "slice-last": (lambda x: x[:, -1], _X),
    "pad": (lambda x: F.pad(x, (1, 2, 3, 0), value=1.5), _X),
    "pad-reflect": (lambda x: F.pad(x, (1, 1), mode="reflect"), _X),
    "repeat": (lambda x: x.repeat(2, 1, 3), _X),
    "repeat-interleave": (lambda x: x.repeat_interleave(2, 1), _X),
    "flip": (lambda x: x.flip(1), _X),
    "roll": (lambda x: x.roll(1, 1), _X),
    "tril": (lambda x: (x @ x.mT).tril(), _X),
    "arange": (lambda x: x + torch.arange(x.shape[1])[:, None], _X),
    "where-mask": (lambda x: torch.where(torch.arange(x.shape[1])[:, None] > 1, x, -1.0), _X),
    "masked-put": (lambda x: torch.index_put(x, (x > 0,), torch.tensor(0.5)), _X),
    "gather": (lambda x: x.gather(1, (x > 0).long()), _X),
    "index-select": (lambda x: x.index_select(2, torch.tensor([3, 1])), _X),
    "embedding": (lambda x: F.embedding((x[..., 0] > 0).long(), torch.arange(12.0).reshape(3, 4)), _X),
    "cumsum": (lambda x: x.cumsum(1), _X),
    "cumprod": (lambda x: x.cumprod(1), _X),
    "cummax": (lambda x: x.cummax(1), _X),
    "logcumsumexp": (lambda x: x.logcumsumexp(1), _X),
    "sort": (lambda x: x.sort(dim=1, stable=True), _X),
    "topk": (lambda x: x.topk(3, -1), _X),
    "median": (lambda x: x.median(1), _X),
    "searchsorted": (lambda x, y: torch.searchsorted(x.sort(-1)[0], y), _XY),
    "scatter-add": (lambda x, y: x.scatter_add(1, (y > 0).long(), y), _XY),
    "cdist": (lambda x, y: torch.cdist(x, y), _XY),
    "conv1d": (lambda x: F.conv1d(x.mT, torch.ones(3, 8, 2)), _X),
    "max-pool": (lambda x: F.max_pool1d(x, 2), _X),
    "avg-pool": (lambda x: F.avg_pool1d(x, 3, 2, 1), _X),
    "adaptive-pool": (lambda x: F.adaptive_avg_pool1d(x.mT, 2), _X),
    "interpolate": (lambda x: F.interpolate(x.mT, scale_factor=2.0), _X),
    "cholesky": (lambda x: torch.linalg.cholesky_ex(x @ x.mT + 5 * torch.eye(4))[0], _SQUARE),
    "solve": (lambda x: torch.linalg.solve_ex(x @ x.mT + 5 * torch.eye(4), x)[0], _SQUARE),
    "qr": (lambda x: torch.linalg.qr(x)[1], _SQUARE),
    "bernoulli-free-loss": (lambda x, y: F.binary_cross_entropy_with_logits(x, y.sigmoid()), _XY),
    "cross-entropy": (lambda x: F.cross_entropy(x.reshape(-1, 8), (x[..., 0] > 0).long().reshape(-1)), _X),
}


class DynamicSuite:
    """Elementwise operators and reductions of op_db, and those listed."""

    name, title = "dynamic", "dynamic dimensions, at three sizes that weren't traced"

    def cases(self) -> Sequence[str]:
        return [*sorted(LISTED), *sorted(_from_op_db())]

    def run(self, case: str) -> Outcome:
        return run_case(case)


@cache
def _from_op_db() -> Mapping[str, Any]:
    """Operators of one or two tensors in float32 whose result torch can trace without looking at data."""
    kinds = (BinaryUfuncInfo, ReductionOpInfo, UnaryUfuncInfo)
    found = {name: op for name, op in entries().items() if isinstance(op, kinds) and torch.float32 in op.supported_dtypes("cpu")}
    return {name: op for name, op in found.items() if not name.startswith(("masked.", "jiterator", "hash_tensor"))}


def _operands(op: Any, batch: int, tokens: int) -> Operands:
    from torch.testing import make_tensor

    torch.manual_seed(batch * 100 + tokens)
    if isinstance(op, BinaryUfuncInfo):
        sides = (op.lhs_make_tensor_kwargs, op.rhs_make_tensor_kwargs)
        shapes = ((batch, tokens), (tokens,))
        return tuple(make_tensor(s, dtype=torch.float32, device="cpu", **k) for s, k in zip(shapes, sides, strict=True))
    low, high = getattr(op, "domain", (None, None))
    return (make_tensor((batch, tokens), dtype=torch.float32, device="cpu", low=low, high=high),)


def _listed_operands(shapes: Sequence[tuple[Any, ...]], batch: int, tokens: int) -> Operands:
    generator = torch.Generator().manual_seed(batch * 100 + tokens)
    sizes = {"B": batch, "T": tokens}
    return tuple(torch.randn([sizes.get(dim, dim) for dim in shape], generator=generator) for shape in shapes)


def _case(name: str) -> tuple[Function, Callable[[int, int], Operands], tuple[dict[int, Any], ...]]:
    """The function, its inputs at a batch and a number of tokens, and which of their dims are dynamic."""
    # torch itself takes another way to a distance from 26 rows on, and a window of two of a single output.
    named = {"B": torch.export.Dim("batch", min=2, max=64), "T": torch.export.Dim("tokens", min=3, max=25)}
    if name in LISTED:
        function, shapes = LISTED[name]
        dims = tuple({i: named[dim] for i, dim in enumerate(shape) if dim in named} for shape in shapes)
        return function, lambda batch, tokens: _listed_operands(shapes, batch, tokens), dims
    op = _from_op_db()[name]
    pair = ({0: named["B"], 1: named["T"]}, {0: named["T"]})
    operands = _operands(op, *TRACED)
    options = op.sample_kwargs("cpu", torch.float32, operands[0])[0] if isinstance(op, UnaryUfuncInfo) else {}
    function = _reduced(op.op) if isinstance(op, ReductionOpInfo) else functools.partial(op.op, **options)
    return function, lambda batch, tokens: _operands(op, batch, tokens), pair[: len(operands)]


def _reduced(op: Function) -> Function:
    """A reduction over the last dimension."""
    return lambda x: op(x, dim=-1)


class _Module(torch.nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self._function = function

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self._function(*inputs)


def run_case(name: str) -> Outcome:
    """What `llmos check` says, and the numbers at every size."""
    logging.getLogger("torch").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    function, operands, dims = _case(name)
    module, traced = _Module(function), operands(*TRACED)
    return judge(name, lambda: _difference(module, operands, dims), check_answer(module, traced, {"inputs": dims}))


def _difference(module: _Module, operands: Callable[[int, int], Operands], dims: tuple[dict[int, Any], ...]) -> str:
    compiled = Compiled(import_torch(module, operands(*TRACED), {"inputs": dims}))
    for batch, tokens in SIZES:
        inputs = operands(batch, tokens)
        expected = [leaf for leaf in torch.utils._pytree.tree_leaves(module(*inputs)) if isinstance(leaf, torch.Tensor)]
        for got, want in zip(compiled([to_numpy(each) for each in inputs]), expected, strict=True):
            if text := difference(got, want):
                return f"at batch {batch}, tokens {tokens}: {text}"
    return ""
