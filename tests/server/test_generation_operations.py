"""Overload, deadlines, disconnects, keys, metrics and shutdown of a server of a language model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import openai
import pytest

from .harness import Server, language_server, wait_for
from .language_model import SLOW

RUNNING = 'llmos_num_requests_running{model_name="null"}'
WAITING = 'llmos_num_requests_waiting{model_name="null"}'
LONG: dict[str, Any] = {"model": "null", "temperature": 0, "max_tokens": 400, "prompt": "the quick brown", "logit_bias": SLOW}


def ended(server: Server, reason: str) -> float:
    return server.metric(f'llmos_request_success_total{{finished_reason="{reason}",model_name="null"}}')


def count(server: Server, name: str) -> float:
    return server.metric(f'llmos_{name}{{model_name="null"}}')


@contextmanager
def client_of(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://{server.address}/v1", api_key=server.key or "none", max_retries=0) as client:
        yield client


def test_a_client_that_goes_away_ends_its_generation(served: Server) -> None:
    aborted, generated = ended(served, "abort"), count(served, "generation_tokens_total")
    with client_of(served) as client, pytest.raises(openai.APITimeoutError):
        client.completions.create(n=2, timeout=0.6, **LONG)
    wait_for(lambda: ended(served, "abort") == aborted + 1, 5)
    wait_for(lambda: served.metric(RUNNING) == 0, 5)
    assert 0 < count(served, "generation_tokens_total") - generated < 200, "it was canceled long before its end"


def test_a_stream_that_is_left_ends_its_generation(served: Server) -> None:
    aborted = ended(served, "abort")
    with client_of(served) as client:
        stream = client.completions.create(stream=True, **LONG)
        next(iter(stream))
        wait_for(lambda: served.metric(RUNNING) == 1, 5)
        stream.close()
        wait_for(lambda: ended(served, "abort") == aborted + 1, 5)
        wait_for(lambda: served.metric(RUNNING) == 0, 5)


def test_deadlines(served: Server) -> None:
    before = ended(served, "timeout")
    late = served.request("POST", "/v1/completions", LONG, {"X-Request-Timeout": "0.3"})
    assert (late.status, late.json()["error"]["type"]) == (504, "timeout_error")
    with client_of(served) as client, pytest.raises(openai.APIError, match="timed out"):
        list(client.completions.create(stream=True, extra_headers={"X-Request-Timeout": "0.3"}, **LONG))
    wait_for(lambda: ended(served, "timeout") == before + 2, 5)
    assert served.request("POST", "/v1/completions", LONG, {"X-Request-Timeout": "never"}).status == 400


def test_metrics_count_tokens_and_times(served: Server) -> None:
    names = ("prompt_tokens_total", "generation_tokens_total", "prefix_cache_queries_total", "prefix_cache_hits_total")
    names += ("time_to_first_token_seconds_count", "inter_token_latency_seconds_count", "request_queue_time_seconds_count")
    before = {name: count(served, name) for name in names}
    stops = ended(served, "stop")
    body = {"model": "null", "prompt": list(range(100, 140)), "max_tokens": 5, "temperature": 0}
    answers = [served.request("POST", "/v1/completions", body).json() for _ in range(2)]
    num_cached = answers[1]["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert num_cached == 36
    # A client has its answer a moment before the metrics have the step.
    wait_for(lambda: [count(served, name) - before[name] for name in names] == [80, 10, 80, num_cached, 2, 8, 2], 5)
    text = served.request("POST", "/v1/completions", {**LONG, "max_tokens": 2}).json()["choices"][0]["text"]
    stopped = served.request("POST", "/v1/completions", {**LONG, "stop": text}).json()
    assert (stopped["choices"][0]["text"], stopped["choices"][0]["finish_reason"]) == ("", "stop")
    wait_for(lambda: ended(served, "stop") == stops + 1, 5)
    wait_for(lambda: count(served, "kv_cache_usage_perc") == 0, 5)


def test_prompts_and_texts_are_not_logged(served: Server) -> None:
    secret = "pineapple"
    served.request("POST", "/v1/completions", {**LONG, "prompt": secret, "max_tokens": 2}, {"X-Request-Id": "not-logged"})
    chat = {"model": "null", "messages": [{"role": "user", "content": secret}], "max_tokens": 2}
    served.request("POST", "/v1/chat/completions", chat, {"X-Request-Id": "not-logged-either"})
    wait_for(lambda: any("not-logged-either" in line for line in served.log))
    line = next(json.loads(line) for line in served.log if "not-logged" in line)
    assert {key: line[key] for key in ("path", "status", "model", "num_items")} == {
        "path": "/v1/completions",
        "status": 200,
        "model": "null",
        "num_items": 1,
    }
    assert not any(secret in line for line in served.log)


def test_a_full_queue_gives_429(served: Server) -> None:
    rejected = count(served, "request_rejected_total")
    with ThreadPoolExecutor(1) as pool, client_of(served) as client:
        full = pool.submit(client.completions.create, **{**LONG, "prompt": ["a"] * 24, "timeout": 1.5})
        wait_for(lambda: served.metric(RUNNING) + served.metric(WAITING) == 24)
        refused = served.request("POST", "/v1/completions", LONG)
        assert (refused.status, refused.json()["error"]["type"]) == (429, "rate_limit_error")
        assert int(refused.headers["retry-after"]) >= 1
        with pytest.raises(openai.APITimeoutError):
            full.result()
    wait_for(lambda: served.metric(RUNNING) + served.metric(WAITING) == 0, 5)
    assert served.request("POST", "/v1/completions", {**LONG, "prompt": ["a"] * 25}).status == 429
    wait_for(lambda: served.metric(RUNNING) + served.metric(WAITING) == 0, 5)
    assert count(served, "request_rejected_total") == rejected + 2


def test_prefixes_are_not_shared_between_keys(served: Server) -> None:
    body = {"model": "null", "prompt": list(range(1, 100)), "max_tokens": 1}

    def cached(key: str) -> int:
        answer = served.request("POST", "/v1/completions", body, {"Authorization": f"Bearer {key}"})
        tokens: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        return tokens

    cached("first-key")
    assert [cached(key) for key in ("second-key", "first-key", "second-key")] == [0, 96, 96]
    assert served.request("POST", "/v1/completions", body, {"Authorization": "Bearer third-key"}).status == 401


@pytest.mark.slow
def test_sigterm_lets_generations_finish_within_the_grace_period() -> None:
    with language_server(grace_s=2) as server, client_of(server) as client:
        short = iter(client.completions.create(stream=True, **{**LONG, "max_tokens": 20}))
        long = iter(client.completions.create(stream=True, **LONG))
        assert [next(short).object, next(long).object] == ["text_completion"] * 2
        server.process.terminate()
        wait_for(lambda: server.get("/v2/health/ready").status == 503)
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(**LONG)
        assert caught.value.status_code == 503
        assert [chunk.choices[0].finish_reason for chunk in short][-1] == "length"
        with pytest.raises(openai.APIError, match="shutting down"):
            list(long)
        assert server.process.wait(10) == 1
