"""Ops that order elements, and reductions over many of them."""

from __future__ import annotations

from functools import partial

import torch

from .graph import Op, Pick
from .ops import op

ORDERS: list[Op] = []
op = partial(op, ops=ORDERS)


@op(exact=True)
def sorting(p: Pick) -> str:
    a = p.value(lambda v: v.exact and v.rank >= 1 and v.dtype != torch.bool)
    axis = p.axis(a)
    p.need(a.smallest(axis) >= 1)
    form = p.one(
        "{a}.sort({d})[0]",
        "{a}.sort({d}, descending=True, stable=True)[1]",
        "{a}.argsort({d}, stable=True)",
        "{a}.topk({k}, {d})[0]",
        "{a}.topk({k}, {d}, largest=False)[0]",
        "{a}.kthvalue(1, {d})[0]",
        "{a}.median({d})[0]",
        "{a}.cummax({d})[0]",
        "{a}.msort()",
    )
    return str(form).format(a=a.name, d=axis, k=min(2, a.smallest(axis)))


@op(exact=True)
def searching(p: Pick) -> str:
    edges = p.member("torch.nn.Buffer(torch.linspace(-2, 2, 9))")
    a = p.real(exact=True, rank=1)
    return str(p.one("torch.bucketize({a}.float(), {e})", "torch.searchsorted({e}, {a}.float().contiguous(), right=True)")).format(
        a=a.name, e=edges
    )


@op()
def long_reduction(p: Pick) -> str:
    a = p.real(rank=1, most=2)
    p.need(all(0 < sample.numel() <= 2000 for sample in a.samples))
    form = p.one(
        "{a}.flatten().repeat(900).mean()",
        "({a}.float() + 100).flatten().repeat(700).std(correction=0)",
        "{a}.float().flatten().repeat(900).logsumexp(0)",
        "torch.linalg.vector_norm({a}.float().flatten().repeat(900))",
        "{a}.float().flatten().repeat(500).cumsum(0)[-1] / 500",
        "{a}.float().flatten().repeat(300).softmax(0).sum()",
    )
    return str(form).format(a=a.name)


@op()
def number_of_sizes(p: Pick) -> str:
    a = p.real(rank=1)
    size = a.size(p.axis(a))
    form = p.one(
        "{a}.add({a}, alpha={n})", "{a} / ({n} + 1)", "{a}.clamp(-{n} / 3, {n})", "{a} * ({n} / 7)", "{a} + {n} // 2", "F.elu({a}, {n})"
    )
    return str(form).format(a=a.name, n=size)
