"""Sorting and what follows from it, against torch's stable sort: every dtype, NaN, infinities, signed zeros, repeated numbers, any axis.

Lengths are those that the kernel treats on their own: up to a vector, put in order by counting, by digits, and parts of an order.
`LLMOS_PROPERTY_CASES=1000` tries that many more shapes than CI does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from llmos.compiler.integrations.onnx_backend import LlmosBackend
from tests.codegen.programs import V3, V4, Returns, assert_like_eager, compile_torch, dim

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.int8, torch.int32, torch.int64, torch.uint8)
LENGTHS = (2, 15, 128, 129, 700)
SPECIALS = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.0, -1.0)
CASES = int(os.environ.get("LLMOS_PROPERTY_CASES", "0"))

Tensor = torch.Tensor
Function = Callable[[Tensor], Tensor]


def numbers(rng: np.random.Generator, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """Few different numbers, many different ones, or specials, at random."""
    few, special = rng.integers(3) == 0, rng.integers(3) == 0
    if dtype == torch.bool:
        return torch.from_numpy(rng.integers(0, 2, shape) > 0)
    if not dtype.is_floating_point:
        limits = torch.iinfo(dtype)
        return torch.from_numpy(rng.integers(*((0, 3) if few else (limits.min, limits.max)), shape, endpoint=True)).to(dtype)
    x = rng.standard_normal(shape) * (2 if few else 1e4)
    x = np.where(rng.random(shape) < (0.3 if special else 0.02), rng.choice(SPECIALS, shape), x.round() if few else x)
    return torch.from_numpy(x).to(dtype)


def ordered(x: Tensor, dim: int, descending: bool = False) -> tuple[Tensor, Tensor]:
    return torch.sort(x, dim=dim, descending=descending, stable=True)


class Orders(torch.nn.Module):
    """Of each input [a, b], b at least 2: both directions, parts of them, medians. `stable`: by stable sorts alone, as it is expected."""

    def __init__(self, stable: bool) -> None:
        super().__init__()
        self.stable = stable

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for i, x in enumerate(inputs):
            pairs = self._sorted(x) if self.stable else self._compiled(x)
            found |= {f"{name}_{i}_{part}": each for name, pair in pairs.items() for part, each in zip("vi", pair, strict=True)}
            found[f"median_{i}"], found[f"nanmedian_{i}"] = torch.median(x, -1)[0], torch.nanmedian(x, 0)[0]
        return found

    def _compiled(self, x: Tensor) -> dict[str, Sequence[Tensor]]:
        return {
            "up": torch.sort(x),
            "down": torch.sort(x, 0, True),
            "largest": torch.topk(x, 2),
            "smallest": torch.topk(x, 2, 1, False),
            "second": torch.kthvalue(x, 2, -1, True),
        }

    def _sorted(self, x: Tensor) -> dict[str, Sequence[Tensor]]:
        up, down = ordered(x, -1), ordered(x, -1, True)
        return {
            "up": up,
            "down": ordered(x, 0, True),
            "largest": [each[:, :2] for each in down],
            "smallest": [each[:, :2] for each in up],
            "second": [each[:, 1:2] for each in up],
        }


@pytest.mark.parametrize(("dtypes", "target"), [(FLOATS, V3), (INTEGERS, V3), (FLOATS[:1], V4)])
def test_every_dtype_and_length(dtypes: tuple[torch.dtype, ...], target: str) -> None:
    rng = np.random.default_rng(0)
    example = [numbers(rng, dtype, (3, 5)) for dtype in dtypes]
    program = compile_torch(Orders(stable=False), example, [{0: dim("a"), 1: dim("b", 2)}] * len(dtypes), target)
    for length in LENGTHS:
        for _ in range(2):
            inputs = [numbers(rng, dtype, (3, length)) for dtype in dtypes]
            assert_like_eager(program, Orders(stable=True), *inputs, exact=True)


def random_case(rng: np.random.Generator) -> tuple[Function, Function, tuple[int, ...]]:
    """A sort or a part of one along a random axis of a random shape: (compiled, expected, shape)."""
    rank = int(rng.integers(1, 5))
    shape = [int(rng.choice([1, 2, 3, 5])) for _ in range(rank)]
    axis = int(rng.integers(-rank, rank))
    shape[axis] = int(rng.choice([1, 2, 17, 130, 300]))
    k = int(rng.integers(0, shape[axis] + 1))
    descending = bool(rng.integers(2))

    def expected_top(x: Tensor) -> Tensor:
        return ordered(x, axis, descending)[1].narrow(axis, 0, k)

    choices = {
        "sort": (lambda x: torch.sort(x, axis, descending)[1], lambda x: ordered(x, axis, descending)[1]),
        "topk": (lambda x: torch.topk(x, k, axis, descending)[1], expected_top),
        "kthvalue": (lambda x: torch.kthvalue(x, max(k, 1), axis)[1], lambda x: ordered(x, axis)[1].select(axis, max(k, 1) - 1)),
        "middle": (lambda x: torch.sort(x, axis)[0].narrow(axis, k // 2, k - k // 2),) * 2,
    }
    return *choices[str(rng.choice(list(choices)))], tuple(shape)  # type: ignore[return-value]


def test_any_axis_of_any_shape() -> None:
    rng = np.random.default_rng(1)
    for _ in range(1 + CASES // 12):
        cases = [random_case(rng) for _ in range(12)]
        dtypes = [(*FLOATS, *INTEGERS, torch.int16, torch.bool)[int(rng.integers(10))] for _ in cases]
        sides = [Returns(**{f"r{i}": (lambda *xs, i=i, f=case[side]: f(xs[i])) for i, case in enumerate(cases)}) for side in (0, 1)]
        inputs = [numbers(rng, dtype, shape) for dtype, (_, _, shape) in zip(dtypes, cases, strict=True)]
        assert_like_eager(compile_torch(sides[0], inputs, None, V3), sides[1], *inputs, exact=True)


@pytest.mark.parametrize("dtype", [np.float16, np.int64, np.uint8, np.uint32, np.uint64])
def test_top_k_of_onnx(dtype: type[np.generic]) -> None:
    """Of equal elements the one with the lower index comes first; unsigned types too."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    rng = np.random.default_rng(2)
    high = 4 if np.issubdtype(dtype, np.floating) else np.iinfo(dtype).max
    x = np.stack([rng.integers(0, n, 9, np.uint64).astype(dtype) for n in (3, high)])
    nodes = [helper.make_node("TopK", ["x", "k"], [f"v{up}", f"i{up}"], axis=-1, largest=1 - up) for up in (0, 1)]
    outputs = [helper.make_tensor_value_info(name, code, None) for name, code in _outputs(kind)]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, x.shape)], outputs, [helper.make_tensor("k", TensorProto.INT64, [1], [4])]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)])
    down_values, down, up_values, up = LlmosBackend.prepare(model).run([x])
    wide = x.astype(np.float64) if np.issubdtype(dtype, np.floating) else x.astype(object)
    for values, found, sign in ((down_values, down, -1), (up_values, up, 1)):
        wanted = np.stack([sorted(range(9), key=lambda i, row=row, sign=sign: (sign * row[i], i))[:4] for row in wide])
        np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(values, np.take_along_axis(x, wanted, -1))


