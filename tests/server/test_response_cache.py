"""The cache of responses: the same answer without the model, for one principal, for a time, in so many bytes."""

from __future__ import annotations

import json
import time
from typing import Any

import openai

from llmos.runtime.server.core.http import Reply
from llmos.runtime.server.core.response_cache import CacheKey, LocalStore

from .harness import Answer, Server, affine_body, language_server, numpy_server
from .language_model import FAILS_AT, SLOW

RUNS = 'llmos_request_success_total{finished_reason="stop",model_name="%s"}'


def embed(server: Server, key: str, **fields: object) -> Answer:
    return server.request("POST", "/v1/embeddings", {"model": "encoder", "input": "cat", **fields}, {"Authorization": f"Bearer {key}"})


def test_answers_are_kept_for_one_principal() -> None:
    with numpy_server(api_keys=["first", "second"], response_cache_bytes=1 << 20) as server:
        server.key = "first"
        first, again = embed(server, "first"), embed(server, "first")
        assert (first.body, first.status) == (again.body, 200)
        assert first.headers["x-request-id"] != again.headers["x-request-id"]
        assert server.metric(RUNS % "encoder") == 1
        assert embed(server, "second").body == first.body
        assert server.metric(RUNS % "encoder") == 2, "another's answer is its own"
        assert embed(server, "first", encoding_format="base64").body != first.body
        assert embed(server, "first", input=[5, 6]).status == 200
        assert server.metric(RUNS % "encoder") == 4
        bodies = [affine_body([1, 2, 3]), affine_body([1, 2, 4]), affine_body([1, 2, 3]), {**affine_body([1, 2, 3]), "id": "a"}]
        answers = [server.request("POST", "/v2/models/affine/infer", body).json() for body in bodies]
        assert answers[0] == answers[2] != answers[1]
        assert answers[3]["id"] == "a"
        assert server.metric(RUNS % "affine") == 3
        assert embed(server, "first", input="").status == embed(server, "first", input="").status == 400
        assert server.metric('llmos_response_cache_hits_total{model_name="encoder"}') == 1


def test_answers_are_kept_for_a_time() -> None:
    with numpy_server(response_cache_bytes=1 << 20, response_cache_ttl_s=0.2) as server:
        embed(server, "")
        time.sleep(0.3)
        embed(server, "")
        assert server.metric(RUNS % "encoder") == 2


def test_bytes_are_bounded_and_the_latest_used_stay() -> None:
    cache = LocalStore(20_000, 10.0)
    for number in range(100):
        cache.put(bytes([number]), Reply(200, b"x" * 1500), 0.0)
        assert cache.get(bytes([0]), 1.0) is not None, "it was used"
        assert cache.num_bytes <= 20_000
    assert cache.get(bytes([50]), 1.0) is None
    cache.put(b"large", Reply(200, b"x" * 19_000), 0.0)
    assert cache.get(b"large", 1.0) is None
    assert cache.get(bytes([99]), 10.0) is None
    for number in range(100):
        cache.get(bytes([number]), 11.0)
    assert cache.num_bytes == 0


def test_keys_tell_their_parts_apart() -> None:
    assert CacheKey.of("a", "bc") != CacheKey.of("ab", "c") != CacheKey.of("abc")
    assert CacheKey.of("a").name != CacheKey.of("a").secret


def chat(server: Server, **fields: object) -> Answer:
    body = {"model": "null", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 12, **fields}
    return server.request("POST", "/v1/chat/completions", body)


def test_generations_are_kept_where_they_are_repeatable() -> None:
    with language_server(api_keys=["first", "second"], response_cache_bytes=1 << 20) as server:
        server.key = "first"
        for fields in ({"temperature": 0}, {"seed": 3}, {"seed": 3, "n": 2, "logprobs": True}, {"seed": 3, "stream": True}):
            first, again = chat(server, **fields), chat(server, user="another", **fields)
            assert first.status == again.status == 200
            assert first.body == again.body, "with its usage and its id"
            assert first.headers["content-type"].partition(";")[0] == again.headers["content-type"]
            assert first.headers["x-request-id"] != again.headers["x-request-id"]
        hits = 'llmos_response_cache_hits_total{model_name="null"}'
        assert server.metric(hits) == 4
        text = {"model": "null", "prompt": "hello", "temperature": 0, "max_tokens": 12}
        assert server.request("POST", "/v1/completions", text).body == server.request("POST", "/v1/completions", text).body
        assert server.metric(hits) == 5
        server.key = "second"
        assert chat(server, temperature=0).json()["choices"] is not None
        assert server.metric(hits) == 5, "another's answer is its own"
        server.key = "first"
        different = [{"seed": 4}, {"temperature": 0, "max_tokens": 11}, {"temperature": 0, "stream": True}, {"temperature": 0.5}, {}, {}]
        bodies = {chat(server, **fields).body for fields in different}
        assert len(bodies) == len(different)
        assert server.metric(hits) == 5
        assert chat(server, temperature=0, max_tokens=0).status == chat(server, temperature=0, max_tokens=0).status == 400
        properties = [{"a": {"const": 1}, "b": {"const": 2}}, {"b": {"const": 2}, "a": {"const": 1}}]
        forms = [{"type": "object", "properties": each, "required": ["a", "b"], "additionalProperties": False} for each in properties]
        texts = [chat(server, temperature=0, max_tokens=100, guided_json=form).json()["choices"][0]["message"]["content"] for form in forms]
        assert [list(json.loads(each)) for each in texts] == [["a", "b"], ["b", "a"]], "the order of properties counts"


def test_a_stream_that_was_left_or_failed_is_not_kept() -> None:
    with language_server(response_cache_bytes=1 << 20) as server:
        failing = {"temperature": 0, "stream": True, "logit_bias": {str(FAILS_AT): 100}}
        for _ in range(2):
            answer = chat(server, **failing)
            assert b"fails" in answer.body and b"[DONE]" not in answer.body
        with openai.OpenAI(base_url=f"http://{server.address}/v1", api_key="none") as client:
            fields: dict[str, Any] = {"model": "null", "prompt": "a", "seed": 1, "logit_bias": SLOW, "max_tokens": 6}
            with client.completions.create(stream=True, **fields) as stream:
                next(iter(stream))
            whole = client.completions.create(**fields).choices[0]
            assert "".join(chunk.choices[0].text for chunk in client.completions.create(stream=True, **fields)) == whole.text
        assert server.metric('llmos_response_cache_hits_total{model_name="null"}') == 0


def test_a_template_that_reads_the_clock_is_not_repeatable() -> None:
    template = "{{ strftime_now('%S') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with language_server(template=template, response_cache_bytes=1 << 20) as server:
        for _ in range(2):
            chat(server, temperature=0)
        assert server.metric('llmos_response_cache_queries_total{model_name="null"}') == 0
