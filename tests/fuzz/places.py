"""Ops that write and read at places: scatters, indices, strides, bags, and sizes that data decides."""

from __future__ import annotations

from functools import partial

import torch

from .graph import Op, Pick
from .ops import op

PLACES: list[Op] = []
op = partial(op, ops=PLACES)


@op(exact=True)
def scatter_at(p: Pick) -> str:
    a = p.value(lambda v: v.rank >= 1 and v.dtype in (torch.float32, torch.int64))
    ids = p.value(lambda v: v.exact and v.rank == a.rank)
    axis = p.axis(a)
    at = f"{ids.name}.to(torch.int64).clamp(0, {a.size(axis)} - 1)"
    d = p.one(axis, axis - a.rank)
    form = p.one(
        "{a}.scatter_add({d}, {i}, torch.ones_like({i}, dtype={a}.dtype))",
        "{a}.scatter({d}, {i}, 2)",
        "{a}.scatter_reduce({d}, {i}, {i}.to({a}.dtype), 'amax')",
        "{a}.scatter_reduce({d}, {i}, {i}.to({a}.dtype), 'amin', include_self=False)",
    )
    return str(form).format(a=a.name, d=d, i=at)


@op(exact=True)
def put_rows(p: Pick) -> str:
    a = p.value(lambda v: v.rank >= 1 and v.dtype in (torch.float32, torch.int64))
    ids = p.value(lambda v: v.exact and v.rank >= 1)
    at = f"{ids.name}.to(torch.int64).flatten().clamp(-{a.size(0)}, {a.size(0)} - 1)"
    form = p.one(
        "torch.index_put({a}, ({i},), torch.ones((), dtype={a}.dtype), accumulate=True)",
        "torch.index_put({a}, ({i},), torch.full((), 3, dtype={a}.dtype))",
        "{a}.index_fill(0, {i} % {n}, 2)",
        "{a}.index_add(0, {i} % {n}, {a}[{i}])",
        "torch.take({a}, {i})",
    )
    return str(form).format(a=a.name, i=at, n=a.size(0))


@op(exact=True)
def strided(p: Pick) -> str:
    a = p.value(lambda v: v.rank >= 1 and min(sample.numel() for sample in v.samples) >= 12)
    form = p.one(
        "{a}.contiguous().as_strided((2, 3), (2, 1), 1)",
        "torch.as_strided({a}.contiguous(), (3, 2), (1, 4))",
        "{a}.contiguous()[1:].as_strided((2, 2), (1, 2), 0)" if a.smallest(0) > 1 else "{a}.contiguous().as_strided((4,), (3,))",
    )
    return str(form).format(a=a.name)


@op(exact=True)
def bits(p: Pick) -> str:
    a = p.value(lambda v: v.exact and v.dtype == torch.float32)
    # A maximum of 0 and -0 may be either: both become 0.
    return f"{a.name}.masked_fill({a.name} == 0, 0.0).contiguous().view(torch.int32) % 1000"


@op()
def bags(p: Pick) -> str:
    ids = p.value(lambda v: v.exact and v.rank == 2)
    table = p.member("torch.nn.Parameter(torch.randn(9, 5))")
    return f"F.embedding_bag({ids.name}.to(torch.int64).clamp(0, 8), {table}, mode='{p.one('sum', 'mean', 'max')}')"


@op(exact=True)
def selection(p: Pick) -> str:
    """What data decides the size of, brought back to a size that it doesn't decide."""
    a = p.value(lambda v: v.exact and v.rank >= 1 and v.dtype != torch.bool)
    forms = (
        "torch.masked_select({a}, {a} > 0).sum()",
        "{a}[{a} != 0].abs().sum()",
        "torch.nonzero({a}).sum(0)",
        "{a}[({a} > 0).flatten(1).any(1)].sum(0)" if a.rank > 1 else "{a}[{a} > 0].sum(0)",
        "torch.unique({a}).sum()",
        "torch.unique({a}, return_inverse=True)[1]",
        "({a} > 0).nonzero(as_tuple=True)[0].sum()",
        "torch.cat([{a}.flatten()[{a}.flatten() > 0], {a}.flatten()]).sum()",
        "torch.repeat_interleave({a}.flatten(), ({a}.flatten() > 0).to(torch.int64)).sum()",
        "torch.bincount(({a}.flatten() > 0).to(torch.int64), minlength=2).sum()",
    )
    return str(p.one(*forms)).format(a=a.name)
