"""Backends of other packages: found by their entry point, as they are installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmos.compiler.backends.null.backend import NullBackend
from llmos.compiler.backends.registry import backend_names, get_backend
from llmos.runtime.errors import UserError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that registers three backends; one can't be imported, one has a built-in one's name."""
    (tmp_path / "mine_backend.py").write_text(
        "from llmos.compiler.backends.null.backend import NullBackend\nclass Mine(NullBackend):\n    name = 'mine'\n"
    )
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[llmos.backends]\nmine = mine_backend:Mine\nbroken = mine_backend:Missing\nnull = mine_backend:Mine\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_package_registers_a_backend(package: Path) -> None:
    assert backend_names()[:4] == ["cpu", "cuda", "tvm", "null"] and {"mine", "broken"} <= set(backend_names())
    assert get_backend("mine").name == "mine"


def test_a_built_in_backend_is_not_replaced(package: Path) -> None:
    assert type(get_backend("null")) is NullBackend


def test_a_backend_that_can_not_be_loaded_is_named(package: Path) -> None:
    with pytest.raises(UserError, match="backend 'broken' can't be loaded from mine_backend:Missing"):
        get_backend("broken")


def test_an_unknown_backend(package: Path) -> None:
    with pytest.raises(UserError, match="--backend has no 'mime'; did you mean mine"):
        get_backend("mime")


def test_one_object_serves_a_process() -> None:
    assert get_backend("null") is get_backend("null")
