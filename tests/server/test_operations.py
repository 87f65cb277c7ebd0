"""Overload, deadlines, cancellation, keys, limits, logs, metrics and shutdown of a real server process."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from .harness import Answer, Server, affine_body, numpy_server, wait_for

RUNNING = 'llmos_num_requests_running{model_name="affine"}'
WAITING = 'llmos_num_requests_waiting{model_name="affine"}'


def ended(server: Server, reason: str) -> float:
    return server.metric(f'llmos_request_success_total{{finished_reason="{reason}",model_name="affine"}}')


def test_it_is_ready_as_soon_as_it_says_where_it_serves() -> None:
    with numpy_server() as server:
        assert server.get("/v2/health/ready").json() == {"ready": True}


def test_a_full_queue_gives_429_and_the_server_recovers() -> None:
    with numpy_server(max_queue=3, hold=True) as server, ThreadPoolExecutor(8) as pool:
        first = pool.submit(server.affine, [1, 2, 3])
        wait_for(lambda: server.metric(RUNNING) == 1)
        queued = [pool.submit(server.affine, [1, 2, 3]) for _ in range(2)]
        wait_for(lambda: server.metric(WAITING) == 2)
        refused = server.affine([1, 2, 3])
        assert refused.status == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert "queue of 'affine' is full" in refused.json()["error"]
        server.release()
        assert [future.result().status for future in (first, *queued)] == [200] * 3
        assert server.metric('llmos_request_rejected_total{model_name="affine"}') == 1
        assert server.affine([1, 2, 3]).status == 200


def test_timeouts_give_504() -> None:
    with numpy_server(timeout_s=1.0, hold=True) as server:
        assert server.affine([1, 2, 3], {"X-Request-Timeout": "0.4"}).status == 504, "the call itself is still held"
        by_parameter = server.request("POST", "/v2/models/affine/infer", {**affine_body([1, 2, 3]), "parameters": {"timeout": 400_000}})
        assert by_parameter.status == 504
        longer = server.affine([1, 2, 3], {"X-Request-Timeout": "100"})
        assert longer.status == 504, "a client can't ask for more than the server allows"
        assert "timed out" in longer.json()["error"]
        assert ended(server, "timeout") == 3
        server.release()
        wait_for(lambda: server.metric(RUNNING) + server.metric(WAITING) == 0)


def test_a_client_that_goes_away_frees_its_place() -> None:
    with numpy_server(hold=True) as server, ThreadPoolExecutor(2) as pool:
        running = pool.submit(server.affine, [1, 2, 3])
        wait_for(lambda: server.metric(RUNNING) == 1)
        leaving = send_raw(server, post(json.dumps(affine_body([1, 2, 3])).encode()))
        wait_for(lambda: server.metric(WAITING) == 1)
        leaving.close()
        wait_for(lambda: server.metric(WAITING) == 0)
        assert not running.done(), "it was canceled while the other one was running"
        assert ended(server, "abort") == 1
        server.release()
        assert running.result().status == 200


def test_sigterm_drains_and_exits_0() -> None:
    with numpy_server(hold=True) as server, ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(server.affine, [1, 2, 3])]
        wait_for(lambda: server.metric(RUNNING) == 1)
        jobs.append(pool.submit(server.affine, [4, 5, 6]))
        wait_for(lambda: server.metric(WAITING) == 1)
        server.process.terminate()
        wait_for(lambda: server.get("/v2/health/ready").status == 503)
        assert server.get("/v2/health/live").status == 200
        assert server.get("/v2/models/affine/ready").status == 503
        refused = server.affine([1, 2, 3])
        assert (refused.status, "retry-after" in refused.headers) == (503, True)
        server.release()
        assert [job.result().status for job in jobs] == [200, 200]
        assert server.process.wait(60) == 0


def test_an_idle_server_does_not_wait_for_its_grace_period() -> None:
    with numpy_server(grace_s=3600) as server:
        assert server.stop() == 0


def test_the_grace_period_ends() -> None:
    with numpy_server(hold=True, grace_s=0.2) as server, ThreadPoolExecutor(1) as pool:
        job = pool.submit(server.affine, [1, 2, 3])
        wait_for(lambda: server.metric(RUNNING) == 1)
        assert server.stop() == 1
        assert job.result().status == 503


def test_api_keys() -> None:
    with numpy_server(api_keys=["first-key", "second-key"]) as server:
        assert server.get("/v2/health/live").status == server.get("/v2/health/ready").status == 200
        for path in ("/v2", "/v2/models/affine", "/v2/models/affine/ready", "/v1/models", "/metrics", "/docs", "/openapi.json", "/nothing"):
            answer = server.get(path)
            assert (path, answer.status) == (path, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
        for value in ("Bearer second-ke", "Bearer ", "Bearer first-key second-key", "Basic first-key", "first-key"):
            assert server.affine([1, 2, 3], {"Authorization": value}).status == 401
        assert server.affine([1, 2, 3], {"Authorization": "Bearer second-key"}).status == 200
        assert server.affine([1, 2, 3], {"X-Api-Key": "first-key"}).status == 200
        assert server.get("/v1/models").json()["error"]["code"] == "invalid_api_key"
        assert not any("first-key" in line for line in server.log)


def test_keys_have_quotas() -> None:
    quotas = {"requests": {"requests_per_min": 3}, "tokens": {"tokens_per_min": 100}, "free": {}}
    with numpy_server(api_keys=list(quotas), quotas=quotas) as server:

        def statuses(key: str, num: int, path: str = "/v1/embeddings") -> list[int]:
            body = {"model": "encoder", "input": [[5] * 40]}
            answers = [server.request("POST", path, body, {"X-Api-Key": key}) for _ in range(num)]
            limited.extend(answer for answer in answers if answer.status == 429)
            return [answer.status for answer in answers]

        limited: list[Answer] = []
        assert statuses("requests", 4) == [200, 200, 200, 429]
        assert 15 <= int(limited[-1].headers["retry-after"]) <= 20
        assert statuses("tokens", 5)[:4] == [200, 200, 200, 429], "the third overdraws it"
        assert 10 <= int(limited[-1].headers["retry-after"]) <= 14
        assert limited[-1].json()["error"]["code"] == "rate_limit_exceeded"
        assert statuses("free", 10) == [200] * 10
        assert statuses("wrong", 1) == [401]
        assert server.request("GET", "/v1/models", b"", {"X-Api-Key": "requests"}).status == 200, "only calls of models count"


def test_body_size_limit() -> None:
    with numpy_server(max_body_bytes=1000) as server:
        for body in (b" " * 1001, b" " * 300_000):
            answer = server.request("POST", "/v2/models/affine/infer", body)
            assert answer.status == 413
            assert "larger than 1000 bytes" in answer.json()["error"]
        chunked = send_raw(
            server, b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"400\r\n" + b" " * 1024 + b"\r\n"
        )
        assert read_status(chunked) == 413
        bomb = send_raw(server, post(gzip_of(b" " * 10_000_000), b"Content-Encoding: gzip\r\n"))
        assert read_status(bomb) == 413
        assert server.affine([1, 2, 3]).status == 200


def test_request_ids_and_access_log(server: Server) -> None:
    assert server.affine([1, 2, 3], {"X-Request-Id": "my-id-1"}).headers["x-request-id"] == "my-id-1"
    made = server.affine([1, 2, 3], {"X-Request-Id": 'bad"id'}).headers["x-request-id"]
    assert len(made) == 32

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in server.log if '"my-id-1"' in line]

    wait_for(lambda: bool(lines()))
    line = lines()[0]
    assert {key: line[key] for key in ("method", "path", "status", "model", "num_items")} == {
        "method": "POST",
        "path": "/v2/models/affine/infer",
        "status": 200,
        "model": "affine",
        "num_items": 1,
    }
    assert line["duration_ms"] > 0


def test_metrics_have_the_known_names(server: Server) -> None:
    before = ended(server, "stop")
    server.affine([1, 2, 3])
    assert ended(server, "stop") == before + 1
    text = server.get("/metrics").body.decode()
    for name in ("e2e_request_latency_seconds", "request_queue_time_seconds", "batch_size", "batch_run_time_seconds"):
        assert f'llmos_{name}_bucket{{le="' in text
    assert server.metric(RUNNING) == server.metric(WAITING) == 0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/v1/nothing", 404), ("GET", "/v2/models/affine/infer", 405), ("POST", "/v2", 405),
     ("POST", "/v2/models/affine/versions/2/infer", 404), ("GET", "/v2/models/%2e%2e/x", 404), ("DELETE", "/v2/models/affine", 405)],
)  # fmt: skip
def test_unknown_routes(server: Server, method: str, path: str, status: int) -> None:
    answer = server.request(method, path)
    assert answer.status == status
    assert answer.json()["error"]


BROKEN_HTTP = [
    b"\r\n\r\n\r\n",
    b"GET\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01",
    b"POST /v2/models/affine/infer HTTP/1.1\r\nHost: x\r\nContent-Length: nine\r\n\r\n",
    b"POST /v2/models/affine/infer HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"POST /v2/models/affine/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
    b"POST /v2/models/affine/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v2/models/\xff\xfe/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    b"GET http://[::1/ HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    b"GET /v2 HTTP/1.1\r\nHost: x\r\nBad Header\x00: y\r\n\r\n",
    b"GET /v2 HTTP/1.1\r\n" + b"A: " + b"b" * 200_000 + b"\r\n\r\n",
    b"POST /v2/models/affine/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nshort",
]


@pytest.mark.parametrize("data", BROKEN_HTTP, ids=range(len(BROKEN_HTTP)))
def test_broken_http_never_kills_the_server(server: Server, data: bytes) -> None:
    connection = send_raw(server, data)
    connection.shutdown(socket.SHUT_WR)
    status = read_status(connection)
    assert status is None or status < 500
    assert server.affine([1, 2, 3]).status == 200


def test_a_slow_upload_times_out() -> None:
    with numpy_server(timeout_s=0.2) as server:
        connection = send_raw(server, b"POST /v2/models/affine/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nslow")
        assert read_status(connection) == 408


def test_pipelined_and_keep_alive_requests(server: Server) -> None:
    body = json.dumps(affine_body([1, 2, 3])).encode()
    connection = send_raw(server, post(body) * 3)
    received = b""
    while received.count(b"HTTP/1.1 200 OK") < 3 or received.count(b'"model_name"') < 3:
        chunk = connection.recv(65536)
        assert chunk, received
        received += chunk
    connection.close()


def test_memory_does_not_grow_with_requests(server: Server) -> None:
    def call(_: int) -> Answer:
        return server.affine([1, 2, 3])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(200)))
        before = server.metric("process_resident_memory_bytes")
        list(pool.map(call, range(600)))
    assert server.metric("process_resident_memory_bytes") - before < 8 << 20
    assert server.metric(RUNNING) == server.metric(WAITING) == 0


def post(body: bytes, headers: bytes = b"") -> bytes:
    length = str(len(body)).encode()
    return b"POST /v2/models/affine/infer HTTP/1.1\r\nHost: x\r\n" + headers + b"Content-Length: " + length + b"\r\n\r\n" + body


def gzip_of(data: bytes) -> bytes:
    import gzip

    return gzip.compress(data)


def send_raw(server: Server, data: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    connection.sendall(data)
    return connection


def read_status(connection: socket.socket) -> int | None:
    """The status of the first response; None if the server closed without one."""
    with connection:
        try:
            line = connection.makefile("rb").readline()
        except ConnectionError:
            return None
    return int(line.split()[1]) if line else None


def test_a_full_log_pipe_stops_nothing() -> None:
    """Nobody reads stdout: some 400 lines fill the pipe."""
    import subprocess
    import sys

    from .harness import SCRIPT

    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), json.dumps({"gate": None})], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        server = Server(process)
        server.port = int(next(line for line in process.stderr if "serving" in line).split("127.0.0.1:")[1].split()[0])
        path = "/" + "a" * 30_000
        for _ in range(40):
            assert server.get(path).status == 404
        assert server.affine([1, 2, 3]).status == 200
        assert server.stop() == 0
    finally:
        process.kill()
        process.wait()
