"""Every op's results have the shapes and types that eager torch gives; a lowering or decomposition that gives others is refused by name."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from llmos.compiler.frontend.decompositions.checking import checked
from llmos.compiler.frontend.ops.table import table
from llmos.compiler.frontend.torch import import_torch, to_numpy
from llmos.runtime.errors import UnsupportedError
from tests.conformance.inprocess import Compiled
from tests.conformance.opinfo import difference

aten = torch.ops.aten
Tensor = torch.Tensor
AUTO = torch.export.Dim.AUTO

IDS = torch.tensor([1, 2, 4, 5, 4, 3, 2, 9])
BAGS: dict[str, tuple[Any, ...]] = {
    "plain": (torch.tensor([0, 4]), False, None),
    "with an empty bag": (torch.tensor([0, 4, 4, 8]), False, None),
    "last offset included": (torch.tensor([0, 3, 8]), False, None, True),
    "padding": (torch.tensor([0, 4]), False, None, False, 2),
}
MIXED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "threshold_backward": lambda x, y: aten.threshold_backward(x, y, 0),
    "huber_loss": lambda x, y: aten.huber_loss(x, y),
    "soft_margin_loss": lambda x, y: aten.soft_margin_loss(x, y),
    "mse_loss": lambda x, y: aten.mse_loss(x, y),
    "smooth_l1_loss": lambda x, y: aten.smooth_l1_loss(x, y),
    "xlogy": lambda x, y: aten.xlogy(x, y),
    "where": lambda x, y: torch.where(x > 0, x, y),
    "heaviside": lambda x, y: torch.heaviside(x, y),
    "dist": lambda x, y: torch.dist(x, y),
}
DTYPES = (torch.float32, torch.float64, torch.float16, torch.int64, torch.bool)


def _compare(module: torch.nn.Module, examples: tuple[Tensor, ...], shapes: Any = None, *calls: tuple[Tensor, ...]) -> None:
    compiled = Compiled(import_torch(torch.export.export(module, examples, dynamic_shapes=shapes)))
    for inputs in (examples, *calls):
        for place, (got, want) in enumerate(zip(compiled([to_numpy(each) for each in inputs]), module(*inputs), strict=True)):
            assert not difference(got, want), f"result {place}: {difference(got, want)}"


def _module(function: Callable[..., Any]) -> torch.nn.Module:
    return type("Module", (torch.nn.Module,), {"forward": staticmethod(function)})()


@pytest.mark.sample(0)
@pytest.mark.parametrize("mode", range(3))
def test_all_results_of_a_bag_of_embeddings(mode: int) -> None:
    def forward(weight: Tensor, ids: Tensor, *starts: Tensor) -> tuple[Tensor, ...]:
        every = zip(starts, BAGS.values(), strict=True)
        return tuple(each for at, (_, *rest) in every for each in aten._embedding_bag(weight, ids, at, rest[0], mode, False, *rest[1:]))

    starts = tuple(rest[0] for rest in BAGS.values())
    _compare(_module(forward), (torch.randn(10, 3), IDS, *starts))


def test_rows_that_a_bag_does_not_use_may_be_infinite() -> None:
    weight = torch.randn(10, 3)
    weight[2], weight[9] = torch.inf, -torch.inf
    functional = torch.nn.functional.embedding_bag
    forward = _module(lambda w, ids, at: tuple(functional(ids, w, at, mode=mode) for mode in ("sum", "mean", "max")))
    shapes = (None, {0: AUTO}, {0: AUTO})
    fewer = (weight, torch.tensor([1, 9, 2]), torch.tensor([0, 1, 1]))
    _compare(forward, (weight, IDS, torch.tensor([0, 4])), shapes, fewer)


@pytest.mark.sample(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 36, 38, 40, 42, 44, 46, 48, 50, 52, 54, 56, 58)
@pytest.mark.parametrize("name", MIXED)
def test_operands_of_several_types(name: str) -> None:
    """Each pair of types that eager torch takes."""
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    pairs = []
    for kinds in itertools.product(DTYPES, repeat=2):
        try:
            MIXED[name](x.to(kinds[0]), y.to(kinds[1]))
        except (RuntimeError, NotImplementedError):
            continue
        pairs.append(kinds)
    forward = _module(lambda x, y: tuple(MIXED[name](x.to(a), y.to(c)) for a, c in pairs))
    assert pairs
    _compare(forward, (x, y))


@pytest.mark.parametrize("wrong", [lambda b, result, x, _: b.cast(x, torch.float64), lambda b, result, x, _: b.unsqueeze(x, 0)])
def test_a_lowering_with_another_result_is_refused(wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(table(), "aten.flip.default", wrong)  # type: ignore[arg-type]
    program = torch.export.export(_module(lambda x: x.flip(0) + 1), (torch.randn(3, 4),), dynamic_shapes=({0: AUTO},))
    with pytest.raises(UnsupportedError, match=r"aten\.flip\.default: its lowering gives float.* where torch gives float32\[s0, 4\]"):
        import_torch(program)


def test_a_decomposition_with_another_result_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = checked(aten.xlogy.Tensor, lambda x, y: (x * y).to(torch.float64))
    monkeypatch.setattr("llmos.compiler.frontend.exporting.own_decompositions", lambda: {aten.xlogy.Tensor: wrong})
    program = torch.export.export(_module(lambda x, y: torch.xlogy(x, y)), (torch.randn(3, 4), torch.randn(3, 4)))
    with pytest.raises(UnsupportedError, match=r"aten\.xlogy\.Tensor: its decomposition gives float64\[3, 4\] where torch gives float32"):
        import_torch(program)


def test_a_slice_that_export_takes_to_be_whole_asks_for_its_elements() -> None:
    """torch.export gives x[:2] two elements whatever the size of x: a call with fewer is refused, and reads nothing beyond the input."""
    dims = {0: torch.export.Dim("rows", min=1, max=8), 1: torch.export.Dim("width", min=1, max=8)}
    model = import_torch(_module(lambda x: x[:2] + x[:, :1].sum()), (torch.zeros(4, 6),), (dims,))
    assert [str(each) for each in model.module.operation.attributes["llmos.guards"]] == ['"rows >= 2"']
