"""One version takes the place of another under load: no request fails, each answer is of one version, and nothing of the old one stays."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import tritonclient.http as triton

from ..cli_runtime.artifacts import affine_artifact  # noqa: TID252
from .harness import Server, language_server, running, wait_for
from .test_artifacts import COMMAND

NUM_SWAPS = int(os.environ.get("LLMOS_TEST_SWAPS", "1000"))  # of the slow test
PADDING = {"padding.bin": bytes(1 << 20)}


def memory(server: Server) -> tuple[int, int, int]:
    """The copies of artifacts and of their code that the server's process has mapped, its threads, and its resident bytes."""
    process = Path("/proc") / str(server.process.pid)
    copies = set(re.findall(r"\s(\d+)\s+/memfd:llmos", (process / "maps").read_text()))
    status = (process / "status").read_text()
    fields = {key: int(value) for key, value in re.findall(r"(\w+):\s+(\d+)", status)}
    return len(copies), fields["Threads"], fields["VmRSS"] << 10


class Clients:
    """Clients that call until they are stopped. failures: what went wrong; versions: that have answered."""

    def __init__(self, call: Callable[[], int], count: int) -> None:
        self.failures: list[object] = []
        self.versions: set[int] = set()
        self._call = call
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self.versions.add(self._call())
            except Exception as error:
                self.failures.append(error)

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()


def factor_of(version: int) -> int:
    return 2 + version % 2


@contextmanager
def affine_repository(folder: Path) -> Iterator[tuple[Server, Callable[[int], None]]]:
    """A server of one model in versions, and a function that makes one of them the only one."""
    made = {factor: affine_artifact(folder / f"{factor}.llmos", factor=factor, assets=PADDING) for factor in (2, 3)}
    models = folder / "models" / "affine"

    def publish(version: int) -> None:
        (models / str(version)).mkdir(parents=True)
        shutil.copy(made[factor_of(version)], models / str(version) / "model.llmos")
        if version > 1:
            shutil.rmtree(models / str(version - 1))

    publish(1)
    options = ["--model-repository", str(models.parent), "--admin-port", "0", "--no-access-log"]
    with running([*COMMAND, *options]) as server:
        yield server, publish


def swap_under_load(folder: Path, num_swaps: int) -> None:
    clients = threading.local()

    def call() -> int:
        if not hasattr(clients, "client"):
            clients.client = triton.InferenceServerClient(server.address)
        x = np.array([[1, 2, 3]], np.float32)
        result = clients.client.infer("affine", [triton.InferInput("x", [1, 3], "FP32").set_data_from_numpy(x)])
        version = int(result.get_response()["model_version"])
        np.testing.assert_array_equal(result.as_numpy("y"), x * factor_of(version) + 1)
        return version

    with affine_repository(folder) as (server, publish):
        with Clients(call, 4) as load:
            wait_for(lambda: 1 in load.versions or bool(load.failures))
            num_copies = memory(server)[0]
            warm: tuple[int, int, int] | None = None
            for version in range(2, num_swaps + 2):
                publish(version)
                answer = server.admin("/v2/repository/models/affine/load")
                assert answer.status == 200, answer
                wait_for(lambda: version in load.versions or bool(load.failures))  # noqa: B023
                if version == 1 + num_swaps // 2:
                    warm = memory(server)
        assert not load.failures, load.failures[:3]
        assert load.versions == set(range(1, num_swaps + 2))
        wait_for(lambda: memory(server)[0] == num_copies)
        assert warm is not None
        after = memory(server)
        assert after[1] <= warm[1] + 2, "threads of engines end"
        assert after[2] - warm[2] < (10 << 20) + num_swaps * 10_000, "a copy that stays would be 1 MiB a swap"
        assert server.stop() == 0


def test_a_model_is_exchanged_under_load(tmp_path: Path) -> None:
    swap_under_load(tmp_path, 12)


@pytest.mark.slow
def test_a_model_is_exchanged_many_times(tmp_path: Path) -> None:
    swap_under_load(tmp_path, NUM_SWAPS)


@contextmanager
def language_repository(folder: Path) -> Iterator[tuple[Server, openai.OpenAI, Callable[..., None]]]:
    """A server of a language model in versions, its client, and a function that serves a version of these fields."""

    def publish(version: int, **fields: Any) -> None:
        (folder / "lm" / str(version)).mkdir(parents=True)
        (folder / "lm" / str(version) / "model.llmos").write_text(json.dumps(fields))
        if version > 1:
            answer = server.request("POST", "/v2/repository/models/lm/load")
            assert answer.status == 200, answer

    publish(1)
    with (
        language_server(repository=str(folder), repository_api=True) as server,
        openai.OpenAI(base_url=f"http://{server.address}/v1", api_key="none", max_retries=0) as client,
    ):
        yield server, client, publish


def generate(client: openai.OpenAI, model: str = "lm") -> str:
    done = client.completions.create(model=model, prompt="the cat sat", max_tokens=40, temperature=0, extra_body={"ignore_eos": True})
    return done.choices[0].text


def test_generations_end_on_the_version_that_they_began_on(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with language_repository(tmp_path / "models") as (server, client, publish):

        def states() -> list[str]:
            index = server.request("POST", "/v2/repository/index").json()
            return [state["state"] for state in index if state["name"] == "lm"]

        text = generate(client)
        publish(2, gate=str(gate))
        stream = client.completions.create(
            model="lm", prompt="the cat sat", max_tokens=40, temperature=0, stream=True, extra_body={"ignore_eos": True}
        )
        began = next(stream).choices[0].text
        publish(3, sign=-1)
        assert generate(client) != text
        wait_for(lambda: states() == ["UNAVAILABLE", "UNLOADING", "READY"])
        gate.touch()
        assert began + "".join(event.choices[0].text for event in stream) == text
        wait_for(lambda: states() == ["UNAVAILABLE", "UNAVAILABLE", "READY"])
        assert server.stop() == 0


def test_a_language_model_is_exchanged_under_load(tmp_path: Path) -> None:
    with language_repository(tmp_path) as (server, client, publish):
        texts = {generate(client): 1}
        publish(2, sign=-1)
        texts[generate(client)] = 2
        threads = memory(server)[1]
        with Clients(lambda: texts[generate(client)], 3) as load:
            for version in range(3, 11):
                load.versions.clear()
                publish(version, sign=1 - 2 * (version % 2 == 0))
                wait_for(lambda: 1 + (version % 2 == 0) in load.versions or bool(load.failures))  # noqa: B023
        assert not load.failures, load.failures[:3]
        wait_for(lambda: memory(server)[1] <= threads + 2)
        for version, content in ((11, "[]"), (12, '{"fails_at": 0}')):  # no artifact; one that can't compute a step
            (tmp_path / "lm" / str(version)).mkdir()
            (tmp_path / "lm" / str(version) / "model.llmos").write_text(content)
            answer = server.request("POST", "/v2/repository/models/lm/load")
            assert (answer.status, "version 10 serves on" in answer.json()["error"]) == (400, True)
        assert texts[generate(client)] == 2
        assert server.stop() == 0
