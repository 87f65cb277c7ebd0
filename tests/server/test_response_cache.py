"""The cache of responses: the same answer without the model, for one principal, for a time, in so many bytes."""

from __future__ import annotations

import time

from llmos.runtime.server.core.http import Reply
from llmos.runtime.server.core.response_cache import ResponseCache

from .harness import Answer, Server, affine_body, numpy_server

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
    cache = ResponseCache(20_000, 10.0)
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
    assert ResponseCache.key("a", "bc") != ResponseCache.key("ab", "c") != ResponseCache.key("abc")
