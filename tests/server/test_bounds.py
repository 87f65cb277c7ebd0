"""Work is bounded before it starts: large requests hold up neither the probes nor small requests."""

from __future__ import annotations

import gzip
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from .attack import Raw, connect, post, read
from .harness import Server, affine_body, language_server, numpy_server, wait_for
from .language_model import FAILS_AT
from .test_shutdown import slow_reader

EMBEDDINGS, INFER = "/v1/embeddings", "/v2/models/affine/infer"
GZIP = "Content-Encoding: gzip"


def embeddings(value: Any) -> bytes:
    return json.dumps({"model": "encoder", "input": value}).encode()


def zipped(data: bytes) -> bytes:
    return gzip.compress(data, 1)


def send(server: Server, request: bytes) -> Raw:
    with connect(server, request) as connection:
        return read(connection)


def floats(num: int) -> bytes:
    return json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [num // 3, 3], "data": [0.5] * num}]}).encode()


ATTACKS: dict[str, Callable[[], bytes]] = {
    "text": lambda: post(EMBEDDINGS, zipped(embeddings("cat sat " * (2 << 20))), GZIP),
    "word": lambda: post(EMBEDDINGS, embeddings("a" * (16 << 20))),
    "texts": lambda: post(EMBEDDINGS, zipped(embeddings(["cat sat " * 3000] * 2048)), GZIP),
    "tokens": lambda: post(EMBEDDINGS, embeddings([7] * 10_000_000)),
    "lists": lambda: post(EMBEDDINGS, zipped(b'{"model":"encoder","input":[' + b"[]," * (20 << 20) + b"[]]}"), GZIP),
    "objects": lambda: post(INFER, zipped(b'{"inputs":[' + b"{}," * (20 << 20) + b"{}]}"), GZIP),
    "answers": lambda: post(EMBEDDINGS, embeddings([[5] * 60] * 2048)),
    "floats": lambda: post(INFER, floats(9_000_000)),
}


@contextmanager
def watched(server: Server, interval_s: float = 0.005) -> Iterator[dict[str, float]]:
    """Ask for health and for the embedding of one word, over and over; give the longest time of each, in seconds."""
    worst = {"health": 0.0, "word": 0.0}
    stop = threading.Event()

    def ask(name: str, method: str, path: str, body: bytes) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        while not stop.is_set():
            start_s = time.perf_counter()
            connection.request(method, path, body)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200
            worst[name] = max(worst[name], time.perf_counter() - start_s)
            time.sleep(interval_s)
        connection.close()

    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(ask, "health", "GET", "/v2/health/live", b""), pool.submit(ask, "word", "POST", EMBEDDINGS, embeddings("cat"))]
        try:
            yield worst
        finally:
            stop.set()
        for job in jobs:
            job.result()


@pytest.mark.slow
def test_all_attacks_at_once_hold_nobody_up() -> None:
    """The bounds are generous to a busy machine: without limits these take 20 s and more."""
    requests = [make() for make in ATTACKS.values()]
    with numpy_server() as server, watched(server) as worst, ThreadPoolExecutor(len(requests)) as pool:
        answers = list(pool.map(lambda request: send(server, request), requests))
        print({name: answer.status for name, answer in zip(ATTACKS, answers, strict=True)}, worst)
        assert all(answer.status in (200, 400, 413, 429, 503) for answer in answers)
    assert worst["health"] < 1
    assert worst["word"] < 5


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fields", [{"prompt": [7] * 505, "echo": True, "max_tokens": 2}, {"prompt": [7], "max_tokens": 200}], ids=["prompt", "answer"]
)
def test_many_log_probabilities_hold_nobody_up(stream: bool, fields: dict[str, Any]) -> None:
    """An answer of 30 MB and more; written on the event loop, it is silent for some 10 s."""
    body = {"model": "null", "n": 128, "logprobs": 20, "stream": stream, "ignore_eos": True, "logit_bias": {str(FAILS_AT): -100}, **fields}
    with language_server() as server, watched(server) as worst:
        answer = server.request("POST", "/v1/completions", body, timeout_s=300)
        print(len(answer.body), worst)
        assert answer.status == 200
    assert worst["health"] < 2


@pytest.mark.slow
def test_many_prompts_hold_nobody_up() -> None:
    body = {"model": "null", "prompt": ["hello world " * 40] * 128, "max_tokens": 2}
    with language_server(max_queue=2000) as server, watched(server) as worst, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: server.request("POST", "/v1/completions", body, timeout_s=300), range(8)))
        print(worst)
        assert {answer.status for answer in answers} == {200}
    assert worst["health"] < 0.5


