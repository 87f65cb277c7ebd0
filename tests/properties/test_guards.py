"""What export found that sizes must satisfy is checked at each call: an answer is torch's, or there is none."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import llmos
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver import compile as compile_model
from llmos.compiler.ir.bindings import context, ir
from llmos.compiler.ir.guards import guards_of
from llmos.compiler.ir.sizes import Symbol, SymbolTable
from llmos.runtime.program import Program

OPTIONS = CompileOptions(target="native", cache=False, repro=None, accuracy_report=False)
AUTO = torch.export.Dim.AUTO
SIZES = (2, 3, 4, 5, 6, 8, 9, 12)


class Model(torch.nn.Module):
    def __init__(self, function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.function(x, y)


# Of x [a, b] and y [c]; the sizes that each is traced at.
MODELS: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], tuple[int, int, int]]] = {
    "a product": (lambda x, y: x.reshape(24) + y.sum(), (4, 6, 3)),
    "divisible": (lambda x, y: x.reshape(3, -1, x.shape[1]) + y.sum(), (6, 4, 5)),
    "a sum": (lambda x, y: torch.cat([x[:, 0], x[0]]) + y, (3, 5, 8)),
    "a multiple": (lambda x, y: x.repeat(2, 1)[:, 0] + y, (3, 4, 6)),
    "a branch on an order": (lambda x, y: x * 2 if x.shape[0] > x.shape[1] else x + y.sum(), (6, 4, 3)),
    "a branch on an equality": (lambda x, y: x * 2 if x.shape[0] != y.shape[0] else x + y[:, None], (6, 4, 3)),
    "a slice that is cut": (lambda x, y: x[:, : x.shape[0]] * y.sum(), (6, 4, 3)),
    "even and odd elements": (lambda x, y: y[::2] - y[1::2] + x.sum(), (3, 4, 6)),
}


def _compiled(model: object, given: tuple[torch.Tensor, ...] | None, dynamic_shapes: object, folder: Path) -> Program:
    compile_model(model, given, dynamic_shapes=dynamic_shapes, options=OPTIONS).save(folder / "model.llmos")
    return llmos.load(folder / "model.llmos")


def _given(a: int, b: int, c: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 * a + 10 * b + c)
    return torch.randn((a, b), generator=generator), torch.randn((c,), generator=generator)


def _answer(run: Callable[..., torch.Tensor], given: tuple[torch.Tensor, ...]) -> torch.Tensor | None:
    try:
        return run(*given)
    except (RuntimeError, AssertionError):
        return None


@pytest.mark.parametrize("from_file", [False, True], ids=["module", "pt2"])
@pytest.mark.parametrize("name", MODELS)
def test_a_call_is_answered_as_torch_does_or_refused(tmp_path: Path, name: str, from_file: bool) -> None:
    """Export's own module says which sizes the program is for; it is not asked where torch's code looked for a dim of 1."""
    function, traced = MODELS[name]
    model, shapes = Model(function), ({0: AUTO, 1: AUTO}, {0: AUTO})
    exported = torch.export.export(model, _given(*traced), dynamic_shapes=shapes)
    if from_file:
        torch.export.save(exported, tmp_path / "model.pt2")
    program = _compiled(tmp_path / "model.pt2" if from_file else exported, None, None, tmp_path)
    answered = 0
    for sizes in itertools.chain([traced], itertools.product(SIZES, SIZES, SIZES[::2])):
        given = _given(*sizes)
        try:
            found = program(*[each.numpy() for each in given])
        except llmos.InputError:
            assert from_file or _answer(exported.module(), given) is None, sizes
            continue
        if from_file and "branch on an equality" in name:
            continue  # the file doesn't say who asked whether sizes differ
        expected = _answer(model, given)
        assert expected is not None, sizes
        assert isinstance(found, np.ndarray) and found.shape == tuple(expected.shape), sizes
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=str(sizes))
        answered += 1
    assert answered or (from_file and "branch on an equality" in name)


def test_the_message_says_what_is_needed_and_what_came(tmp_path: Path) -> None:
    class Halves(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, -1, x.shape[1])

    dims = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    program = _compiled(Halves(), (torch.randn(6, 3),), dims, tmp_path)
    spec = program.manifest.entries[0]
    assert spec.guards is not None
    assert spec.guards.conditions[0] == "s0 % 2 == 0"
    assert program(np.zeros((8, 3), np.float32)).shape == (2, 4, 3)  # type: ignore[union-attr]
    with pytest.raises(llmos.InputError, match=r'^entry "main": the model needs s0 % 2 == 0, got s0 = 7$'):
        program(np.zeros((7, 3), np.float32))
    again = type(program.manifest).parse(program.manifest.to_json())
    assert again.entries == program.manifest.entries
    assert replace(again, entries=()).format < again.format


def test_rows_that_a_guard_counts_are_not_joined(tmp_path: Path) -> None:
    class Even(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[0] < x.shape[1]:
                return x + 1
            return x * 2

    rows = _compiled(Even(), (torch.randn(3, 8),), ({0: AUTO, 1: AUTO},), tmp_path).manifest.entries[0].rows
    assert rows is not None
    assert (rows.independent, rows.reason) == (None, "a call needs s0 < s1, which says something of 's0'")


@pytest.mark.parametrize("text", ["a * b", "a == b == 3", "a = 3", "q < 2", "a.real == 1", "__import__('os') == 1"])
def test_text_that_is_no_condition_is_refused(text: str) -> None:
    with context(), ir.Location.unknown():
        module = ir.Module.create()
        module.operation.attributes["llmos.guards"] = ir.ArrayAttr.get([ir.StringAttr.get(text)])
        with pytest.raises(llmos.UserError):
            guards_of(module.operation, SymbolTable((Symbol("a", 1, 9), Symbol("b", 1, 9))))
