"""The null device in the place of a CPU: the same programs and engines, nothing run, everything counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llmos.runtime.artifact.manifest import ComputedSymbol, EntrySpec, Symbol, TensorSpec
from llmos.runtime.artifact.sizes import evaluate
from llmos.runtime.artifact.writer import ArtifactContents, write_artifact
from llmos.runtime.device.base import Device
from llmos.runtime.device.cpu import CpuDevice
from llmos.runtime.device.null import NullDevice
from llmos.runtime.engine import Engine, ProgramModel
from llmos.runtime.errors import ArtifactError, ExecutionError, InputError
from llmos.runtime.program import load


@pytest.fixture
def device() -> NullDevice:
    return NullDevice()


def test_outputs_have_the_sizes_that_code_would_give(artifact_path: Path, device: NullDevice) -> None:
    null, cpu = load(artifact_path, device=device), load(artifact_path)
    for batch, tokens in ((1, 2), (7, 5), (1000, 64)):
        inputs = (np.ones((batch, tokens), np.float32), np.ones(2 * tokens + 1, np.int64))
        made, expected = null["pair"](*inputs), cpu["pair"](*inputs)
        assert [(each.shape, each.dtype) for each in made] == [(each.shape, each.dtype) for each in expected]
        assert not any(each.any() for each in made)
    assert device.runs == {"pair": 3}
    null.check_integrity()


def test_sizes_that_do_not_fit_are_refused(artifact_path: Path, device: NullDevice) -> None:
    program = load(artifact_path, device=device)
    for entry, inputs in (
        ("main", [np.zeros((1001, 4), np.float32)]),
        ("main", [np.zeros((2, 5), np.float32)]),
        ("main", [np.zeros(4, np.float32)]),
        ("pair", [np.zeros((2, 5), np.float32), np.zeros(10, np.int64)]),
        ("add", [np.zeros(2, np.float32), np.zeros(3, np.float32)]),
    ):
        with pytest.raises(InputError, match="dim"):
            program[entry](*inputs)
    assert not device.runs and not device.launches


def test_launches_are_counted_by_kernel(contents: ArtifactContents, tmp_path: Path, device: NullDevice) -> None:
    """One entry has all kernels; of several each has those that begin with its name."""
    names = ("main.a", "pair.b", "main.c")
    kernels = tuple(replace(contents.kernels[0], name=name) for name in names)
    write_artifact(tmp_path / "x.llmos", replace(contents, kernels=kernels))
    program = load(tmp_path / "x.llmos", device=device)
    program(np.zeros((2, 4), np.float32))
    program(np.zeros((3, 4), np.float32))
    assert device.launches == {"main.a": 2, "main.c": 2}


def test_an_engine_runs_on_it(artifact_path: Path, device: NullDevice) -> None:
    engine = Engine(ProgramModel(load(artifact_path, device=device)))
    submitted = [engine.submit([{"x": np.ones((rows, 4), np.float32)}]) for rows in (1, 2, 3)]
    assert [request.result(60)[0][0].shape for request in submitted] == [(1, 4), (2, 4), (3, 4)]
    engine.close()
    engine.check_integrity()
    assert device.runs == {"main": 3}


def test_any_code_is_taken_and_variants_have_names(small_path: Path, device: NullDevice) -> None:
    """Also code that is none."""
    program = load(small_path, device=device)
    assert program.target == "baseline" and [verdict.chosen for verdict in device.judge(program.artifact)] == [True]
    with pytest.raises(ArtifactError, match="there is no variant 'other'"):
        load(small_path, device=device, target="other")


@pytest.mark.parametrize("made", [CpuDevice(), NullDevice()])
def test_buffers_and_copies(made: Device) -> None:
    small, large = made.allocate(100), made.allocate(4096)
    assert (small.num_bytes, small.address % 64, large.address % 64) == (100, 0, 0)
    made.copy(large, small)
    made.synchronize()
    with pytest.raises(InputError, match="4096 bytes can't be copied into 100"):
        made.copy(small, large)
    with pytest.raises(ExecutionError, match="can't be allocated"):
        made.allocate(1 << 62)


def test_the_null_device_counts(device: NullDevice) -> None:
    buffers = [device.allocate(size) for size in (64, 0, 1000)]
    device.copy(buffers[2], buffers[0])
    device.synchronize()
    assert (device.num_allocations, device.allocated_bytes, device.num_copies, device.num_synchronizations) == (3, 1064, 1, 1)


def test_sizes_that_data_decides_are_at_their_bounds(contents: ArtifactContents, tmp_path: Path, device: NullDevice) -> None:
    entry = EntrySpec(
        "main",
        "__tvm_ffi_main",
        "__llmos_shapes_main",
        (TensorSpec("x", "float32", ("n",)),),
        (TensorSpec("y", "float32", ("u0", "n - 1")),),
    )
    computed = ComputedSymbol("u0", 0, 9, "3*n")
    write_artifact(tmp_path / "x.llmos", replace(contents, entries=(entry,), symbols=(Symbol("n", 1, 8),), computed=(computed,)))
    assert load(tmp_path / "x.llmos", device=device)(np.zeros(4, np.float32)).shape == (12, 3)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("n", 7),
        ("2*n + 1", 15),
        ("-n // 2", -4),
        ("n % 4", 3),
        ("-n % 4", 1),
        ("min(n, m, 3)", 3),
        ("max(n - m, 0)", 0),
        ("floor_mul(n, 3, 2)", 10),
        ("floor_mul_f32(16777217, 1, 1)", 16777216),
    ],
)
def test_expressions_of_sizes(text: str, size: int) -> None:
    assert evaluate(text, {"n": 7, "m": 11}) == size


@pytest.mark.parametrize("text", ["k", "n // 0", "n +", "n.real", "__import__('os')", "n ** 2", "1.5"])
def test_what_is_no_expression_of_sizes(text: str) -> None:
    with pytest.raises(InputError, match="has no value"):
        evaluate(text, {"n": 7})
