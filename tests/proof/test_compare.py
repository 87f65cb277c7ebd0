"""`llmos compare`, and memory plans under a run that overwrites what is dead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver import compile_to_file
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.frontend.torch import import_torch
from llmos.compiler.support.progress import Progress
from llmos.compiler.verify.bisect import CLEAN, bisect
from llmos.runtime.cli.command import run
from tests.proof.bisecting import CACHE, OPTIONS
from tests.proof.miscompiles import LostTile
from tests.proof.models import Encoder, convolutions


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compare") / "encoder.pt2"
    shape = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("tokens", max=32)}
    ids = torch.randint(0, 50, (3, 7))
    program = torch.export.export(Encoder(1).eval(), (ids, torch.ones_like(ids)), dynamic_shapes=(shape, dict(shape)))
    torch.export.save(program, path)
    return path


def compiled(source: Path, folder: Path, **options: object) -> Path:
    out = folder / "encoder.llmos"
    chosen = CompileOptions(target="native", cache=False, repro=None, **options)  # type: ignore[arg-type]
    compile_to_file(source, out, chosen, Progress())
    return out


def test_every_dispatch_is_beside_the_interpreter(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = compiled(source, tmp_path)
    assert run(["compare", str(artifact), "--source", str(source), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["dispatches"]) > 5 and found["first_non_finite"] is None
    assert all(row["alone"] < 1e-5 and row["accumulated"] < 1e-5 and row["source"] for row in found["dispatches"])
    assert any("layers.0" in place for row in found["dispatches"] for place in row["source"])
    assert run(["compare", str(artifact), "--source", str(source), "--against", "eager"]) == 0
    assert "first NaN or Inf: none" in capsys.readouterr().out


def test_a_wrong_dispatch_is_over_budget_alone(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        expected = LostTile("attention").plant(patch)
        artifact = compiled(source, tmp_path, accuracy_report=False)
    assert run(["compare", str(artifact), "--source", str(source), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    wrong = [row["name"] for row in found["dispatches"] if row["alone"] > 1e-4]
    assert wrong == [expected().dispatch]
    assert found["first_non_finite"] == expected().dispatch  # its last tile was never written


def test_an_artifact_of_another_source_is_refused(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.pt2"
    torch.export.save(torch.export.export(torch.nn.Linear(3, 4).eval(), (torch.randn(2, 3),)), other)
    assert run(["compare", str(compiled(source, tmp_path)), "--source", str(other)]) == 2
    assert "was not compiled from this source" in capsys.readouterr().err


def recurrent() -> ImportedModel:
    torch.manual_seed(0)
    shape = {0: torch.export.Dim("batch", max=16), 1: torch.export.Dim("tokens", max=32)}
    return import_torch(torch.nn.LSTM(8, 16, batch_first=True, bidirectional=True).eval(), (torch.randn(3, 7, 8),), (shape,))


@pytest.mark.sample(1)
@pytest.mark.parametrize("model", [lambda: convolutions(2), recurrent], ids=["convolutions", "recurrent"])
def test_dead_memory_is_never_read(model: object) -> None:
    assert bisect(model(), OPTIONS, lambda _: None, CACHE).kind == CLEAN  # type: ignore[operator]