def _outputs(kind: int) -> list[tuple[str, int]]:
    return [(f"{part}{up}", kind if part == "v" else TensorProto.INT64) for up in (0, 1) for part in "vi"]


def test_searches() -> None:
    """Edges of one row for all values, a row for each, edges through a permutation; NaN, edges repeated, values beyond both ends."""
    rng = np.random.default_rng(3)
    module = Returns(
        left=lambda edges, values, whole: torch.searchsorted(edges, values),
        right=lambda edges, values, whole: torch.searchsorted(edges, values, side="right", out_int32=True),
        buckets=lambda edges, values, whole: torch.bucketize(values, edges[0], right=True),
        places=lambda edges, values, whole: torch.searchsorted(edges.flip(-1), values, sorter=torch.argsort(edges.flip(-1), stable=True)),
        number=lambda edges, values, whole: torch.searchsorted(edges[0], 0.5),
        integers=lambda edges, values, whole: torch.bucketize(whole, whole[0].sort()[0]),
    )

    def inputs(n: int, m: int) -> list[Tensor]:
        edges = torch.from_numpy(rng.integers(-3, 4, (2, n)) / 2).sort(-1)[0]
        return [edges, numbers(rng, torch.float64, (2, m)), numbers(rng, torch.int64, (2, m))]

    program = compile_torch(module, inputs(5, 4), [{1: dim("n", 1)}, {1: dim("m")}, {1: dim("m")}], V3)
    for n, m in ((5, 4), (1, 3), (2, 20), (300, 17), (1024, 1)):
        assert_like_eager(program, module, *inputs(n, m), exact=True)


def test_an_empty_dimension_and_a_scalar() -> None:
    module = Returns(
        rows=lambda x, y, z: torch.sort(x, -1)[1],
        none=lambda x, y, z: torch.topk(y, 0)[1],
        scalar=lambda x, y, z: torch.sort(z)[0],
        at=lambda x, y, z: torch.topk(z, 1)[1],
    )
    inputs = (torch.zeros(0, 3), torch.ones(2, 3), torch.tensor(4.0))
    assert_like_eager(compile_torch(module, inputs, None, V3), module, *inputs, exact=True)
