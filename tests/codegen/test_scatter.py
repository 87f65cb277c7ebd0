"""Writes at places that data gives, against eager torch: around the sizes at which tiles are cut, in order, on any number of threads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from llmos.runtime.errors import InputError
from llmos.runtime.native.binding import num_threads, set_num_threads

from .programs import V3, V4, Returns, assert_like_eager, compile_torch, dim, run, to_array

Tensor = torch.Tensor
A = torch.ops.aten


def _kinds(function: Callable[..., Tensor], *inputs: Tensor) -> list[str]:
    return [kernel.kind for kernel in compile_torch(Returns(y=function), inputs, target=V3).manifest.kernels]


def test_every_form_is_one_kernel() -> None:
    x, i, src = torch.randn(5, 6), torch.tensor([1, 4, 1]), torch.randn(3, 6)
    rows: Callable[[Tensor], Tensor] = lambda i: i.unsqueeze(1).expand(-1, 6)  # noqa: E731
    for function in (
        lambda x, i, s: x.scatter(0, rows(i), s),
        lambda x, i, s: x.scatter_add(0, rows(i), s),
        lambda x, i, s: x.scatter_reduce(0, rows(i), s, "amax"),
        lambda x, i, s: x.index_add(0, i, s),
        lambda x, i, s: x.index_copy(0, i, s),
        lambda x, i, s: x.index_fill(0, i, 2.0) + 0 * s[0],
        lambda x, i, s: x.index_put((i,), s, True),
        lambda x, i, s: x.put(i, s[:, 0]),
    ):
        assert "fallback" not in _kinds(function, x, i, src)


@pytest.mark.parametrize("target", [V3, V4])
@pytest.mark.parametrize("width", [1, 31, 33, 1025])
def test_tiles_along_every_axis(target: str, width: int) -> None:
    module = Returns(
        rows=lambda x, i, s, each: x.index_add(0, i, s),
        elements=lambda x, i, s, each: x.scatter_add(0, each, s),
        along=lambda x, i, s, each: s.scatter_add(1, each % s.shape[1], s),
        transposed=lambda x, i, s, each: x.mT.index_add(1, i, s.mT),
        shorter=lambda x, i, s, each: x.scatter(0, each[:, : (each.shape[1] + 1) // 2], s),
    )
    inputs = _inputs(7, 3, width)
    program = compile_torch(module, inputs, [{0: dim("rows", 2)}, {0: dim("n", 2)}, {0: dim("n", 2)}, {0: dim("n", 2)}], target)
    for rows, count in ((7, 3), (2, 40), (300, 2)):
        assert_like_eager(program, module, *_inputs(rows, count, width), exact=True)


def _inputs(rows: int, count: int, width: int) -> list[Tensor]:
    made = torch.Generator().manual_seed(rows * 1000 + count)
    ids = lambda *shape: torch.randint(0, rows, shape, generator=made)  # noqa: E731
    whole = lambda *shape: torch.randint(-4, 5, shape, generator=made).float()  # noqa: E731
    return [whole(rows, width), ids(count), whole(count, width), ids(count, width)]


def test_of_several_updates_the_last_stays() -> None:
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool)
    module = Returns(
        **{f"put{k}": lambda x, i, j, s, kind=kind: x.to(kind).index_put((i, j), s.to(kind)) for k, kind in enumerate(kinds)},
        **{f"add{k}": lambda x, i, j, s, kind=kind: x.to(kind).index_put((i, j), s.to(kind), True) for k, kind in enumerate(kinds)},
        copied=lambda x, i, j, s: x.index_copy(0, i % 3, s.unsqueeze(1).expand(-1, 4)),
        across=lambda x, i, j, s: A.index_put(x.unsqueeze(1).expand(-1, 2, -1), [i, None, j], s.unsqueeze(1).expand(-1, 2)),
    )
    x, i, j = torch.zeros(3, 4), torch.tensor([0, 2, 0, 0, -1, 2, 0]), torch.tensor([1, 3, 1, -3, 3, 3, 0])
    inputs = (x, i, j, torch.arange(1.0, 8.0))
    assert_like_eager(compile_torch(module, inputs, target=V3), module, *inputs, exact=True)


def test_the_last_of_wide_rows_stays() -> None:
    """Torch itself writes them in any order."""
    x, places, source = _inputs(3, 40, 1025)[:3]
    program = compile_torch(Returns(y=lambda x, i, s: x.index_copy(0, i, s)), (x, places, source), target=V3)
    expected = x.clone()
    for place, row in zip(places.tolist(), source, strict=True):
        expected[place] = row
    assert np.array_equal(run(program, x, places, source)["y"], expected.numpy())


def test_bits_depend_on_no_thread() -> None:
    module = Returns(y=lambda x, i, s: x.index_add(0, i, s), z=lambda x, i, s: x.scatter_add(0, i.unsqueeze(1).expand(-1, 40), s))
    inputs = (torch.randn(500, 40), torch.randint(0, 500, (30,)), torch.randn(30, 40) * 1e3)
    program = compile_torch(module, inputs, target=V3)
    before, found = num_threads(), []
    try:
        for threads in (1, 2, 5):
            set_num_threads(threads)
            found.append(run(program, *inputs))
    finally:
        set_num_threads(before)
    assert all(np.array_equal(found[0][name], each[name]) for each in found for name in each)


def test_one_update_alone() -> None:
    """Loops of one turn, which upstream's passes take away."""
    module = Returns(
        put=lambda x, i, s: x.index_put((i, i), s),
        add=lambda x, i, s: x.index_put((i, i), s, True),
        least=lambda x, i, s: x.reshape(-1).scatter_reduce(0, i, s, "amin"),
        scalar=lambda x, i, s: x[0, 0].scatter_add(0, i[0] * 0, s[0]),
    )
    inputs = (torch.full((3, 3), -0.0), torch.tensor([1]), torch.tensor([-0.0]))
    program = compile_torch(module, inputs, target=V3)
    assert_like_eager(program, module, *inputs, exact=True)
    assert np.signbit(run(program, *inputs)["add"]).all()


@pytest.mark.parametrize("place", [4, -5, 2**31, 2**32 + 1, 10**11, -(2**63)])
def test_a_place_outside_is_an_error_of_the_call(place: int) -> None:
    module = Returns(y=lambda x, i, s: x.index_put((i,), s, True))
    inputs = (torch.zeros(4, 40), torch.tensor([0, -1]), torch.ones(2, 40))
    program = compile_torch(module, inputs, target=V3)
    assert_like_eager(program, module, *inputs)
    with pytest.raises(InputError, match="index"):
        program(*[to_array(each) for each in (inputs[0], torch.tensor([0, place]), inputs[2])])
    assert_like_eager(program, module, *inputs)
    program.check_integrity()
