"""A model directory is compiled once, and again when it has changed."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from llmos.runtime.errors import UserError
from llmos.runtime.llm.compiled import artifact_of


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The commands that ran, in place of the compiler: each writes its options into the artifact."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if "--fail" in command:
            return subprocess.CompletedProcess(command, 2, "", "a warning\nerror: no such architecture\n")
        Path(command[command.index("-o") + 1]).write_text(" ".join(command))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("LLMOS_CACHE", str(tmp_path / "cache"))
    return commands


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    folder = tmp_path / "model-0.5b"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_once(directory: Path, compiles: list[list[str]]) -> None:
    first = artifact_of(directory)
    assert first == artifact_of(directory) and first.exists() and len(compiles) == 1
    assert first.name.startswith("model-0.5b-") and first.suffix == ".llmos"
    assert compiles[0][1:5] == ["-m", "llmos.runtime.cli", "compile", str(directory)]
    other = artifact_of(directory, ("--quant", "w8a8"))
    assert other != first and compiles[1][-2:] == ["--quant", "w8a8"]
    assert artifact_of(directory) == first and len(compiles) == 2


def test_again_when_it_has_changed(directory: Path, compiles: list[list[str]]) -> None:
    first = artifact_of(directory)
    os.utime(directory / "config.json", ns=(0, 0))
    second = artifact_of(directory)
    (directory / "more.safetensors").write_bytes(b"1")
    third = artifact_of(directory)
    assert len({first, second, third}) == len(compiles) == 3
    assert not first.exists() and not second.exists() and third.exists()


def test_many_at_the_same_time_compile_once(directory: Path, compiles: list[list[str]]) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(artifact_of, [directory] * 4))) == 1
    assert len(compiles) == 1


def test_an_artifact_is_taken_as_it_is(tmp_path: Path, compiles: list[list[str]]) -> None:
    path = tmp_path / "m.llmos"
    path.write_bytes(b"")
    assert artifact_of(path) == path and not compiles
    with pytest.raises(UserError, match="it is compiled already, so it takes no options of the compiler"):
        artifact_of(path, ("--quant", "w8a8"))


def test_what_goes_wrong_is_one_line(directory: Path, compiles: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model-0\.5b can't be compiled: no such architecture"):
        artifact_of(directory, ("--fail",))
    with pytest.raises(UserError, match="there is no such file or directory"):
        artifact_of(tmp_path / "missing")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLMOS_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"can't keep compiled models in .*set LLMOS_CACHE"):
        artifact_of(directory)
