"""Requests are joined only where no row of an answer depends on another row: rows joined and rows alone give the same bits."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from llmos.compiler.driver import compile as compile_model
from llmos.runtime.engine import Batching, Engine, load_model
from llmos.runtime.engine.model import Array, ProgramModel
from llmos.runtime.errors import UnsupportedError

from .row_models import DEPENDENT, INDEPENDENT, OPTIONS, ROWS, TOKENS, arguments, module, random_graph, reasons

DYNAMIC = ({0: ROWS, 1: TOKENS}, {0: ROWS, 1: TOKENS})
NUM_GRAPHS = int(os.environ.get("LLMOS_ROW_GRAPHS", "24"))


class _Held(ProgramModel):
    """A model that lets its first call wait, so that the requests behind it queue, and notes the rows of each call."""

    def hold(self) -> None:
        self.started, self.gate, self.rows = threading.Event(), threading.Event(), list[int]()

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        self.rows.append(len(arrays[0]))
        self.started.set()
        assert self.gate.wait(20)
        return super().__call__(arrays)


def _served(model: ProgramModel, requests: Sequence[Sequence[Array]]) -> tuple[list[list[Array]], list[int]]:
    """Each request's outputs, and the rows of each call that the engine made."""
    model.__class__ = _Held
    assert isinstance(model, _Held)
    model.hold()
    engine = Engine(model)
    names = [spec.name for spec in model.signature.inputs]
    submitted = [engine.submit([dict(zip(names, requests[0], strict=True))])]
    assert model.started.wait(20)
    submitted += [engine.submit([dict(zip(names, request, strict=True))]) for request in requests[1:]]
    model.gate.set()
    answers = [request.future.result(20)[0] for request in submitted]
    engine.close()
    return answers, model.rows


def _saved(model: torch.nn.Module, given: Sequence[torch.Tensor], dynamic_shapes: object, folder: Path) -> ProgramModel:
    compile_model(model, given, dynamic_shapes=dynamic_shapes, options=OPTIONS).save(folder / "model.llmos")
    return load_model(folder / "model.llmos")


def _same_bits(found: Sequence[Array], alone: Sequence[Array]) -> bool:
    return all(a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in zip(found, alone, strict=True))


def test_models_whose_rows_are_independent_are_joined_and_give_the_same_bits(tmp_path: Path) -> None:
    model = _saved(module(INDEPENDENT), arguments(), DYNAMIC, tmp_path)
    assert Batching.of(model).batch_symbol == "points"
    requests = [[each.numpy() for each in arguments(rows, 7, seed=rows)] for rows in (2, 3, 5, 2)]
    alone = [model(request) for request in requests]
    answers, rows = _served(model, requests)
    assert rows == [2, 10]
    assert all(_same_bits(found, expected) for found, expected in zip(answers, alone, strict=True))


def test_every_expression_that_mixes_rows_is_refused_with_a_reason() -> None:
    found = dict(zip(DEPENDENT, reasons(module(DEPENDENT), arguments(), DYNAMIC, "points"), strict=True))
    assert [expression for expression, reason in found.items() if not reason] == []
    assert found["x - x.mean(0)"] == "pool_or_reduce reduces over points"
    assert found["x * x.shape[0]"] == "elementwise uses the size of points"
    assert found["x.flip(0)"] == "gather reads rows of points at other places"


@pytest.mark.parametrize("name", ["batch", "n", "N", "B", "batch_size"])
def test_a_name_proves_nothing(tmp_path: Path, name: str) -> None:
    dim = torch.export.Dim(name, min=2, max=100)
    model = _saved(module(["x - x.mean(0)"]), arguments(), ({0: dim, 1: TOKENS}, {0: dim, 1: TOKENS}), tmp_path)
    assert Batching.of(model).batch_symbol is None
    requests = [[each.numpy() for each in arguments(3, 7, seed=seed)] for seed in range(3)]
    alone = [model(request) for request in requests]
    answers, rows = _served(model, requests)
    assert rows == [3, 3, 3]
    assert all(_same_bits(found, expected) for found, expected in zip(answers, alone, strict=True))


@pytest.mark.sample(0)
@pytest.mark.parametrize("group", range(4))
def test_what_is_proven_of_a_random_graph_holds_of_torch(group: int) -> None:
    """Rows of eager torch's answers, joined and alone; for what is proven of more than half of the graphs that have rows at all."""
    proven = tried = 0
    for seed in range(group, NUM_GRAPHS, 4):
        graph = random_graph(seed)
        try:
            found = reasons(graph.module(), graph.arguments(0), _dynamic(graph.inputs), "b")
        except UnsupportedError:
            continue
        tried += 1
        if found == [""]:
            proven += 1
            _check_rows(graph.module(), graph.arguments(0), repr(graph))
    assert tried >= NUM_GRAPHS // 8
    assert proven >= tried // 4


def _dynamic(inputs: Sequence[object]) -> tuple[dict[int, object], ...]:
    dims = {"b": torch.export.Dim("b", min=2, max=128), "t": torch.export.Dim("t", min=6, max=128)}
    return tuple({axis: dims[d] for axis, d in enumerate(each.dims) if isinstance(d, str)} for each in inputs)  # type: ignore[attr-defined]


def _check_rows(model: torch.nn.Module, given: Sequence[torch.Tensor], text: str) -> None:
    with torch.no_grad():
        [whole] = model(*given)
        for start, end in ((0, 2), (2, 5), (5, 7)):
            [part] = model(*[each[start:end] for each in given])
            wide = [np.asarray(each.to(torch.float64)) for each in (part, whole[start:end])]
            np.testing.assert_allclose(*wide, rtol=1e-3, atol=1e-3, err_msg=text)


def test_a_random_graph_that_is_joined_gives_the_same_bits(tmp_path: Path) -> None:
    checked = 0
    for seed in range(100, 100 + NUM_GRAPHS // 4):
        graph = random_graph(seed)
        try:
            model = _saved(graph.module(), graph.arguments(0), _dynamic(graph.inputs), tmp_path)
        except UnsupportedError:
            continue
        if Batching.of(model).batch_symbol is None:
            continue
        checked += 1
        arrays = [value.view(torch.uint16) if value.dtype == torch.bfloat16 else value for value in graph.arguments(0)]
        requests = [[each[start:end].numpy().copy() for each in arrays] for start, end in ((0, 3), (3, 5), (5, 7))]
        alone = [model(request) for request in requests]
        answers, _ = _served(model, requests)
        assert all(_same_bits(found, expected) for found, expected in zip(answers, alone, strict=True)), repr(graph)
    assert checked
