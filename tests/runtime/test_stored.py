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
from llmos.runtime.cli.verify import command as verify
from llmos.runtime.device import cpu
from llmos.runtime.errors import ArtifactError
from llmos.runtime.program import Program, load

STORED = Path(__file__).parent / "stored"
FORMATS = {"dynamic": 1, "state": 1, "guards": 2, "computed": 2}


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
    assert [entry.name for entry in manifest.entries] == ["main"]


def test_it_runs_with_the_recorded_numbers(path: Path) -> None:
    program = opened(path)
    for call in json.loads(path.with_suffix(".json").read_text())["calls"] if program else ():
        result = program(*map(array_of, call["inputs"])) if program else None
        np.testing.assert_allclose(result, array_of(call["output"]), rtol=1e-5, atol=1e-6, strict=True)


def test_it_verifies(path: Path) -> None:
    program = opened(path)
    done = CliRunner().invoke(verify, [str(path)])
    assert done.exit_code == (0 if program else 1), done.output
    assert not program or "within budget" in done.output


def array_of(recorded: dict[str, Any]) -> np.ndarray:
    return np.array(recorded["values"], recorded["dtype"]).reshape(recorded["shape"])