@pytest.mark.slow
def test_memory_comes_back() -> None:
    with numpy_server() as server:
        for make in ATTACKS.values():
            send(server, make())
        before = server.metric("process_resident_memory_bytes")
        for make in ATTACKS.values():
            send(server, make())
        assert server.metric("process_resident_memory_bytes") - before < 64 << 20


def test_a_long_text_is_cut_before_it_is_tokenized(server: Server) -> None:
    """The model takes 64 tokens, and 2,048 characters are looked at for them; also of a body that is large."""
    words = "cat sat on the mat " * 400
    answers = [
        server.request("POST", EMBEDDINGS, {"model": "encoder", "input": text}).json()
        for text in (words[:2000], words, words * 20, words * 2000)
    ]
    assert [answer["usage"]["prompt_tokens"] for answer in answers] == [64] * 4
    assert all(answer["data"] == answers[0]["data"] for answer in answers)


@pytest.mark.parametrize("encoding", ["", "gzip", "x-gzip", "deflate"])
def test_large_and_small_bodies_mean_the_same(server: Server, encoding: str) -> None:
    import zlib

    compress = {"": bytes, "deflate": zlib.compress}.get(encoding, gzip.compress)
    headers = {"Content-Encoding": encoding} if encoding else {}
    values = [float(number % 7) for number in range(3 * 1000)]
    for num_rows, pad in ((1, 0), (1, 200_000), (1000, 0), (1000, 100_000)):
        data = values[: 3 * num_rows]
        item = {"name": "x", "datatype": "FP32", "shape": [num_rows, 3], "data": data}
        body = json.dumps({"id": "mine", "inputs": [item]}).encode() + b" " * pad
        answer = server.request("POST", INFER, compress(body), headers)
        assert answer.status == 200, answer
        outputs = answer.json()
        assert outputs["id"] == "mine"
        np.testing.assert_array_equal(outputs["outputs"][0]["data"], 2 * np.array(data) + 1)


def test_binary_data_and_json_data_in_one_large_body(server: Server) -> None:
    from ..engine.numpy_models import Echo  # noqa: TID252

    items: list[dict[str, Any]] = []
    tail = b""
    for number, dtype in enumerate(Echo.DTYPES):
        name = {"float16": "FP16", "float32": "FP32", "float64": "FP64", "bfloat16": "BF16", "bool": "BOOL"}.get(dtype, dtype.upper())
        item: dict[str, Any] = {"name": f"in_{dtype}", "datatype": name, "shape": [1, 2]}
        if number % 2:
            item["data"] = [1, 0]
        else:
            piece = np.array([1, 0], "uint16" if dtype == "bfloat16" else dtype).tobytes()
            item["parameters"] = {"binary_data_size": len(piece)}
            tail += piece
        items.append(item)
    head = json.dumps({"inputs": items}).encode()
    answers = []
    for padded in (head, head + b" " * 100_000):
        answer = server.request("POST", "/v2/models/echo/infer", padded + tail, {"Inference-Header-Content-Length": str(len(padded))})
        assert answer.status == 200, answer
        answers.append(answer.json())
    assert answers[0] == answers[1]
    assert answers[0]["outputs"][3]["data"] == [1, 0]


def test_gzip_members_are_one_body(server: Server) -> None:
    body = json.dumps(affine_body([1, 2, 3])).encode()
    for pad in (b"", b" " * 200_000):
        parts = gzip.compress(body[:20]) + gzip.compress(body[20:] + pad) + gzip.compress(b"")
        answer = server.request("POST", INFER, parts, {"Content-Encoding": "gzip"})
        assert (answer.status, answer.json()["outputs"][0]["data"]) == (200, [3.0, 5.0, 7.0])
        assert server.request("POST", INFER, parts + b"rest", {"Content-Encoding": "gzip"}).status == 400


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [(INFER, b'{"inputs": [' + b" " * 100_000, "not valid JSON"),
     (INFER, json.dumps({"inputs": [], "id": "a" * 100_000}).encode(), "without its tensors"),
     (INFER, json.dumps(affine_body(["1"] * 30_000)).encode(), "takes 3 elements"),
     (EMBEDDINGS, embeddings([1] * 100_000), "at most 64"),
     (EMBEDDINGS, json.dumps({"model": "none", "input": "a" * 100_000}).encode(), "not served here"),
     (EMBEDDINGS, json.dumps({"model": "affine", "input": "a" * 100_000}).encode(), "no text embedding model"),
     (EMBEDDINGS, json.dumps({"model": "encoder", "input": "a", "user": "b" * 100_000}).encode(), "beside 'input'"),
     (EMBEDDINGS, b"[" + b"1," * 100_000 + b"1]", "must be a JSON object")],
)  # fmt: skip
def test_what_is_wrong_with_a_large_body(server: Server, path: str, body: bytes, message: str) -> None:
    answer = server.request("POST", path, body)
    assert answer.status in (400, 404)
    assert message in str(answer.json()["error"])


