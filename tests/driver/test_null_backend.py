"""The driver beside the null backend: which calls a compile makes, what it leaves, without a line of code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmos.compiler.backends.null.backend import NullBackend
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.backends.registry import get_backend
from llmos.compiler.driver import CompileResult, compile_to_file
from llmos.compiler.support.progress import Progress
from llmos.runtime.errors import UserError

MODULE = """
func.func @main(%x: tensor<4xf32> {llmos.kind = "input", llmos.name = "x", llmos.dtype = "float32", llmos.shape = [4]})
    -> (tensor<4xf32> {llmos.name = "y", llmos.dtype = "float32"}) {
  %y = math.exp %x : tensor<4xf32>
  return %y : tensor<4xf32>
}
"""
PASSED = {"plan": 1, "dispatch_passes": 2, "plan_passes": 2}  # the passes, and their texts for the manifest


@pytest.fixture
def calls() -> Iterator[Counter[str]]:
    backend = get_backend("null")
    assert isinstance(backend, NullBackend)
    backend.calls.clear()
    yield backend.calls
    backend.calls.clear()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "m.linalg.mlir"
    path.write_text(MODULE)
    return path


def run(source: Path, out: Path, **options: object) -> CompileResult:
    chosen = CompileOptions(backend="null", repro=None, accuracy_report=False, **options)  # type: ignore[arg-type]
    return compile_to_file(source, out, chosen, Progress())


def test_a_stage_is_made_once_for_each_target(source: Path, tmp_path: Path, calls: Counter[str]) -> None:
    run(source, tmp_path / "m.llmos")
    assert calls == {**PASSED, "text": 2, "null": 2, "member": 2}


@pytest.mark.parametrize(
    ("stage", "expected", "files"),
    [
        ("fused.mlir", PASSED, ["out.fused.mlir"]),
        ("text", {**PASSED, "text": 2}, ["out.null.text", "out.null-2.text"]),
        ("null", {**PASSED, "text": 2, "null": 2}, ["out.null.null", "out.null-2.null"]),
    ],
)
def test_nothing_runs_behind_the_stage_to_stop_after(
    stage: str, expected: dict[str, int], files: list[str], source: Path, tmp_path: Path, calls: Counter[str]
) -> None:
    found = run(source, tmp_path / "out.llmos", stop_after=stage)
    assert calls == expected
    assert [path.name for path in found.written if path.suffix != ".json"] == files
    assert found.manifest is None


def test_a_saved_stage_goes_on_where_it_was_left(source: Path, tmp_path: Path, calls: Counter[str]) -> None:
    run(source, tmp_path / "m.llmos", stop_after="text")
    calls.clear()
    run(tmp_path / "m.null.text", tmp_path / "m.llmos")
    assert calls == {"null": 2, "member": 2}


def test_an_error_of_a_stage_leaves_nothing_behind(
    source: Path, tmp_path: Path, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> bytes:
        raise UserError("no room")

    backend = get_backend("null")
    monkeypatch.setitem(backend.stages, "null", type(backend.stages["null"])(fails, bytes, compiles=True))  # type: ignore[arg-type]
    before = set(tmp_path.iterdir())
    with pytest.raises(UserError, match="no room"):
        run(source, tmp_path / "m.llmos", stop_after="null")
    assert set(tmp_path.iterdir()) == before


def test_what_is_not_before_the_stage_of_the_source_can_not_be_saved(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "m.llmos", stop_after="text")
    with pytest.raises(UserError, match="comes before"):
        run(tmp_path / "m.null.text", tmp_path / "m.llmos", stop_after="fused.mlir")
