""".pt2 files that are damaged, of another version, or something else: one line, and no code of theirs is run."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.frontend.refusals import assert_refused


class Layer(torch.nn.Module):
    """float32 [3, 4] to [3, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.inner(x))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "m.pt2"
    torch.export.save(torch.export.export(Layer().eval(), (torch.randn(3, 4),)), path)
    return path


def edited(good: Path, path: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """`good` with each member as `change` gives it, or without it."""
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            data = change(name.split("/", 1)[1], source.read(name))
            if data is not None:
                target.writestr(name, data)
    return path


def replaced(member: str, data: bytes | None) -> Callable[[str, bytes], bytes | None]:
    return lambda name, old: data if name == member else old


def in_model(change: Callable[[dict[str, Any]], None]) -> Callable[[str, bytes], bytes | None]:
    def edit(name: str, data: bytes) -> bytes:
        if name != "models/model.json":
            return data
        fields = json.loads(data)
        change(fields)
        return json.dumps(fields).encode()

    return edit


def later(fields: dict[str, Any]) -> None:
    fields["schema_version"] = {"major": 999, "minor": 0}


def other_sizes(fields: dict[str, Any]) -> None:
    for name, value in fields["graph_module"]["graph"]["tensor_values"].items():
        if name.startswith("p_"):
            value["sizes"] = [{"as_int": 7} for _ in value["sizes"]]


EDITS = {
    "a-weight-lost": (replaced("data/weights/weight_0", None), "weight_0"),
    "a-weight-cut-short": (replaced("data/weights/weight_0", b"12345678"), "out of bounds"),
    "no-graph": (replaced("models/model.json", None), "not a readable .pt2"),
    "no-json": (replaced("models/model.json", b"{"), "not a readable .pt2"),
    "archive-version": (replaced("archive_version", b"999"), "version 999"),
    "schema-version": (in_model(later), "major=999"),
    "weights-of-other-sizes": (in_model(other_sizes), "where the graph takes torch.float32 [7"),
    "an-unknown-op": (lambda name, data: data.replace(b"aten.relu.default", b"mine.relu.default"), "the op mine.relu"),
}


@pytest.mark.parametrize("case", EDITS)
def test_damaged_files(case: str, good: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    change, message = EDITS[case]
    (tmp_path / "out").mkdir()
    assert_refused(edited(good, tmp_path / "bad.pt2", change), message, tmp_path / "out", capfd)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9, 0.99])
def test_files_cut_short(part: float, good: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = good.read_bytes()
    (tmp_path / "bad.pt2").write_bytes(data[: int(len(data) * part)])
    (tmp_path / "out").mkdir()
    assert_refused(tmp_path / "bad.pt2", "cut short", tmp_path / "out", capfd)


def test_files_of_torch_save(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.save(Layer().state_dict(), tmp_path / "weights.pt2")
    (tmp_path / "out").mkdir()
    assert_refused(tmp_path / "weights.pt2", "write it with torch.export.save", tmp_path / "out", capfd)


class Writer:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_inside_is_not_run(good: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    check = tmp_path / "it-ran"
    torch.save((Writer(check),), tmp_path / "inputs.pt")
    with zipfile.ZipFile(tmp_path / "inputs.pt") as archive:
        assert pickle.loads(archive.read("inputs/data.pkl")) == (None,)
    assert check.exists()
    check.unlink()
    bad = edited(good, tmp_path / "bad.pt2", replaced("data/sample_inputs/model.pt", (tmp_path / "inputs.pt").read_bytes()))
    (tmp_path / "out").mkdir()
    assert_refused(bad, "run any code", tmp_path / "out", capfd)
    assert not check.exists()
