"""Random chains of views that end in ops which follow memory, against eager torch, at the traced sizes and at others.

LLMOS_VIEW_CHAINS asks for more models than the fixed sample.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from llmos.compiler.frontend.torch import import_torch
from llmos.runtime.errors import UnsupportedError
from tests.conformance.inprocess import Compiled

NUM_MODELS = int(os.environ.get("LLMOS_VIEW_CHAINS", "2"))
CHAINS = 8  # a model has so many outputs, each the end of a chain
View = Callable[[Tensor], Tensor]


class Chains(nn.Module):
    def __init__(self, chains: list[list[View]]) -> None:
        super().__init__()
        self._chains = chains

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        ends = []
        for chain in self._chains:
            y = x
            for view in chain:
                y = view(y)
            ends.append(y + 1 if y.dtype.is_floating_point else y)
        return tuple(ends)


def _views(x: Tensor, rng: random.Random, dynamic: bool) -> list[View]:
    """Views that torch takes of `x`, the one of every size and dtype; where dimension 0 is dynamic it stays whole or loses its ends."""
    dims = list(range(1 if dynamic else 0, x.dim()))
    wide = [dim for dim in dims if x.shape[dim] > 1]
    found: list[View] = [lambda v: v.detach(), lambda v: v.alias() if hasattr(v, "alias") else v.view_as(v), lambda v: v.unsqueeze(-1)]
    if dynamic:
        found += [lambda v: v[1:], lambda v: v[:-1], lambda v: v.expand(2, *v.shape).select(0, 1)]
        found += [lambda v: v.transpose(0, -1).contiguous().transpose(0, -1), lambda v: v[1:].transpose(0, -1).clone().transpose(0, -1)]
    if wide:
        dim = rng.choice(wide)
        at = rng.randrange(x.shape[dim])
        found += [
            lambda v: v.select(dim, at),
            lambda v: v.select(dim - v.dim(), at),
            lambda v: v.narrow(dim, at, v.shape[dim] - at),
            lambda v: v.chunk(2, dim)[-1],
            lambda v: v.split([at, v.shape[dim] - at], dim)[1],
            lambda v: v.unbind(dim)[at],
            lambda v: v.unfold(dim, 2, 1),
        ]
    if len(dims) > 1:
        a, b = rng.sample(dims, 2)
        found += [lambda v: v.transpose(a, b), lambda v: v.diagonal(0, a, b), lambda v: v.movedim(a, b)]
    if x.dim() and not dynamic:
        found += [lambda v: v.expand(2, *v.shape), lambda v: v.reshape(-1), lambda v: v.contiguous(), lambda v: v.clone(), lambda v: v * 2]
    return found


def _strided(x: Tensor, rng: random.Random) -> View:
    """as_strided within the memory of `x`, at an offset of its own or that of `x`."""
    last = x.untyped_storage().nbytes() // x.element_size() - 1
    offset = rng.choice([None, rng.randrange(last + 1)])
    room = last - (x.storage_offset() if offset is None else offset)
    size, stride = [], []
    for _ in range(rng.randint(1, 3)):
        step = rng.choice([0, 1, 1, 2, 3, 5, 8])
        count = rng.randint(1, 4) if step == 0 else min(rng.randint(1, 4), room // step + 1)
        size.append(count)
        stride.append(step)
        room -= step * (count - 1)
    if (
        rng.random() < 0.3 and x.numel() == last + 1 and x.is_contiguous() and len(stride) == 1 and stride != [0]
    ):  # export takes a scatter into a whole tensor alone
        source = torch.arange(1.0, 1.0 + int(np.prod(size))).reshape(size)
        return lambda v: torch.as_strided_scatter(v, source.to(v.dtype), size, stride, offset)
    return lambda v: v.as_strided(size, stride, offset)


def _chain(x: Tensor, rng: random.Random, dynamic: bool) -> list[View]:
    chain: list[View] = []
    for _ in range(rng.randint(1, 4)):
        view = rng.choice(_views(x, rng, dynamic))
        try:
            x = view(x)
        except RuntimeError:
            continue
        chain.append(view)
    for _ in range(rng.randint(1, 2)):
        view = _strided(x, rng)
        x = view(x)
        chain.append(view)
        if rng.random() < 0.3 and x.dim() > 1:
            chain.append(lambda v: v.transpose(0, -1))
            x = x.transpose(0, -1)
    return [*chain, _all_of_it] if dynamic and x.dim() and rng.random() < 0.3 else chain


def _all_of_it(x: Tensor) -> Tensor:
    """Every second element of each row, with strides that the sizes decide."""
    return x.as_strided((*x.shape[:-1], (x.shape[-1] + 1) // 2), (*x.stride()[:-1], 2 * x.stride(-1)))


@pytest.mark.parametrize("seed", range(NUM_MODELS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_a_chain_of_views_reads_what_torch_reads(dynamic: bool, dtype: torch.dtype, seed: int) -> None:
    rng = random.Random(f"{seed} {dtype} {dynamic}")
    shape = (8 if dynamic else 3, *[rng.choice([2, 3, 4]) for _ in range(rng.randint(1, 3))])
    x = torch.arange(int(np.prod(shape))).reshape(shape).to(dtype)
    # The least rows that a dynamic chain may have are those that its offsets were chosen for.
    module = Chains([_chain(x, rng, dynamic) for _ in range(CHAINS)])
    traced = torch.cat([x, x]) if dynamic else x
    shapes = ({0: torch.export.Dim("rows", min=8, max=100)},) if dynamic else None
    compiled = Compiled(import_torch(module, (traced,), shapes))
    for rows in (8, 9, 13) if dynamic else (3,):
        given = torch.arange(rows * x[0].numel()).reshape(rows, *shape[1:]).to(dtype)
        for got, want in zip(compiled([given.numpy()]), module(given), strict=True):
            np.testing.assert_array_equal(got, want.numpy())


DTYPES = [torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool]


@pytest.mark.sample(0, 2, 5)
@pytest.mark.parametrize("source", DTYPES, ids=str)
def test_memory_read_as_another_type(source: torch.dtype) -> None:
    """Of a slice whose memory begins in the middle, and then again by as_strided."""

    def recasts(x: Tensor) -> tuple[Tensor, ...]:
        views = [x[1:].view(dtype) for dtype in DTYPES if dtype != torch.bool]
        return (*views, *[view.as_strided((2, 2), (3, 1), 1) for view in views])

    x = torch.randint(0, 2, (4, 16)) if source == torch.bool else torch.randn(4, 16) * 100
    module = Chains([])
    module.forward = recasts  # type: ignore[assignment, method-assign]
    compiled = Compiled(import_torch(module, (x.to(source),), ({0: torch.export.Dim("rows", min=3, max=9)},)))
    for rows in (3, 4, 7):
        given = torch.cat([x, x])[:rows].to(source)
        for got, want in zip(compiled([given.numpy()]), recasts(given), strict=True):
            np.testing.assert_array_equal(got.view(np.uint8), want.numpy().copy().view(np.uint8))


@pytest.mark.parametrize(("example", "view", "says"), [
    (torch.zeros(4, 3).t(), lambda x: x.as_strided((2,), (1,)), "an example that is contiguous"),
    (torch.zeros(8)[2:], lambda x: x.as_strided((2,), (1,), 0), "in front of an input"),
])  # fmt: skip
def test_memory_that_the_model_is_not_given_is_refused(example: Tensor, view: View, says: str) -> None:
    with pytest.raises(UnsupportedError, match=says):
        import_torch(Chains([[view]]), (example,))


def test_a_view_that_ends_outside_at_some_sizes_is_an_error_of_the_call() -> None:
    module = Chains([[lambda x: x.as_strided((4, 2), (2, 1), 0)]])
    compiled = Compiled(import_torch(module, (torch.arange(12.0).reshape(6, 2),), ({0: torch.export.Dim("rows", min=2, max=9)},)))
    with pytest.raises(RuntimeError, match="index out of range"):
        compiled([np.zeros((2, 2), np.float32)])
    np.testing.assert_array_equal(compiled([np.zeros((5, 2), np.float32)])[0], np.ones((4, 2), np.float32))
