"""Artifacts that earlier compilers made load, verify and run (stored/README.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from llmos.runtime.artifact.reader import Artifact
from llmos.runtime.artifact.signature import add_trusted
from llmos.runtime.cli.run import command as run
from llmos.runtime.cli.verify import command as verify
from llmos.runtime.device import cpu
from llmos.runtime.errors import ArtifactError
from llmos.runtime.program import Program, load

STORED = Path(__file__).parent / "stored"
FORMATS = {"dynamic": 1, "state": 1, "guards": 2, "computed": 2, "updated": 3}
ENTRIES = {"updated": ["step", "embed"]}


def test_every_stored_artifact_is_tried() -> None:
    assert {path.stem for path in STORED.glob("*.llmos")} == set(FORMATS)


@pytest.fixture(params=FORMATS)
def path(request: pytest.FixtureRequest) -> Path:
    found = STORED / f"{request.param}.llmos"
    signer = Artifact.open(found).signer
    assert signer is not None
    add_trusted(signer)
    return found


def opened(path: Path) -> Program | None:
    """The program; None on a machine that its code is not for, where loading must say what is lacking."""
    (verdict,) = cpu.judge(Artifact.open(path))
    if verdict.chosen:
        return load(path, poison_arena=True)
    with pytest.raises(ArtifactError, match=f"needs .*{verdict.missing[0]}"):
        load(path)
    return None


def test_its_format_and_entries_are_read(path: Path) -> None:
    manifest = Artifact.open(path).manifest
    assert manifest.format == FORMATS[path.stem]
    assert [entry.name for entry in manifest.entries] == ENTRIES.get(path.stem, ["main"])


def test_it_runs_with_the_recorded_numbers(path: Path) -> None:
    program = opened(path)
    for call in json.loads(path.with_suffix(".json").read_text())["calls"] if program else ():
        inputs = [array_of(each) for each in call["inputs"]]
        result = program[call.get("entry", "main")](*inputs) if program else None
        np.testing.assert_allclose(result, array_of(call["output"]), rtol=1e-5, atol=1e-6, strict=True)
        for position, after in call.get("updated", {}).items():
            np.testing.assert_allclose(inputs[int(position)], array_of(after), rtol=1e-5, atol=1e-6, strict=True)


def test_it_verifies(path: Path) -> None:
    program = opened(path)
    done = CliRunner().invoke(verify, [str(path)])
    assert done.exit_code == (0 if program else 1), done.output
    assert not program or "within budget" in done.output


def test_an_updated_input_is_shown_and_saved(tmp_path: Path) -> None:
    path = STORED / "updated.llmos"
    signer = Artifact.open(path).signer
    assert signer is not None
    add_trusted(signer)
    call = json.loads(path.with_suffix(".json").read_text())["calls"][0]
    names = [spec.name for spec in Artifact.open(path).manifest.entries[0].inputs]
    for name, each in zip(names, call["inputs"], strict=True):
        np.save(tmp_path / f"{name}.npy", array_of(each))
    arguments = [word for name in names for word in ("--input", f"{name}={tmp_path / name}.npy")]
    done = CliRunner().invoke(run, [str(path), *arguments, "--output", str(tmp_path / "out")])
    if opened(path) is None:
        return
    assert done.exit_code == 0 and "cache" in done.output, done.output
    np.testing.assert_allclose(np.load(tmp_path / "out" / "cache.npy"), array_of(call["updated"]["0"]), rtol=1e-5, atol=1e-6)


def array_of(recorded: dict[str, Any]) -> np.ndarray:
    return np.array(recorded["values"], recorded["dtype"]).reshape(recorded["shape"])
