"""Artifacts signed with a key of the tests' own, and the command run in this process or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from .artifacts import affine_artifact, counts_artifact


@dataclass(frozen=True)
class Artifacts:
    affine: Path
    counts: Path


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    folder = tmp_path_factory.mktemp("artifacts")
    return Artifacts(affine_artifact(folder / "affine.llmos"), counts_artifact(folder / "counts.llmos"))


@pytest.fixture
def llmos(artifacts: Artifacts, tmp_path: Path) -> Callable[..., Finished]:
    """Run the command in a process of its own, in an empty folder."""

    def call(*args: object, **environment: str) -> Finished:
        command = [sys.executable, "-c", "from llmos.runtime.cli import main; main()", *map(str, args)]
        env = {**os.environ, **environment}
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=60, check=False)
        return Finished(done.returncode, done.stdout, done.stderr)

    return call
