"""Models that change their buffers: the artifact keeps them from call to call, one state for each loaded program."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import llmos
from llmos.compiler.backends.options import CompileOptions
from llmos.runtime.artifact.accuracy import accuracy_report_of
from llmos.runtime.cli.verify import findings_of
from llmos.runtime.engine.model import ProgramModel
from llmos.runtime.errors import InputError
from llmos.runtime.program import Program

OPTIONS = CompileOptions(target="native", cache=False, repro=None)
BATCH = torch.export.Dim("batch", min=2, max=64)


class Counter(nn.Module):
    """Adds each batch's sum to a total, and counts calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.full((4,), 2.0))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total += x.sum(0)
        self.calls.add_(1)
        return x + self.total * self.calls


class Cache(nn.Module):
    """Writes a row at a position and attends to all rows so far."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(8, 4))

    def forward(self, row: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        self.keys.index_copy_(0, position, row)
        scores = (row @ self.keys.T).masked_fill(torch.arange(8) > position, -1e9)
        return scores.softmax(-1) @ self.keys


@pytest.fixture(scope="module")
def counter_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("states") / "counter.llmos"
    llmos.compile(Counter(), (torch.randn(3, 4),), dynamic_shapes=({0: BATCH},), options=OPTIONS).save(path)
    return path


@pytest.fixture
def counter(counter_file: Path) -> Program:
    return llmos.load(counter_file, poison_arena=True)


def batches(*sizes: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 4, generator=generator) for size in sizes]


def test_each_call_sees_what_the_call_before_left(counter: Program) -> None:
    eager = Counter()
    for x in batches(5, 2, 9, 3):
        np.testing.assert_allclose(counter(x), eager(x).numpy(), rtol=1e-5, atol=1e-5)
    assert [spec.name for spec in counter["main"].inputs] == ["x"]
    assert [spec.name for spec in counter["main"].outputs] == ["output"]


def test_compiling_leaves_the_module_as_it_was() -> None:
    module = Counter()
    llmos.compile(module, (torch.randn(3, 4),), dynamic_shapes=({0: BATCH},), options=OPTIONS)
    assert (module.calls.item(), module.total.tolist()) == (0, [2.0] * 4)


def test_the_report_holds_the_states(counter: Program) -> None:
    accuracy_report = accuracy_report_of(counter.artifact)
    assert accuracy_report is not None
    assert {len(case.inputs) for case in accuracy_report.cases} == {3}
    findings = list(findings_of(counter, accuracy_report.cases))
    assert {finding.output for finding in findings} == {"output", "state.total", "state.calls"}
    assert all(finding.deviation.within(accuracy_report.allowed(finding)) for finding in findings)


def test_reset_starts_anew(counter: Program) -> None:
    (x,) = batches(3)
    first = counter(x)
    assert not np.array_equal(counter(x), first)
    counter.reset_state()
    np.testing.assert_array_equal(counter(x), first)


def test_a_call_allocates_no_state(counter: Program) -> None:
    """Two arrays change places."""
    (x,) = batches(3)
    state = counter["main"].state
    assert state is not None
    seen = set()
    for _ in range(6):
        seen.update(array.ctypes.data for array in state.arrays)
        counter(x)
    assert len(seen) == 2 * len(state.arrays)


def test_programs_of_one_artifact_share_no_state(counter: Program, counter_file: Path) -> None:
    (x,) = batches(3)
    other = llmos.load(counter_file)
    first = counter(x)
    counter(x)
    np.testing.assert_array_equal(other(x), first)


def test_a_call_that_fails_leaves_the_state(counter: Program) -> None:
    (x,) = batches(3)
    with pytest.raises(InputError):
        counter(np.zeros((3, 5), np.float32))
    np.testing.assert_allclose(counter(x), Counter()(x).numpy(), rtol=1e-5, atol=1e-5)


def test_calls_from_many_threads_run_one_after_the_other(counter: Program) -> None:
    x = np.ones((2, 4), np.float32)
    threads = [threading.Thread(target=lambda: [counter(x) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total, calls = 2 + 2 * 201, 201
    np.testing.assert_array_equal(counter(x), np.full((2, 4), 1 + total * calls, np.float32))


def test_a_call_with_given_states_keeps_nothing(counter: Program) -> None:
    x = np.ones((2, 4), np.float32)
    y, total, calls = counter["main"].with_states(x, np.zeros(4, np.float32), np.array(7))
    assert (calls, total.tolist(), y[0, 0]) == (8, [2.0] * 4, 1 + 2 * 8)
    np.testing.assert_array_equal(counter(x), np.full((2, 4), 1 + 4.0, np.float32))


def test_batch_norm_in_training_mode(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, path = nn.BatchNorm2d(4).train(), tmp_path / "norm.llmos"
    llmos.compile(module, (torch.randn(3, 4, 5, 5),), dynamic_shapes=({0: BATCH},), options=OPTIONS).save(path)
    program, eager = llmos.load(path), nn.BatchNorm2d(4).train()
    for size in (2, 7):
        x = torch.randn(size, 4, 5, 5) * 3 + 1
        np.testing.assert_allclose(program(x), eager(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    mean, variance, tracked = (
        program["main"].state.arrays[i] for i in _order(program, "running_mean", "running_var", "num_batches_tracked")
    )
    np.testing.assert_allclose(mean, eager.running_mean.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(variance, eager.running_var.numpy(), rtol=1e-5, atol=1e-6)
    assert tracked == 2


def _order(program: Program, *names: str) -> list[int]:
    return [program["main"].spec.states.index(name) for name in names]


def test_a_cache_that_is_written_in_place(tmp_path: Path) -> None:
    path, rows = tmp_path / "cache.llmos", batches(6)[0]
    llmos.compile(Cache(), (rows[:1], torch.tensor([0])), options=OPTIONS).save(path)
    program, eager = llmos.load(path), Cache()
    for position in range(6):
        at = torch.tensor([position])
        np.testing.assert_allclose(program(rows[position : position + 1], at), eager(rows[position : position + 1], at).numpy(), atol=1e-5)


def test_the_engine_refuses_a_model_with_state(counter: Program) -> None:
    with pytest.raises(InputError, match="keeps state"):
        ProgramModel(counter)
