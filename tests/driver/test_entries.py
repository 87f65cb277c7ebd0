"""Several models in one artifact: equal weights lie once, and each entry computes what its model does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import llmos
from llmos.compiler.backends.options import CompileOptions
from llmos.runtime.artifact.accuracy import accuracy_report_of
from llmos.runtime.cli.inspect import command as inspect
from llmos.runtime.cli.verify import command as verify
from llmos.runtime.engine.model import ProgramModel
from llmos.runtime.errors import InputError, UnsupportedError, UserError
from llmos.runtime.program import Program

OPTIONS = CompileOptions(target="native", cache=False, repro=None, name="entries")


def dim(name: str, largest: int) -> Any:
    return torch.export.Dim(name, min=1, max=largest)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(32, 16), nn.Linear(16, 24), nn.Linear(24, 16)
        self.recurrent = nn.LSTM(16, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(self.table(ids)).exp().log1p())


class Part(nn.Module):
    """A use of the model: its parameters have other names here."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(self.model, *inputs)


def step(model: nn.Module, ids: torch.Tensor, cache: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    hidden = model(ids)
    cache.index_copy_(0, at, hidden)
    return (hidden @ cache.T).softmax(-1) @ cache


def embed(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return model(ids).mean(0)


def scan(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return model.recurrent(model.table(ids))[0]


def chosen(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return model.table(ids[ids > 4])


def pairs(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return model.table(ids.reshape(ids.shape[0] // 2, 2)).sum(1)


EXPORTED = ("chosen", "pairs")
IDS = torch.tensor([3, 1, 7, 9, 2, 8])
CACHE = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
PARTS: dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...], Any]] = {
    "step": (step, (IDS[:1], CACHE, torch.tensor([2])), ({}, {0: dim("slots", 4096)}, {})),
    "embed": (embed, (IDS,), ({0: dim("tokens", 64)},)),
    "scan": (scan, (IDS,), ({0: dim("tokens", 32)},)),
    "again": (scan, (IDS,), ({0: dim("tokens", 32)},)),
    "chosen": (chosen, (IDS,), ({0: dim("tokens", 64)},)),
    "other": (chosen, (IDS,), ({0: dim("tokens", 64)},)),
    "pairs": (pairs, (IDS,), ({0: torch.export.Dim.DYNAMIC},)),
}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Model().eval()


@pytest.fixture(scope="module")
def path(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its parts are modules and, of the same parameters, exported programs."""
    file = tmp_path_factory.mktemp("entries") / "entries.llmos"
    sources: dict[str, Any] = {}
    for name, (function, inputs, shapes) in PARTS.items():
        part = Part(model, function)
        is_exported = name in EXPORTED
        given = tuple(each.clone() for each in inputs)
        sources[name] = torch.export.export(part, given, dynamic_shapes=(shapes,), strict=False) if is_exported else part
    modules = [name for name in PARTS if name not in EXPORTED]
    examples = {name: tuple(each.clone() for each in PARTS[name][1]) for name in modules}
    shapes = {name: (PARTS[name][2],) for name in modules}
    llmos.compile(sources, examples, dynamic_shapes=shapes, options=OPTIONS).save(file)
    return file


@pytest.fixture(scope="module")
def program(path: Path) -> Program:
    return llmos.load(path, poison_arena=True)


@pytest.mark.parametrize("name", PARTS)
def test_each_entry_computes_what_its_model_does(name: str, model: nn.Module, program: Program) -> None:
    function, inputs, _ = PARTS[name]
    ours, theirs = [each.clone().numpy() for each in inputs], [each.clone() for each in inputs]
    with torch.no_grad():
        want = function(model, *theirs)
    np.testing.assert_allclose(program[name](*ours), want.numpy(), rtol=1e-4, atol=1e-5)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-4, atol=1e-5)
    program.check_integrity()


def test_equal_weights_lie_once(model: nn.Module, program: Program) -> None:
    """Whatever they are called in each entry: two uses of one layout are one weight."""
    tables = [weight for weight in program.manifest.weights if weight.shape == (32, 16)]
    assert len(tables) == 1
    contents = [array.tobytes() for array in program.artifact.weights.values()]
    assert len(set(contents)) == len(contents)


def test_symbols_of_one_name_and_another_range_are_apart(program: Program) -> None:
    ranges = {symbol.name: (symbol.min, symbol.max) for symbol in program.manifest.symbols}
    assert (ranges["slots"], ranges["tokens"], ranges["tokens_scan"]) == ((1, 4096), (1, 64), (1, 32))
    with pytest.raises(InputError, match=r"tokens_scan\) is 33, outside its range of 1 to 32"):
        program["scan"](np.zeros(33, np.int64))
    assert program["embed"](np.zeros(33, np.int64)).shape == (16,)
    assert len({symbol.name for symbol in program.manifest.computed}) == 2


def test_guards_are_each_entrys_own(program: Program) -> None:
    with pytest.raises(InputError, match='entry "pairs": the model needs'):
        program["pairs"](np.zeros(5, np.int64))


def test_profiles_name_the_entry(program: Program) -> None:
    profile = program["embed"].profile(IDS.numpy())
    assert {each.name.split(".")[0] for each in profile.dispatches} == {"embed"}


def test_the_accuracy_report_covers_every_entry(path: Path, program: Program) -> None:
    accuracy_report = accuracy_report_of(program.artifact)
    assert accuracy_report is not None and {case.entry for case in accuracy_report.cases} == set(PARTS)
    done = CliRunner().invoke(verify, [str(path)])
    assert "within budget" in done.output and "over budget" not in done.output, done.output
    shown = CliRunner().invoke(inspect, [str(path)]).output
    assert all(f"entry {name}" in shown for name in PARTS)


def test_the_engine_takes_the_entry_that_it_is_told(program: Program) -> None:
    assert ProgramModel(program, entry="embed").signature.outputs[0].shape == (16,)
    with pytest.raises(InputError, match="writes into its input"):
        ProgramModel(program)
    with pytest.raises(InputError, match="there is no entry 'nothing'"):
        ProgramModel(program, entry="nothing")


@pytest.mark.parametrize(
    ("sources", "given", "message"),
    [
        ({"a b": nn.Identity()}, {}, "an entry can't be called 'a b'"),
        ({}, {}, "at least one entry"),
        ({"a": nn.Identity()}, {"b": (IDS,)}, "by the names of the entries: a"),
        ({"a": nn.Identity()}, (IDS,), "by the names of the entries: a"),
    ],
)
def test_wrong_names_are_refused(sources: Any, given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        llmos.compile(sources, given, options=OPTIONS)


def test_a_buffer_that_two_entries_have_and_one_changes_is_refused() -> None:
    norm = nn.BatchNorm1d(4).train()
    with pytest.raises(UnsupportedError, match="entry 'train' changes the buffer 'running_mean'"):
        llmos.compile({"train": norm, "again": norm}, dict.fromkeys(("train", "again"), (torch.randn(3, 4),)), options=OPTIONS)
