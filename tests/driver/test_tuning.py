"""A measured search and its lock file: the same bytes again, no bit of a result changed, what doesn't fit left out."""

from __future__ import annotations

import io
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import llmos
from llmos.compiler.backends.cpu.target import CpuTarget, resolve
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.backends.planning import run_passes
from llmos.compiler.backends.registry import backend_of
from llmos.compiler.driver import ModelWarning, compile_to_file
from llmos.compiler.driver.sources import import_source
from llmos.compiler.support.progress import LineProgress
from llmos.compiler.tuning.lock import Lock, Locked, LockMismatch, lock_path
from llmos.passes.tile_dispatches import tiling_keys
from llmos.runtime.errors import UserError

BUDGET_S = 6.0
OPTIONS = CompileOptions(target="native", accuracy_report=False, repro=None)


class Layers(torch.nn.Module):
    """Two products of different sizes, for any batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(192, 288), torch.nn.Linear(288, 96)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMOS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "layers.pt2"
    shapes = ({0: torch.export.Dim("batch", max=512)},)
    torch.export.save(torch.export.export(Layers().eval(), (torch.randn(4, 192),), dynamic_shapes=shapes), path)
    return path


def compiled(model: Path, out: Path, options: CompileOptions = OPTIONS) -> tuple[bytes, str, list[str]]:
    """The artifact's bytes, what the progress showed, what was warned of."""
    log = io.StringIO()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ModelWarning)
        compile_to_file(model, out, options, LineProgress(log))
    return out.read_bytes(), log.getvalue(), [str(each.message) for each in caught if issubclass(each.category, ModelWarning)]


@pytest.fixture(scope="module")
def plain(model: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return compiled(model, tmp_path_factory.mktemp("plain") / "m.llmos")[0]


def a_lock(model: Path, tmp_path: Path, **choices: int) -> Lock:
    """One that gives every dispatch of the model some choices."""
    keys = tiling_keys(run_passes(import_source(model, None, None, OPTIONS), OPTIONS, backend_of(OPTIONS)).module)
    target = resolve(OPTIONS.target)[0].code_target(()).name
    return Lock(target, "some machine", {"batch": 1}, {key: Locked("matmul", choices, 2.0, 1.0) for key in keys})


def test_a_search_keeps_its_time_and_a_later_compile_gives_the_same_bytes(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.llmos"
    start = time.process_time()
    bytes_of_search, shown, _ = compiled(model, out, CompileOptions(**{**vars(OPTIONS), "tune": BUDGET_S}))
    assert "tune" in shown
    assert time.process_time() - start < 4 * BUDGET_S
    lock = Lock.parse(lock_path(out).read_text())
    assert len(lock.dispatches) == 2
    assert all(each.default_us > 0 and each.best_us > 0 for each in lock.dispatches.values())
    out.unlink()
    again, shown, said = compiled(model, out)
    assert "tune" not in shown
    assert said == []
    assert again == bytes_of_search


def test_choices_of_a_lock_change_the_code_and_no_bit_of_a_result(model: Path, plain: bytes, tmp_path: Path) -> None:
    (tmp_path / "plain.llmos").write_bytes(plain)
    out = tmp_path / "m.llmos"
    lock_path(out).write_text(a_lock(model, tmp_path, columns=16, rows=24, lines=1).to_json())
    tuned, _, said = compiled(model, out)
    assert said == []
    first, second = llmos.load(tmp_path / "plain.llmos"), llmos.load(out)
    assert [w.shape for w in first.manifest.weights] != [w.shape for w in second.manifest.weights]
    assert tuned != plain
    for rows in (1, 7, 130):
        x = np.random.default_rng(rows).standard_normal((rows, 192), np.float32)
        np.testing.assert_array_equal(first(x), second(x))


def test_the_python_interface_takes_a_lock(model: Path, plain: bytes, tmp_path: Path) -> None:
    path = tmp_path / "kept.lock"
    path.write_text(a_lock(model, tmp_path, rows=24).to_json())
    llmos.compile(str(model), target="native", name="layers", lock=path).save(tmp_path / "m.llmos")
    assert not lock_path(tmp_path / "m.llmos").exists()
    (tmp_path / "plain.llmos").write_bytes(plain)
    member = f"code/{resolve(OPTIONS.target)[0].code_target(()).name}.so"
    with_lock, without = (bytes(llmos.load(tmp_path / name).artifact.member(member)) for name in ("m.llmos", "plain.llmos"))
    assert with_lock != without


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "has format 2"),
        ({"target": "aarch64"}, "is for aarch64, which is not among the targets"),
        ({"target": "x86-64-v9"}, "is for x86-64-v9, which is not among the targets"),
        ({"dispatches": {"0123456789abcdef": {"label": "", "choices": {"deep": 1}, "default_us": 1, "best_us": 1}}}, "has no 'deep'"),
        (
            {"dispatches": {"0123456789abcdef": {"label": "", "choices": {"rows": 8}, "default_us": 1, "best_us": 1}}},
            "1 of its 1 dispatches",
        ),
    ],
)
def test_what_does_not_fit_is_said_in_one_line_and_left_out(
    change: dict[str, object], says: str, model: Path, plain: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "m.llmos"
    lock_path(out).write_text(json.dumps({**json.loads(a_lock(model, tmp_path, rows=24).to_json()), **change}))
    found, _, said = compiled(model, out)
    assert len(said) == 1
    assert says in said[0]
    assert "\n" not in said[0]
    if "dispatches" not in change:
        assert found == plain


def test_a_file_that_is_no_lock_is_left_out(model: Path, plain: bytes, tmp_path: Path) -> None:
    out = tmp_path / "m.llmos"
    lock_path(out).write_bytes(b"\xff\xfe nothing")
    found, _, said = compiled(model, out)
    assert found == plain
    assert "is no text" in said[0]


def test_a_lock_is_read_as_it_was_written() -> None:
    lock = Lock("x86-64-v4", "a machine", {"batch": 1}, {"beef": Locked("matmul", {"rows": 32}, 2.5, 2.0)})
    assert Lock.parse(lock.to_json()) == lock
    with pytest.raises(LockMismatch):
        Lock.parse("[]")


def test_code_that_this_machine_does_not_run_is_not_tuned(model: Path, tmp_path: Path) -> None:
    other = "aarch64" if resolve(OPTIONS.target)[0].arch == "x86_64" else "x86-64-v3"
    assert CpuTarget.parse(other)
    with pytest.raises(UserError, match="--tune measures code on this machine"):
        compiled(model, tmp_path / "m.llmos", CompileOptions(target=other, accuracy_report=False, tune=1.0))


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_budget_is_a_time(seconds: float) -> None:
    with pytest.raises(UserError, match="--tune"):
        CompileOptions(tune=seconds)
