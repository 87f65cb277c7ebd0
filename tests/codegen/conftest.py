"""Fixtures: a home of the tests' own, so that nobody's keys are touched."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def llmos_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMOS_HOME", str(tmp_path_factory.mktemp("home")))
        yield
