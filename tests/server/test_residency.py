"""Models that are in memory while they are used, within a budget."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import tritonclient.http as triton
from hypothesis import given
from hypothesis import strategies as st

from llmos.runtime.server.core.residency import Resident, to_remove

from ..cli_runtime.artifacts import affine_artifact, counts_artifact  # noqa: TID252
from .harness import Server, affine_body, language_server, running, wait_for
from .test_artifacts import COMMAND
from .test_hot_swap import generate, memory

PADDING = {"padding.bin": bytes(1 << 20)}
NAMES = ("a", "b", "c", "d")
EVICTIONS = 'llmos_model_evictions_total{model_name="%s"}'


@st.composite
def residents(draw: st.DrawFn) -> list[Resident]:
    facts = st.tuples(st.integers(0, 50), st.integers(0, 9).map(float), st.booleans(), st.booleans())
    return [Resident(f"m{number}", *each) for number, each in enumerate(draw(st.lists(facts, max_size=8)))]


@given(residents(), st.integers(0, 100), st.integers(0, 200))
def test_what_is_removed(found: list[Resident], needed: int, budget: int) -> None:
    removed = to_remove(found, needed, budget)
    removable = sum(resident.num_bytes for resident in found if resident.removable)
    total = sum(resident.num_bytes for resident in found)
    if removed is None:
        assert total - removable + needed > budget, "it would have fitted"
        return
    gone = [next(resident for resident in found if resident.name == name) for name in removed]
    assert all(resident.removable for resident in gone)
    assert total - sum(resident.num_bytes for resident in gone) + needed <= budget
    kept = [resident for resident in found if resident.removable and resident.num_bytes and resident.name not in removed]
    assert all((one.used, one.last_s) <= (other.used, other.last_s) for one in gone for other in kept)
    assert not gone or total - sum(resident.num_bytes for resident in gone[:-1]) + needed > budget, "the last one was needed"


@contextmanager
def dynamic_server(folder: Path, *options: str) -> Iterator[Server]:
    """A server of four models of 1 MiB each, all dynamic."""
    made = affine_artifact(folder / "affine.llmos", assets=PADDING)
    for name in NAMES:
        (folder / "models" / name / "1").mkdir(parents=True)
        shutil.copy(made, folder / "models" / name / "1" / "model.llmos")
    command = [*COMMAND, "--model-repository", str(folder / "models"), "--resource-policy", "dynamic", "--admin-port", "0", *options]
    with running(command) as server:
        yield server


def infer(server: Server, name: str) -> int:
    return server.request("POST", f"/v2/models/{name}/infer", affine_body([1, 2, 3])).status


def states(server: Server) -> dict[str, str]:
    return {state["name"]: state["state"] for state in server.admin("/v2/repository/index").json()}


def test_models_are_loaded_when_requests_need_them(tmp_path: Path) -> None:
    with dynamic_server(tmp_path, "--memory-budget-mib", "3") as server, triton.InferenceServerClient(server.address) as client:
        assert set(states(server).values()) == {"UNAVAILABLE"}
        assert [model["id"] for model in server.get("/v1/models").json()["data"]] == list(NAMES)
        assert client.is_model_ready("a")
        assert not client.is_model_ready("a", "2")
        assert not client.is_model_ready("e")
        assert set(states(server).values()) == {"UNAVAILABLE"}, "to ask whether it is ready does not load it"
        for name in ("a", "b", "a", "c"):
            assert infer(server, name) == 200
        assert states(server) == {"a": "READY", "b": "UNAVAILABLE", "c": "READY", "d": "UNAVAILABLE"}
        assert server.metric(EVICTIONS % "b") == 1
        assert client.get_model_metadata("d")["versions"] == ["1"]
        assert states(server) == {"a": "UNAVAILABLE", "b": "UNAVAILABLE", "c": "READY", "d": "READY"}
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda number: infer(server, NAMES[number * 7 % 4]), range(60))) == {200}
        assert list(states(server).values()).count("READY") <= 2
        wait_for(lambda: memory(server)[0] <= 4)  # a copy of the file and of its code for each
        assert infer(server, "e") == 404


def test_what_somebody_unloads_stays_unloaded(tmp_path: Path) -> None:
    with dynamic_server(tmp_path) as server:
        assert infer(server, "a") == 200
        assert server.admin("/v2/repository/models/a/unload").status == 200
        assert infer(server, "a") == 404
        assert server.admin("/v2/repository/models/a/load").status == 200
        assert infer(server, "a") == 200


def test_a_model_that_can_not_be_loaded_is_not_read_at_each_request(tmp_path: Path) -> None:
    with dynamic_server(tmp_path) as server:
        file = tmp_path / "models" / "a" / "1" / "model.llmos"
        content = file.read_bytes()
        file.write_bytes(b"broken")
        answers = [server.request("POST", "/v2/models/a/infer", affine_body([1, 2, 3])) for _ in range(3)]
        assert [answer.status for answer in answers] == [503] * 3
        assert "can't be loaded" in answers[2].json()["error"]
        assert sum("can't be loaded" in line for line in server.log) == 1
        assert server.get("/v2/models/a/ready").status == 503
        assert infer(server, "b") == 200
        (file.parent / "new").write_bytes(content)
        (file.parent / "new").rename(file)
        assert infer(server, "a") == 200


def test_what_is_too_large_for_the_budget(tmp_path: Path) -> None:
    with dynamic_server(tmp_path, "--memory-budget-mib", "1") as server:
        answer = server.request("POST", "/v2/models/a/infer", affine_body([1, 2, 3]))
        assert (answer.status, "there is no memory for model 'a'" in answer.json()["error"]) == (503, True)
        assert answer.headers["retry-after"] == "1"
    command = [*COMMAND, "--model-repository", str(tmp_path / "models"), "--memory-budget-mib", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.count("\n"), "the memory budget is 3.0 MiB" in done.stderr) == (2, 1, True), done


def test_large_texts_of_a_model_that_is_not_in_memory(tmp_path: Path) -> None:
    (tmp_path / "counts" / "1").mkdir(parents=True)
    counts_artifact(tmp_path / "counts.llmos").rename(tmp_path / "counts" / "1" / "model.llmos")
    with running([*COMMAND, "--model-repository", str(tmp_path), "--resource-policy", "counts=dynamic"]) as server:
        body = {"model": "counts", "input": ["the cat " * 20_000, "the cat"]}
        answer = server.request("POST", "/v1/embeddings", body)
        assert answer.status == 200, answer
        rows = [row["embedding"] for row in answer.json()["data"]]
        assert len(rows) == 2
        assert rows[0] != rows[1]


def test_a_language_model_makes_room_once_its_generations_end(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1" / "model.llmos").write_text(json.dumps({}))
    options: dict[str, Any] = {"repository": str(tmp_path), "resource": "dynamic", "memory_budget_bytes": 80_000}
    with (
        language_server(**options) as server,
        openai.OpenAI(base_url=f"http://{server.address}/v1", api_key="none", max_retries=0) as client,
    ):
        text = generate(client, "one")
        with ThreadPoolExecutor(6) as pool:
            assert set(pool.map(lambda number: generate(client, ("one", "two")[number % 2]), range(12))) == {text}
        assert server.metric(EVICTIONS % "one") > 0
        with pytest.raises(openai.NotFoundError):
            generate(client, "three")
