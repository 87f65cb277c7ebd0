"""/v1/models and /v1/embeddings through the openai client."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from tokenizers import Tokenizer

from ..engine.numpy_models import Encoder  # noqa: TID252
from .harness import Server

TEXTS = ["That is a happy person", "That is a very happy person", "Today is a sunny day", "the cat sat on the mat"]


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://{server.address}/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    found = Tokenizer.from_file(str(Path(__file__).with_name("tokenizer.json")))
    found.no_padding()
    return found


def reference(ids: list[int]) -> np.ndarray[Any, Any]:
    array = np.array([ids])
    embedding: np.ndarray[Any, Any] = Encoder().compute([array, np.ones_like(array)])[0][0]
    return embedding


def post(server: Server, **fields: Any) -> Any:
    body = {"model": "encoder", "input": "a cat", **fields}
    return server.request("POST", "/v1/embeddings", {key: value for key, value in body.items() if value is not None})


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["encoder", "nested", "affine", "echo", "not-finite", "ballast"]
    assert client.models.retrieve("encoder").owned_by == "llmos"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nothing")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings_in_every_form_of_input(client: openai.OpenAI, tokenizer: Tokenizer, encoding: Any) -> None:
    ids = [tokenizer.encode(text).ids for text in TEXTS]
    cases: list[tuple[Any, list[list[int]]]] = [(TEXTS[0], ids[:1]), (TEXTS, ids), (ids[1], ids[1:2]), (ids, ids)]
    for inputs, expected in cases:
        answer = client.embeddings.create(model="encoder", input=inputs, encoding_format=encoding)
        assert answer.model == "encoder"
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, expected))
        assert [item.index for item in answer.data] == list(range(len(expected)))
        for item, one in zip(answer.data, expected, strict=True):
            values = np.frombuffer(base64.b64decode(item.embedding), "<f4") if isinstance(item.embedding, str) else item.embedding
            np.testing.assert_allclose(values, reference(one), rtol=0, atol=1e-6)


def test_the_clients_own_default_encoding(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    answer = client.embeddings.create(model="encoder", input=TEXTS[0])
    np.testing.assert_allclose(answer.data[0].embedding, reference(tokenizer.encode(TEXTS[0]).ids), rtol=0, atol=1e-6)


def test_long_texts_are_cut_at_the_models_length(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    text = "cat dog " * 200
    answer = client.embeddings.create(model="nested", input=text)
    tokenizer.enable_truncation(8)
    assert answer.usage.prompt_tokens == 8
    np.testing.assert_allclose(answer.data[0].embedding, reference(tokenizer.encode(text).ids), rtol=0, atol=1e-6)
    tokenizer.no_truncation()


def test_more_inputs_than_fit_a_batch(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    texts = [" ".join(["cat"] * (1 + number % 40)) for number in range(500)]
    answer = client.embeddings.create(model="encoder", input=texts)
    for number in (0, 39, 250, 499):
        np.testing.assert_allclose(answer.data[number].embedding, reference(tokenizer.encode(texts[number]).ids), rtol=0, atol=1e-6)


def test_dimensions_are_cut_and_renormalised_only_where_the_model_allows_it(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    whole = reference(tokenizer.encode("a cat").ids)
    answer = client.embeddings.create(model="nested", input="a cat", dimensions=4)
    np.testing.assert_allclose(answer.data[0].embedding, whole[:4] / np.linalg.norm(whole[:4]), rtol=0, atol=1e-6)
    assert len(client.embeddings.create(model="encoder", input="a cat", dimensions=16).data[0].embedding) == 16
    with pytest.raises(openai.BadRequestError, match="can't be shortened") as caught:
        client.embeddings.create(model="encoder", input="a cat", dimensions=4)
    assert caught.value.param == "dimensions"


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        ({"input": None}, "'input' must be", "input"),
        ({"input": ""}, "empty string", "input"),
        ({"input": []}, "can't be empty", "input"),
        ({"input": ["a", ""]}, "empty string", "input"),
        ({"input": [[]]}, "empty string or array", "input"),
        ({"input": ["a", 3]}, "'input' must be", "input"),
        ({"input": [1, "a"]}, "'input' must be", "input"),
        ({"input": [True]}, "'input' must be", "input"),
        ({"input": {"a": 1}}, "'input' must be", "input"),
        ({"input": 3}, "'input' must be", "input"),
        ({"input": [1.5]}, "'input' must be", "input"),
        ({"input": ["a"] * 2049}, "at most 2048", "input"),
        ({"input": [1] * 65}, "at most 64", "input"),
        ({"input": [-1]}, "outside the vocabulary", "input"),
        ({"input": [10**18]}, "outside the vocabulary", "input"),
        ({"encoding_format": "hex"}, "'encoding_format'", "encoding_format"),
        ({"encoding_format": []}, "'encoding_format'", "encoding_format"),
        ({"dimensions": 0}, "'dimensions'", "dimensions"),
        ({"dimensions": True}, "'dimensions'", "dimensions"),
        ({"dimensions": 17}, "'dimensions'", "dimensions"),
        ({"model": None}, "'model'", "model"),
        ({"model": 7}, "'model'", "model"),
        ({"model": "affine"}, "no text embedding model", "model"),
    ],
)
def test_malformed_requests_get_openais_error_object(server: Server, fields: dict[str, Any], message: str, param: str) -> None:
    answer = post(server, **fields)
    assert answer.status == 400, answer
    error = answer.json()["error"]
    assert message in error["message"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\x00", b'{"model": "encoder", "input": "\\ud800"}'])
def test_bodies_that_are_no_request(server: Server, body: bytes) -> None:
    answer = server.request("POST", "/v1/embeddings", body)
    assert answer.status == 400, answer
    assert json.loads(answer.body)["error"]["type"] == "invalid_request_error"


def test_32_clients_at_once_get_what_each_gets_alone(server: Server, tokenizer: Tokenizer) -> None:
    def call(number: int) -> float:
        text = " ".join(TEXTS[(number + step) % 4] for step in range(1 + number % 6))
        with openai.OpenAI(base_url=f"http://{server.address}/v1", api_key="none", max_retries=0) as client:
            answer = client.embeddings.create(model="encoder", input=[text, TEXTS[number % 4]])
        expected = [reference(tokenizer.encode(one).ids) for one in (text, TEXTS[number % 4])]
        return max(float(np.abs(np.array(item.embedding) - one).max()) for item, one in zip(answer.data, expected, strict=True))

    with ThreadPoolExecutor(32) as pool:
        assert max(pool.map(call, range(64))) <= 1e-6
