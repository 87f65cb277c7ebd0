"""Keys and a cache of the tests' own, and `pytest --processor zen3`: the suite as on a processor that this machine has the features of."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmos.compiler.backends.cpu import target

from .conformance import OPT_LEVEL
from .processors import PROCESSORS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--processor", choices=sorted(PROCESSORS), help="take this machine for another one, where it has all of its features")
    parser.addoption("--optimize", action="store_true", help="let LLVM optimize what tests/properties and tests/conformance compile")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--optimize"):
        os.environ[OPT_LEVEL] = "1"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the cases of a test marked `sample` that aren't in its sample as slow."""
    seen: Counter[str] = Counter()
    for item in items:
        chosen = item.get_closest_marker("sample")
        if chosen is not None:
            test = item.nodeid.partition("[")[0]
            if seen[test] not in chosen.args:
                item.add_marker(pytest.mark.slow)
            seen[test] += 1


@pytest.fixture(autouse=True, scope="session")
def processor(request: pytest.FixtureRequest) -> Iterator[None]:
    name = request.config.getoption("--processor")
    if name is None:
        yield
        return
    chosen = PROCESSORS[name]
    missing = sorted(set(chosen.features) - target._host_features())
    if chosen.arch != target._host_arch() or missing:
        raise pytest.UsageError(f"--processor {name}: this machine lacks {', '.join(missing) or chosen.arch}")
    with pytest.MonkeyPatch.context() as patch:
        chosen.pretend(patch)
        yield


@pytest.fixture(autouse=True, scope="session")
def llmos_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One home for all tests of a process: the user's keys are never touched, and artifacts of session fixtures stay trusted.

    The cache serves all processes of a run.
    """
    base = tmp_path_factory.getbasetemp()
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMOS_HOME", str(base / "home"))
        patch.setenv("LLMOS_CACHE", str(run / "cache"))
        yield base / "home"
