"""Calling a program: values, names, errors that name the input, threads, time."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import llmos
from llmos.runtime.artifact.writer import ArtifactContents
from llmos.runtime.errors import ArtifactError, ExecutionError, InputError
from llmos.runtime.program import Program, load

from .handwritten import SCALE, SHIFT


@pytest.fixture(scope="module")
def program(artifact_path: Path) -> Program:
    return load(artifact_path)


def rows(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, 4)).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 2, 7, 64, 1000])
def test_values_at_every_batch(program: Program, batch: int) -> None:
    np.testing.assert_array_equal(program(rows(batch)), rows(batch) * SCALE + SHIFT)


def test_by_name_and_by_entry(program: Program) -> None:
    expected = rows(3) * SCALE + SHIFT
    np.testing.assert_array_equal(program(x=rows(3)), expected)
    np.testing.assert_array_equal(program["main"](rows(3)), expected)
    np.testing.assert_array_equal(llmos.load(program.artifact.path)(rows(3)), expected)


def test_several_outputs_arena_scratch_and_expressions(program: Program) -> None:
    a = np.arange(15, dtype=np.float32).reshape(3, 5)
    total, last = program["pair"](b=np.arange(11), a=a)
    np.testing.assert_array_equal(total, a.sum(1))
    assert (last.shape, last.dtype, int(last)) == ((), np.int64, 10)


def test_arena_grows_and_shrinks_with_the_sizes(program: Program) -> None:
    for batch, tokens in [(2, 2), (1000, 64), (1, 3), (500, 64), (1000, 64)]:
        a = np.ones((batch, tokens), np.float32)
        total, _ = program["pair"](a, np.zeros(2 * tokens + 1, np.int64))
        np.testing.assert_array_equal(total, np.full(batch, tokens, np.float32))
    program.check_integrity()


def test_other_layouts_and_read_only_arrays(program: Program) -> None:
    x = rows(6)
    expected = x * SCALE + SHIFT
    np.testing.assert_array_equal(program(np.asfortranarray(x)), expected)
    np.testing.assert_array_equal(program(np.repeat(x, 2, axis=0)[::2]), expected)
    frozen = x.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(program(frozen), expected)
    misaligned = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(6, 4)
    np.testing.assert_array_equal(program(misaligned), expected)
    np.testing.assert_array_equal(program(x.astype(">f4")), expected)


def test_bfloat16_as_uint16_and_as_ml_dtypes(program: Program) -> None:
    bits = np.array([0x3F80, 0x4000, 0x7FC0], np.uint16)
    np.testing.assert_array_equal(program["echo"](bits), bits)
    ml_dtypes = pytest.importorskip("ml_dtypes")
    np.testing.assert_array_equal(program["echo"](bits.view(ml_dtypes.bfloat16)), bits)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p(rows(2).astype(np.float64)), 'input "x": expected dtype float32, got float64'),
        (lambda p: p(rows(2)[0]), r'input "x": expected 2 dims \[batch, 4\], got 1 \[4\]'),
        (lambda p: p(np.zeros((2, 5), np.float32)), r'input "x": dim 1 must be 4, got 5 \(shape \[2, 5\]\)'),
        (lambda p: p(np.zeros((1001, 4), np.float32)), r'input "x": dim 0 \(batch\) is 1001, outside its range of 1 to 1000'),
        (lambda p: p(np.zeros((0, 4), np.float32)), r'input "x": dim 0 \(batch\) is 0, outside its range of 1 to 1000'),
        (
            lambda p: p["add"](np.zeros(2, np.float32), np.zeros(3, np.float32)),
            r'input "b": dim 0 \(batch\) is 3, but input "a" has batch = 2',
        ),
        (lambda p: p["pair"](np.zeros((2, 5), np.float32), np.zeros(10, np.int64)), r'input "b": dim 0 must be 11, got 10'),
        (lambda p: p(), 'input "x": missing; entry "main" takes: x'),
        (lambda p: p(rows(1), rows(1)), r'entry "main": expected 1 inputs \(x\), got 2'),
        (lambda p: p(rows(1), x=rows(1)), 'input "x": given twice'),
        (lambda p: p(z=rows(1)), 'entry "main" has no input "z"; its inputs are: x'),
        (lambda p: p([[1.0, 2.0, 3.0, 4.0]]), 'input "x": expected a numpy array or something with __dlpack__, got list'),
        (lambda p: p(np.array(["a"])), 'input "x": .* data can\'t be passed'),
        (lambda p: p["nothing"], "there is no entry 'nothing'; there are: main, pair"),
    ],
)
def test_an_error_names_the_input(program: Program, call: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        call(program)  # type: ignore[operator]
    assert "\n" not in str(caught.value)


def test_an_index_out_of_range_names_the_dispatch(program: Program) -> None:
    index = np.zeros(100, np.int64)
    np.testing.assert_array_equal(program["lookup"](index), index)
    index[57] = 8
    with pytest.raises(InputError, match=r'entry "lookup": an index in the data is out of range \(code 1, in dispatch look_up\)'):
        program["lookup"](index)
    program.check_integrity()


def test_out_of_memory_is_an_error(program: Program) -> None:
    with pytest.raises(ExecutionError, match='entry "greedy": out of memory'):
        program["greedy"]()
    program.check_integrity()


def test_poison_fills_the_arena(artifact_path: Path) -> None:
    poisoned = load(artifact_path, poison_arena=True)
    assert np.isnan(np.asarray(poisoned["uninitialised"]())).all()


def test_check_integrity_finds_an_overrun(artifact_path: Path) -> None:
    program = load(artifact_path)
    program.check_integrity()
    program["overrun"]()
    with pytest.raises(ExecutionError, match="past the end of its arena"):
        program.check_integrity()


def test_eight_threads_at_once(program: Program) -> None:
    def work(seed: int) -> None:
        x = rows(1 + seed * 17)
        expected = x * SCALE + SHIFT
        for _ in range(200):
            np.testing.assert_array_equal(program(x), expected)
            total, _ = program["pair"](x, np.zeros(9, np.int64))
            np.testing.assert_array_equal(total, np.add.accumulate(x, axis=1)[:, -1])

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    program.check_integrity()


def test_the_gil_is_released_and_close_lets_calls_end(artifact_path: Path) -> None:
    program = load(artifact_path)
    results: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: results.append(np.asarray(program["slow"](np.array([8000])))))
    thread.start()
    time.sleep(0.01)
    assert thread.is_alive()
    program.close()
    gc.collect()
    with pytest.raises(ExecutionError, match="closed"):
        program(rows(1))
    thread.join()
    np.testing.assert_array_equal(results[0], np.arange(64))


def test_profile_times_each_launch(program: Program) -> None:
    profile = program["pair"].profile(np.ones((3, 5), np.float32), np.zeros(11, np.int64))
    assert [(d.name, d.num_tiles) for d in profile.dispatches] == [("sum_rows", 3)]
    assert 0 <= profile.dispatches[0].start_s <= profile.total_s
    assert 0 < profile.dispatches[0].duration_s <= profile.total_s


def test_context_manager(artifact_path: Path) -> None:
    with load(artifact_path) as program:
        program(rows(1))
    with pytest.raises(ExecutionError, match="closed"):
        program(rows(1))


def test_no_denormal_mode_of_the_caller_reaches_the_results(artifact_path: Path) -> None:
    """torch.set_flush_denormal changes the calling thread only: results would depend on which thread ran a tile."""
    torch = pytest.importorskip("torch")
    program = load(artifact_path)
    x = np.full((1, 4), 1e-40, np.float32)
    shift_free = x * SCALE + SHIFT
    torch.set_flush_denormal(True)
    try:
        np.testing.assert_array_equal(program(x), shift_free)
        tiny = np.asarray(program["add"](x[0], np.zeros(4, np.float32)))
    finally:
        torch.set_flush_denormal(False)
    assert (tiny == x[0]).all() and tiny[0] != 0


def test_a_forked_child_runs(program: Program) -> None:
    expected = program(rows(64))
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(np.asarray(program(rows(64))), np.asarray(expected)) else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_process_that_runs_has_no_compiler_in_it(artifact_path: Path) -> None:
    script = (
        "import sys, llmos\n"
        "assert 'numpy' not in sys.modules and 'ctypes' not in sys.modules, 'import llmos must be light'\n"
        "import numpy as np\n"
        f"program = llmos.load({str(artifact_path)!r})\n"
        "program(np.zeros((1, 4), np.float32))\n"
        "heavy = {'torch', 'torch_mlir', 'llvmlite', 'onnx', 'transformers', 'click'} & set(sys.modules)\n"
        "ours = [name for name in sys.modules if name.startswith(('llmos.compiler', 'llmos.passes', 'llmos.models'))]\n"
        "assert not heavy and not ours, (heavy, ours)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_variant_is_asked_for_by_name(artifact_path: Path, contents: ArtifactContents) -> None:
    assert load(artifact_path, target="baseline").target == "baseline"
    with pytest.raises(ArtifactError, match="there is no variant 'x86-64-v9', only baseline"):
        load(artifact_path, target="x86-64-v9")


THREADS = """
import sys, time
from pathlib import Path
import numpy as np
import llmos
x = np.ones((1000, 4), np.float32)
programs = [llmos.load(path) for path in sys.argv[1:]]
for _ in range(20):
    for program in programs:
        program(x)
