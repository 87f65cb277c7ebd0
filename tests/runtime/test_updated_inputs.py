"""Inputs that a call writes where they lie: numpy and DLPack arrays of the caller, what is refused, and what a failed call leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmos.runtime.artifact.manifest import Manifest
from llmos.runtime.dlpack import Exported
from llmos.runtime.errors import ArtifactError, InputError
from llmos.runtime.program import Entry, load

from .handwritten import entry

ROW = np.array([1, 2, 3, 4], np.float32)
AT = np.array([2, 0])


@pytest.fixture(scope="module")
def write(artifact_path: Path) -> Entry:
    return load(artifact_path)["write"]


def expected(table: np.ndarray, at: np.ndarray = AT) -> np.ndarray:
    made = table.copy()
    made[at] = ROW
    return made


@pytest.mark.parametrize("num_rows", [3, 1000])
def test_an_array_is_written_where_it_lies(write: Entry, num_rows: int) -> None:
    table = np.random.default_rng(0).standard_normal((num_rows, 4)).astype(np.float32)
    want, address = expected(table), table.ctypes.data
    assert write(table, AT, ROW) == ()
    np.testing.assert_array_equal(table, want)
    assert table.ctypes.data == address


def test_a_part_of_an_array_and_nothing_beside_it(write: Entry) -> None:
    whole = np.zeros((9, 4), np.float32)
    write(whole[3:6], AT, ROW)
    np.testing.assert_array_equal(whole, np.concatenate([np.zeros((3, 4)), expected(np.zeros((3, 4))), np.zeros((3, 4))]))


def test_an_array_that_is_exported_once_serves_many_calls(write: Entry) -> None:
    table, at, row = np.zeros((5, 4), np.float32), AT.copy(), ROW.copy()
    exported = [Exported("any", array) for array in (table, at, row)]
    want = np.zeros((5, 4), np.float32)
    for first in range(3):
        at[:], row[:] = (first, 4), ROW + first
        write(*exported)
        want[[first, 4]] = ROW + first
        np.testing.assert_array_equal(table, want)


def test_only_what_can_be_written_is_exported() -> None:
    with pytest.raises(InputError, match='input "any": the call writes into it, so it must be contiguous'):
        Exported("any", np.zeros((4, 4))[:, ::2])
    with pytest.raises(InputError, match='input "any": the call writes into it, so it must be writable'):
        Exported("any", read_only())


def test_a_torch_tensor_is_written_where_it_lies(write: Entry) -> None:
    torch = pytest.importorskip("torch")
    table = torch.zeros(3, 4)
    write(table, torch.from_numpy(AT), torch.from_numpy(ROW))
    np.testing.assert_array_equal(table.numpy(), expected(np.zeros((3, 4))))


def test_by_name_and_with_other_inputs_copied(write: Entry) -> None:
    """Of the others a copy is made where they are not contiguous; never of the table."""
    table = np.zeros((3, 4), np.float32)
    write(row=np.repeat(ROW, 2)[::2], table=table, index=np.array([2, 9, 0, 9])[::2])
    np.testing.assert_array_equal(table, expected(np.zeros((3, 4))))


def test_a_call_that_keeps_nothing_gives_the_new_value(write: Entry) -> None:
    table = np.zeros((3, 4), np.float32)
    table.flags.writeable = False
    (made,) = write.with_states(table, AT, ROW)
    np.testing.assert_array_equal(made, expected(table))
    np.testing.assert_array_equal(table, np.zeros((3, 4)))


def read_only() -> np.ndarray:
    table = np.zeros((3, 4), np.float32)
    table.flags.writeable = False
    return table


class ReadOnly:
    """Gives read-only memory, as DLPack 1 says it."""

    def __init__(self) -> None:
        self.array = read_only()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (read_only, "must be writable"),
        (ReadOnly, "must be writable"),
        (lambda: np.zeros((3, 4), ">f4"), "this machine's byte order"),
        (lambda: np.zeros((4, 3), np.float32).T, r"must be contiguous \(row-major\)"),
        (lambda: np.zeros((6, 4), np.float32)[::2], r"must be contiguous \(row-major\)"),
        (lambda: np.frombuffer(bytearray(49), np.uint8)[1:].view(np.float32).reshape(3, 4), "must be aligned to its element"),
        (lambda: np.zeros((3, 4)), "expected dtype float32, got float64"),
        (lambda: np.zeros((3, 5), np.float32), "dim 1 must be 4, got 5"),
        (lambda: [[0.0] * 4] * 3, "expected a numpy array or something with __dlpack__, got list"),
    ],
)
def test_what_can_not_be_written_is_refused(write: Entry, table: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=f'input "table": .*{message}') as caught:
        write(table(), AT, ROW)
    assert "\n" not in str(caught.value)


def test_views_that_are_no_memory_are_refused(write: Entry) -> None:
    torch = pytest.importorskip("torch")
    negative = torch.zeros(3, 4, dtype=torch.complex64).conj().imag
    assert negative.is_neg()
    with pytest.raises(InputError, match="no conjugate or negative view"):
        write(negative, AT, ROW)
    with pytest.raises(InputError, match="can't be passed"):
        write(torch.zeros(3, 4, requires_grad=True), AT, ROW)


def test_memory_that_another_input_has_is_refused(write: Entry) -> None:
    table = np.zeros((3, 4), np.float32)
    with pytest.raises(InputError, match='input "table": the call writes into it, so it can\'t share memory with input "row"'):
        write(table, AT, table[1])
    np.testing.assert_array_equal(table, np.zeros((3, 4)))


def test_a_call_that_fails_in_its_run_may_have_written_a_part(write: Entry) -> None:
    table = np.zeros((3, 4), np.float32)
    with pytest.raises(InputError, match="an index in the data is out of range"):
        write(table, np.array([1, 7]), ROW)
    np.testing.assert_array_equal(table, expected(np.zeros((3, 4)), np.array([1])))


def test_only_inputs_of_callers_are_marked() -> None:
    spec = entry("main", {"x": ("float32", (4,))}, {"y": ("float32", (4,))}, "x")
    manifest = Manifest("m", (spec,))
    assert manifest.format == 3 and Manifest.parse(manifest.to_json()) == manifest
    marked = manifest.to_json()
    broken = marked.replace(b'{"name":"y","dtype":"float32","shape":[4]}', b'{"name":"y","dtype":"float32","shape":[4],"updated":true}')
    assert broken != marked
    with pytest.raises(ArtifactError, match="only inputs that a caller gives can be marked as updated"):
        Manifest.parse(broken)
    with pytest.raises(ArtifactError, match="updated: expected true or false"):
        Manifest.parse(marked.replace(b'"updated":true', b'"updated":1'))
