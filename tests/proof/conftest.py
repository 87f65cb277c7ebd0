"""Proof: accuracy reports, comparison, bisection. Keys and cache of these tests' own."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_HOME", str(tmp_path_factory.getbasetemp() / "home"))
