"""`pytest --processor zen3`: the suite as on a processor that this machine has the features of."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llmos.compiler.backends.cpu import target

from .processors import PROCESSORS


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--processor", choices=sorted(PROCESSORS), help="take this machine for another one, where it has all of its features")


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
