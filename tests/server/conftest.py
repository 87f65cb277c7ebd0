"""One server for all tests of a file that need no special settings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .harness import Server, numpy_server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with numpy_server() as running:
        yield running
