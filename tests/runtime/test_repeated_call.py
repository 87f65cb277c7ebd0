"""Repeated calls: they give what calls of the entry give, whatever changes between them, and look at nothing twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmos.runtime.errors import ExecutionError, InputError
from llmos.runtime.program import Program, load
from llmos.runtime.repeated_call import RepeatedCall


@pytest.fixture
def program(artifact_path: Path) -> Program:
    return load(artifact_path)


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)


def test_it_gives_what_the_entry_gives(program: Program) -> None:
    call = RepeatedCall(program["pair"])
    arrays = [(rows(count, seed)[:, :3].copy(), np.arange(7)) for seed, count in enumerate((2, 5, 1, 5))]
    for given in (*arrays, *arrays):
        for mine, theirs in zip(call(given), program["pair"](*given), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_arrays_may_change_in_place(program: Program) -> None:
    call, x = RepeatedCall(program["main"]), rows(3)
    for seed in range(3):
        x[:] = rows(3, seed)
        np.testing.assert_array_equal(call([x])[0], program(x))


def test_outputs_of_one_shape_are_the_same_object(program: Program) -> None:
    call = RepeatedCall(program["main"])
    first, other, again = (call([rows(count, seed)])[0] for seed, count in enumerate((3, 2, 3)))
    assert first.shape == again.shape == (3, 4)
    assert other.shape == (2, 4)
    assert call([rows(3, 7)])[0] is again
    assert np.shares_memory(first, again)


def test_nothing_is_exported_or_sized_twice(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = program["main"]
    calls: list[str] = []
    shapes, x, other = entry.module.shapes, rows(3), rows(3, 1)
    monkeypatch.setattr(entry.module, "shapes", lambda *arguments: (calls.append("shapes"), shapes(*arguments))[1])
    call = RepeatedCall(entry)
    export = call._export
    monkeypatch.setattr(call, "_export", lambda *arguments: (calls.append("export"), export(*arguments))[1])
    for array in (x, x, other, other, x):
        call([array])
    assert calls == ["export", "shapes", "export", "shapes", "shapes"]


def test_updated_inputs_are_written(program: Program) -> None:
    call, table, at, row = RepeatedCall(program["write"]), np.zeros((5, 4), np.float32), np.array([2, 0]), rows(1)[0]
    want = np.zeros((5, 4), np.float32)
    for first in range(3):
        at[:] = first, 4
        assert call([table, at, row]) == ()
        want[[first, 4]] = row
        np.testing.assert_array_equal(table, want)


def test_a_call_that_is_refused_is_refused_again(program: Program) -> None:
    call, good, bad = RepeatedCall(program["main"]), rows(3), np.zeros((3, 5), np.float32)
    call([good])
    for array in (bad, bad, np.zeros((3, 4)), rows(6)[::2]):
        with pytest.raises(InputError, match='input "x"'):
            call([array])
    np.testing.assert_array_equal(call([good])[0], program(good))


def test_a_failed_run_leaves_it_usable(program: Program) -> None:
    call, good, bad = RepeatedCall(program["lookup"]), np.array([0, 1]), np.array([0, 99])
    with pytest.raises(InputError):
        call([bad])
    np.testing.assert_array_equal(call([good])[0], program["lookup"](good))


def test_more_arrays_than_are_kept(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmos.runtime.repeated_call._MAX_EXPORTED", 3)
    call, b = RepeatedCall(program["add"]), np.ones(2, np.float32)
    for number in range(20):
        a = np.full(2, number, np.float32)
        np.testing.assert_array_equal(call([a, b])[0], a + b)
    assert len(call._exported) <= 3


def test_a_closed_program(program: Program) -> None:
    call, x = RepeatedCall(program["main"]), rows(2)
    call([x])
    program.close()
    with pytest.raises(ExecutionError, match="closed"):
        call([x])
