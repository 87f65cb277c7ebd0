"""A language model that embeds too: one name at both kinds of routes, an engine for each, and one end of both."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from tokenizers import Tokenizer

from ..engine.numpy_models import Encoder  # noqa: TID252
from .harness import Server, language_server, wait_for

TEXTS = ["cat", "the cat sat", "a dog and a cat " * 8, "sat"]


@pytest.fixture(scope="module")
def both() -> Iterator[Server]:
    with language_server(embeds=True, max_queue=64) as server:
        yield server
        assert server.stop() == 0


@pytest.fixture(scope="module")
def client(both: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://{both.address}/v1", api_key="none", max_retries=0) as found:
        yield found


def own(text: str) -> np.ndarray[Any, Any]:
    tokenizer = Tokenizer.from_file(str(Path(__file__).with_name("tokenizer.json")))
    tokenizer.no_padding()
    ids = np.array([tokenizer.encode(text).ids])
    vector: np.ndarray[Any, Any] = Encoder().compute([ids, np.ones_like(ids)])[0][0]
    return vector


def generate(client: openai.OpenAI, seed: int = 0) -> str:
    return client.completions.create(model="null", prompt="the cat sat", max_tokens=20, temperature=0.8, seed=seed).choices[0].text


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_both_routes_take_the_name(client: openai.OpenAI, encoding: Any) -> None:
    found = client.embeddings.create(model="null", input=TEXTS, encoding_format=encoding)
    assert (found.model, len(found.data)) == ("null", len(TEXTS))
    for item, text in zip(found.data, TEXTS, strict=True):
        values = np.frombuffer(base64.b64decode(item.embedding), "<f4") if isinstance(item.embedding, str) else item.embedding
        np.testing.assert_allclose(values, own(text), rtol=0, atol=1e-6)
    assert generate(client)
    assert [model.id for model in client.models.list()] == ["null", "encoder"]


def test_texts_and_embeddings_at_once(both: Server, client: openai.OpenAI) -> None:
    texts = [generate(client, seed) for seed in range(8)]
    with ThreadPoolExecutor(24) as pool:
        written = [pool.submit(generate, client, seed) for seed in range(8)]
        embedded = [pool.submit(client.embeddings.create, model="null", input=text) for text in TEXTS * 10]
        assert [each.result() for each in written] == texts
        for each, text in zip(embedded, TEXTS * 10, strict=True):
            np.testing.assert_allclose(each.result().data[0].embedding, own(text), rtol=0, atol=1e-6)
    wait_for(lambda: both.metric('llmos_num_requests_running{model_name="null"}') == 0)
    assert both.metric('llmos_request_success_total{finished_reason="stop",model_name="null"}') >= 40
    assert both.metric('llmos_prompt_tokens_total{model_name="null"}') > 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"input": ""}, "empty string"),
        ({"input": [10**9]}, "outside the vocabulary"),
        ({"input": "a", "dimensions": 4}, "can't be shortened"),
    ],
)
def test_a_wrong_input_gets_one_line_and_leaves_both_as_they_were(both: Server, client: openai.OpenAI, body: Any, message: str) -> None:
    answer = both.request("POST", "/v1/embeddings", {"model": "null", **body})
    assert answer.status == 400 and message in answer.json()["error"]["message"]
    assert generate(client) and client.embeddings.create(model="null", input="cat").data


def test_it_takes_no_tensors(both: Server) -> None:
    answer = both.request("POST", "/v2/models/null/infer", {"inputs": []})
    assert answer.status == 400 and "language model" in answer.body.decode()


def test_one_without_embeddings_says_how_to_get_them(served: Server) -> None:
    answer = served.request("POST", "/v1/embeddings", {"model": "null", "input": "a"})
    assert answer.status == 400 and "--embeddings" in answer.json()["error"]["message"]


def test_versions_come_and_go_with_both_engines(tmp_path: Path) -> None:
    def publish(version: int) -> None:
        (tmp_path / "lm" / str(version)).mkdir(parents=True)
        (tmp_path / "lm" / str(version) / "model.llmos").write_text(json.dumps({"embeds": True}))

    publish(1)
    with language_server(repository=str(tmp_path), repository_api=True) as server:

        def embed() -> int:
            return server.request("POST", "/v1/embeddings", {"model": "lm", "input": TEXTS}).status

        def threads() -> list[str]:
            tasks = Path(f"/proc/{server.process.pid}/task").iterdir()
            return [name for task in tasks if "llmos-" in (name := (task / "comm").read_text())]

        def load() -> int:
            return server.request("POST", "/v2/repository/models/lm/load").status

        assert load() == 200 and embed() == 200
        before, stopped = len(threads()), threading.Event()
        statuses: list[int] = []

        def run() -> None:
            while not stopped.is_set():
                statuses.append(embed())

        clients = [threading.Thread(target=run) for _ in range(3)]
        for each in clients:
            each.start()
        for version in range(2, 7):
            publish(version)
            assert load() == 200
        stopped.set()
        for each in clients:
            each.join()
        assert statuses and set(statuses) == {200}
        wait_for(lambda: len(threads()) <= before + 1)
        assert server.request("POST", "/v2/repository/models/lm/unload").status == 200
        assert embed() == 404
        wait_for(lambda: 'model_name="lm"' not in _running(server))
        assert not [line for line in server.log if "did not end as it should" in line]
        assert server.stop() == 0


def _running(server: Server) -> str:
    return "\n".join(line for line in server.get("/metrics").body.decode().splitlines() if line.startswith("llmos_num_requests_running{"))