workers = [p for p in Path("/proc/self/task").iterdir() if (p / "comm").read_text().startswith("llmos-")]
def asleep():
    return all((p / "stat").read_text().rsplit(") ", 1)[1][0] == "S" for p in workers)
end = time.monotonic() + 60
while not asleep() and time.monotonic() < end:
    time.sleep(0.001)
print(len(workers), asleep())
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_two_programs_share_their_threads_which_sleep_when_idle(artifact_path: Path, tmp_path: Path) -> None:
    """A pool that went on spinning would never be seen asleep."""
    other = tmp_path / "other.llmos"
    other.write_bytes(artifact_path.read_bytes())
    command = [sys.executable, "-c", THREADS, str(artifact_path), str(other)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "LLMOS_NUM_THREADS": "3"})
    assert done.stdout.split() == ["2", "True"]


@pytest.mark.parametrize("strided", [False, True])
def test_torch_tensors_that_are_negated_when_read(program: Program, strided: bool) -> None:
    """The imaginary part of a conjugate is a view that torch negates lazily; DLPack would show what lies in memory."""
    torch = pytest.importorskip("torch")
    pairs = torch.arange(24, dtype=torch.float32).reshape(3, 4, 2)
    negated = torch.view_as_complex(pairs).conj().imag
    given = negated if strided else torch._neg_view(pairs[..., 1].contiguous())
    assert given.is_neg()
    np.testing.assert_array_equal(program(given), program(given.resolve_neg().contiguous().numpy()))