@pytest.mark.slow
def test_answers_that_nobody_reads_are_bounded() -> None:
    """Each has some 20 MB; one is always sent, however large."""
    body = embeddings([[5, 6]] * 2048)
    ended = 'llmos_request_success_total{finished_reason="stop",model_name="encoder"}'
    with numpy_server(width=1024, max_inflight_bytes=64 << 20) as server:
        readers = []
        for number in range(1, 4):
            readers.append(slow_reader(server, post(EMBEDDINGS, body)))
            wait_for(lambda number=number: server.metric(ended) == number)  # type: ignore[misc]
        wait_for(lambda: server.request("POST", EMBEDDINGS, body).status == 503)
        refused = server.request("POST", EMBEDDINGS, body)
        assert "not read yet" in refused.json()["error"]["message"]
        assert refused.headers["retry-after"] == "1"
        assert server.request("POST", EMBEDDINGS, embeddings("cat")).status == 200, "small ones are not counted"
        for reader in readers:
            reader.close()
        wait_for(lambda: server.request("POST", EMBEDDINGS, body).status == 200)
    with numpy_server(width=1024, max_body_bytes=1 << 20, max_inflight_bytes=1 << 20) as server:
        assert server.request("POST", EMBEDDINGS, body).status == 200


def test_bodies_of_all_requests_together_are_bounded() -> None:
    with numpy_server(max_body_bytes=1 << 20, max_inflight_bytes=3 << 20) as server:
        head = f"POST {EMBEDDINGS} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n".encode()
        held = [connect(server, head + b" " * 900_000) for _ in range(3)]
        statuses = []
        try:
            wait_for(lambda: statuses.append(server.request("POST", INFER, b" " * 900_000).status) or statuses[-1] == 503)
            assert server.affine([1, 2, 3]).status == 200, "small ones need none of it"
        finally:
            for connection in held:
                connection.close()
        wait_for(lambda: server.request("POST", INFER, b" " * 900_000).status == 400)


def test_one_deadline_from_the_first_byte(server: Server) -> None:
    body = json.dumps(affine_body([1, 2, 3])).encode()
    with connect(server, post(INFER, body, "X-Request-Timeout: 0.3")[:-1]) as connection:
        time.sleep(0.5)
        connection.sendall(body[-1:])
        assert read(connection).status == 408
    with connect(server, b"POST ") as connection:
        time.sleep(0.5)
        connection.sendall(post(INFER, body, "X-Request-Timeout: 0.3").removeprefix(b"POST "))
        assert read(connection).status in (408, 504)


@pytest.mark.slow
def test_prompts_far_beyond_the_context_hold_nobody_up() -> None:
    with language_server() as server:
        chat = {"model": "null", "messages": [{"role": "user", "content": "a b " * (18 << 18)}]}
        requests = [
            post("/v1/completions", json.dumps({"model": "null", "prompt": [5] * 10_000_000}).encode()),
            post("/v1/completions", json.dumps({"model": "null", "prompt": "a b " * (15 << 20)}).encode()),
            post("/v1/chat/completions", json.dumps(chat).encode()),
        ]
        with watched(server) as worst, ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda request: send(server, request), requests))
            print(worst)
        assert [answer.status for answer in answers] == [400] * 3
        assert worst["health"] < 1


def test_one_large_call_does_not_stand_before_a_small_one() -> None:
    """2048 long inputs of one request take seconds; a word comes in between."""
    with numpy_server(limits={"max_rows": 4}, delay_s=0.005) as server, ThreadPoolExecutor(1) as pool:
        assert server.request("POST", EMBEDDINGS, {"model": "encoder", "input": [[5] * 60] * 16}).status == 200
        large = pool.submit(server.request, "POST", EMBEDDINGS, {"model": "encoder", "input": [[5] * 60] * 2048})
        wait_for(lambda: server.metric('llmos_num_requests_running{model_name="encoder"}') == 1)
        for _ in range(3):
            assert server.request("POST", EMBEDDINGS, {"model": "encoder", "input": "cat"}).status == 200
        assert not large.done()
        assert large.result().status == 200
