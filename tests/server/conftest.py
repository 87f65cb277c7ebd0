"""One server for all tests of a file that need no special settings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .harness import Server, language_server, numpy_server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with numpy_server() as running:
        yield running


@pytest.fixture(scope="session")
def served() -> Iterator[Server]:
    """Return a server of a language model that needs a key, with a queue of 24 requests."""
    with language_server(max_queue=24, api_keys=["first-key", "second-key"]) as running:
        running.key = "first-key"
        yield running
