"""Models in processes of their own: a crash takes one model only, and that for one call."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from llmos.runtime.engine import StateLostError
from llmos.runtime.engine.generate import GenerationEngine, GenerationOptions, Limits, SamplingParams
from llmos.runtime.engine.generate.null import NullStepModel
from llmos.runtime.errors import ExecutionError, LlmosError, UserError
from llmos.runtime.server.core.isolated import IsolatedModel, ModelProcess, load_isolated
from llmos.runtime.server.core.wire import receive, send

from ..cli_runtime.artifacts import affine_artifact, counts_artifact, crashing_artifact  # noqa: TID252
from .harness import Answer, Server, affine_body, running, wait_for
from .test_artifacts import COMMAND

CRASH, HANG = 666.0, 667.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("isolated")
    crashing_artifact(folder / "fragile.llmos")
    affine_artifact(folder / "affine.llmos")
    counts_artifact(folder / "counts.llmos")
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    paths = [str(folder / f"{name}.llmos") for name in ("fragile", "affine", "counts")]
    options = ["--resource-policy", "fragile=isolated", "--resource-policy", "counts=isolated", "--admin-port", "0"]
    with running([*COMMAND, *paths, *options]) as server:
        yield server


def fragile(server: Server, first: float) -> Answer:
    return server.request("POST", "/v2/models/fragile/infer", affine_body([first, 2, 3]))


def children(server: Server) -> list[int]:
    """The processes of models that a server has."""
    done = subprocess.run(["pgrep", "-P", str(server.process.pid), "-f", "model_worker"], capture_output=True, text=True, check=False)
    return sorted(map(int, done.stdout.split()))


def test_a_crash_takes_one_call(server: Server) -> None:
    assert fragile(server, 1).json()["outputs"][0]["data"] == [3, 5, 7]
    before = children(server)
    assert len(before) == 2
    answer = fragile(server, CRASH)
    assert (answer.status, "has ended (SIG" in answer.json()["error"]) == (500, True), answer
    assert server.affine([1, 2, 3]).status == 200
    assert fragile(server, 1).json()["outputs"][0]["data"] == [3, 5, 7]
    assert len(set(before) & set(children(server))) == 1, "the other model's process goes on"
    embedded = server.request("POST", "/v1/embeddings", {"model": "counts", "input": "the cat"}).json()
    assert len(embedded["data"][0]["embedding"]) == 40
    assert server.stop() == 0
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in before))


@pytest.mark.slow
def test_a_killed_process_is_replaced(server: Server) -> None:
    for pid in children(server):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not children(server))
    statuses = [fragile(server, 1).status for _ in range(2)]
    assert statuses[1] == 200
    assert statuses[0] in (200, 500), "the call may find the process gone when it has asked"


@pytest.mark.slow
def test_a_process_that_ends_again_and_again_starts_later(server: Server) -> None:
    errors = [fragile(server, CRASH).json()["error"] for _ in range(6)]
    assert "it starts again in" in errors[-1]
    assert server.affine([1, 2, 3]).status == 200


def test_others_in_a_batch_with_one_that_crashes_get_their_answers(server: Server) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: fragile(server, CRASH if number == 3 else number), range(8)))
    assert answers[3].status == 500
    assert [answer.status for number, answer in enumerate(answers) if number != 3] == [200] * 7


@pytest.mark.slow
def test_an_isolated_model_is_exchanged(server: Server, folder: Path) -> None:
    before = children(server)
    assert server.admin("/v2/repository/models/fragile/reload").status == 200
    assert fragile(server, 1).status == 200
    wait_for(lambda: len(children(server)) == 2)
    assert len(set(before) & set(children(server))) == 1
    assert server.admin("/v2/repository/models/fragile/unload").status == 200
    wait_for(lambda: len(children(server)) == 1)


def test_what_can_not_be_loaded_says_why(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.llmos"
    broken.write_bytes((folder / "affine.llmos").read_bytes()[:1000])
    for path in (broken, tmp_path / "missing.llmos", tmp_path):
        with pytest.raises(UserError, match=str(path)) as caught:
            load_isolated(path)
        assert "/proc" not in str(caught.value)


def test_closing_ends_a_process_that_hangs(folder: Path) -> None:
    model = load_isolated(folder / "fragile.llmos")
    assert isinstance(model, IsolatedModel)
    process, failures = model._process, []

    def call() -> None:
        try:
            model([np.array([[HANG, 0, 0]], np.float32)])
        except LlmosError as error:
            failures.append(error)

    waiting = threading.Thread(target=call)
    waiting.start()
    pid = process.pid
    stat = Path(f"/proc/{pid}/stat")
    used = int(stat.read_text().split()[13])
    wait_for(lambda: int(stat.read_text().split()[13]) > used + 5)  # it computes
    process.end()
    waiting.join(60)
    assert not waiting.is_alive()
    assert [type(error) for error in failures] == [StateLostError]
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(ExecutionError, match="closed"):
        process.ask({})


def test_arrays_on_the_wire() -> None:
    import socket

    arrays = [np.array(3, np.int64), np.zeros((0, 4), np.float32), np.arange(6, dtype=np.uint16).reshape(2, 3).T, np.array([True, False])]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send(ours, {"a": 1}, arrays)
        head, found = receive(theirs)
        assert head == {"a": 1}
        for one, other in zip(arrays, found, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        ours.close()
        with pytest.raises(EOFError):
            receive(theirs)


class Losing(NullStepModel):
    """A model whose process ends at some steps, and its caches with it."""

    losses = (5, 9)

    def __call__(self, arrays):  # type: ignore[no-untyped-def]
        if self.num_steps in self.losses:
            self.num_steps += 1
            for cache in arrays[6:]:
                cache[:] = -1  # what a new process has is not what was there
            raise StateLostError("the model's process has ended")
        return super().__call__(arrays)


def test_generations_begin_again_on_an_empty_cache() -> None:
    options = GenerationOptions(Limits(16, 4, 8), cache_blocks=64)
    prompt, params = list(range(1, 20)), SamplingParams(max_tokens=6, temperature=0.0)
    expected = GenerationEngine(NullStepModel(), options).submit(prompt, params).result()[0].token_ids
    engine = GenerationEngine(Losing(), options)
    outcomes = []
    for _ in range(6):
        try:
            outcomes.append(engine.submit(prompt, params).result()[0].token_ids)
        except StateLostError:
            outcomes.append([])
    assert outcomes.count([]) == len(Losing.losses)
    assert all(outcome in ([], expected) for outcome in outcomes)
    engine.drain()
    engine.check_integrity()
    engine.close()


def test_a_process_knows_what_its_model_is(folder: Path) -> None:
    process = ModelProcess(folder / "counts.llmos", "words", "")
    found = process.start()
    assert (found["name"], found["metadata"]["task"]) == ("words", "sentence-embedding")
    assert process.asset("tokenizer.json") == Path(__file__).with_name("tokenizer.json").read_bytes()
    assert process.asset("nothing") is None
    process.close()
