"""Scans against torch: every axis, sizes around the vector width, dtypes, NaN and infinities, what follows each element."""

from __future__ import annotations

import numpy as np
import torch

from .programs import V3, V4, Returns, assert_like_eager, compile_torch, dim, run


def test_running_values_along_every_axis() -> None:
    module = Returns(
        **{f"sum{axis}": (lambda x, axis=axis: x.cumsum(axis) * 2) for axis in (0, 1, -1)},
        product=lambda x: (1 + x / 50).cumprod(0),
        largest=lambda x: torch.cummax(x, 1)[0],
        place=lambda x: torch.cummax(x, -1)[1],
        place_of_least=lambda x: torch.cummin(x, 0)[1],
        log=lambda x: torch.logcumsumexp(x, 1),
        transposed=lambda x: x.movedim(0, -1).cumsum(1).movedim(-1, 1) + 1,
    )
    sizes = [{0: dim("a"), 1: dim("b"), 2: dim("c")}]
    for target in (V3, V4):
        program = compile_torch(module, [torch.randn(3, 4, 5)], sizes, target)
        for shape in ((3, 4, 5), (1, 1, 1), (2, 17, 16), (5, 1, 33)):
            assert_like_eager(program, module, torch.randn(shape))


def test_other_dtypes_and_specials() -> None:
    kinds = (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int32, torch.bool)
    module = Returns(
        **{f"sum{i}": (lambda *xs, i=i: xs[i].cumsum(0)) for i in range(len(kinds))},
        **{f"largest{i}": (lambda *xs, i=i: torch.cummax(xs[i], 0)[0]) for i in range(len(kinds))},
        **{f"place{i}": (lambda *xs, i=i: torch.cummin(xs[i], 0)[1]) for i in range(len(kinds))},
        narrow=lambda *xs: xs[4].cumsum(0, dtype=torch.int16),
    )
    x = torch.from_numpy(np.random.default_rng(0).integers(-5, 6, (40, 3)))
    inputs = [x.to(kind) for kind in kinds]
    inputs[0][7, 0], inputs[2][5, 1], inputs[2][9, 2] = float("nan"), float("inf"), -float("inf")
    program = compile_torch(module, inputs, None, V3)
    assert_like_eager(program, module, *inputs, rtol=1e-3, atol=0)
    assert_like_eager(program, module, *[each[:40].flip(0) for each in inputs], rtol=1e-3, atol=0)


def test_a_long_sum_keeps_its_digits() -> None:
    module = Returns(up=lambda x: x.cumsum(0))
    x = torch.rand(1 << 20)
    found = run(compile_torch(module, [x], [{0: dim("n", 1, 1 << 21)}], V3), x)["up"]
    np.testing.assert_allclose(found, np.cumsum(x.numpy().astype(np.float64)), rtol=1e-7)
