"""Fixtures: the hand-written artifact."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path

import pytest

from llmos.runtime.artifact.manifest import Symbol
from llmos.runtime.artifact.writer import ArtifactContents, CodeVariant, write_artifact

from .handwritten import ENTRIES, KERNELS, SCALE, SHIFT, Constant, compile_c


@pytest.fixture(scope="session")
def code(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    output = tmp_path_factory.mktemp("code") / "kernels.so"
    return compile_c(output, "-O2", "-fPIC", "-shared", "-nostdlib", Path(__file__).parent / "kernels.c").read_bytes()


@pytest.fixture(scope="session")
def contents(code: bytes) -> ArtifactContents:
    return ArtifactContents(
        name="hand-written",
        entries=ENTRIES,
        symbols=(Symbol("batch", 1, 1000), Symbol("tokens", 2, 64)),
        weights={"scale": Constant(SCALE), "shift": Constant(SHIFT)},
        code=(CodeVariant("baseline", platform.machine(), (), code),),
        kernels=KERNELS,
        producer={"llmos": "0.1.0"},
        metadata={"task": "test"},
        assets={"tokenizer.json": b'{"a": 1}'},
    )


@pytest.fixture(scope="session")
def artifact_path(contents: ArtifactContents, llmos_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "hand-written.llmos"
    write_artifact(path, contents)
    return path


@pytest.fixture(scope="session")
def small_path(contents: ArtifactContents, llmos_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of a few kilobytes (its code is no code), for tests that try every byte."""
    path = tmp_path_factory.mktemp("artifact") / "small.llmos"
    small = replace(contents, code=(CodeVariant("baseline", platform.machine(), (), b"\x7fELF nothing"),))
    write_artifact(path, small)
    return path
