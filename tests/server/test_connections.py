"""Limits of connections, and habits of clients that servers tend to break."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest

from .attack import connect, post, read
from .harness import Server, affine_body, numpy_server, wait_for

INFER = "/v2/models/affine/infer"
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
BODY = json.dumps(affine_body([1, 2, 3])).encode()


@pytest.fixture(scope="module")
def strict() -> Iterator[Server]:
    """Return a server with few connections and short times."""
    limits = {"max_connections": 8, "header_timeout_s": 0.3, "write_timeout_s": 0.5, "keep_alive_s": 0.3}
    with numpy_server(connections=limits) as running:
        yield running


@pytest.mark.parametrize(
    "head",
    [b"GET /v2 HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 70_000, b"GET /" + b"u" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
     b"GET /v2 HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 200 + b"\r\n",
     b"POST /v2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: " + b"b" * 70_000],
    ids=["header", "url", "many", "trailer"],
)  # fmt: skip
def test_large_heads_get_431(server: Server, head: bytes) -> None:
    with connect(server, head) as connection:
        answer = read(connection)
    assert answer.status in (431, 405) if b"chunked" in head else answer.status == 431
    assert json.loads(answer.body)["error"]
    assert server.affine([1, 2, 3]).status == 200


def test_endless_headers_take_no_memory(server: Server) -> None:
    server.get("/metrics")
    before = server.metric("process_resident_memory_bytes")
    with connect(server, b"GET /v2 HTTP/1.1\r\nHost: x\r\n") as connection:
        with contextlib.suppress(ConnectionError):
            for _ in range(1024):
                connection.sendall(b"a: " + b"b" * 65_000 + b"\r\n")
        assert read(connection).status in (431, 0)
    assert server.metric("process_resident_memory_bytes") - before < 16 << 20


def test_a_head_that_does_not_come_gets_408(strict: Server) -> None:
    with connect(strict, b"GET /v2 HTTP/1.1\r\nHost:") as half, connect(strict) as silent:
        assert read(half).status == 408
        assert silent.recv(1) == b""


def test_idle_connections_close(strict: Server) -> None:
    with connect(strict, LIVE) as connection:
        assert read(connection).status == 200
        assert connection.recv(1) == b""


@pytest.mark.slow
def test_an_answer_that_nobody_reads_is_dropped(strict: Server) -> None:
    values = [0.5] * (3 * 1024)
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1024, 3], "data": values}]}).encode()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with connection:
        connection.connect(("127.0.0.1", strict.port))
        connection.settimeout(60)
        refused = 'llmos_http_requests_total{route="none",status="408"}'
        before = strict.metric(refused) if refused in strict.get("/metrics").body.decode() else 0
        connection.sendall(post(INFER, body) * 200)
        wait_for(lambda: refused in strict.get("/metrics").body.decode() and strict.metric(refused) > before)
        with pytest.raises(ConnectionError):
            while connection.recv(65536):
                pass
            connection.sendall(b"x" * 100)
            connection.sendall(b"x" * 100)


def test_half_open_connections_shut_nobody_out(strict: Server) -> None:
    held = [connect(strict, b"GET /v2 HTTP/1.1\r\nHos") for _ in range(30)]
    try:
        assert strict.get("/v2/health/live").status == 200
    finally:
        for connection in held:
            connection.close()


def test_more_connections_at_work_than_allowed_get_503() -> None:
    with numpy_server(hold=True, connections={"max_connections": 3}) as server, ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(server.affine, [1, 2, 3]) for _ in range(2)]
        wait_for(lambda: server.metric('llmos_num_requests_running{model_name="affine"}') > 0)
        with connect(server, post(INFER, BODY)), connect(server) as refused:
            wait_for(lambda: True)
            answer = read(refused)
        server.release()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert [job.result().status for job in jobs] == [200, 200]


@pytest.mark.parametrize("offer", ["h2c", "websocket"])
@pytest.mark.parametrize("chunked", [False, True])
def test_an_offer_to_upgrade_is_ignored(server: Server, offer: str, chunked: bool) -> None:
    """As Java's HttpClient and `curl --http2` send it with each first request."""
    headers = ("Connection: Upgrade, HTTP2-Settings", f"Upgrade: {offer}", "HTTP2-Settings: AAMAAABkAAQAAP__")
    request = post(INFER, BODY, *headers)
    if chunked:
        request = request.replace(b"Content-Length: %d" % len(BODY), b"Transfer-Encoding: chunked")
        request = request.replace(BODY, b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY))
    for piece in (1, 7, len(request)):
        with connect(server) as connection:
            sent = request + LIVE + LIVE.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
            for start in range(0, len(sent), piece):
                connection.sendall(sent[start : start + piece])
            connection.shutdown(socket.SHUT_WR)
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
        assert received.count(b"HTTP/1.1 200 OK") == 3, received
        assert b"[3.0,5.0,7.0]" in received


def test_a_client_that_closes_its_side_gets_its_answer(server: Server) -> None:
    for headers in ((), ("Connection: close",)):
        with connect(server, post(INFER, BODY, *headers)) as connection:
            connection.shutdown(socket.SHUT_WR)
            assert read(connection).status == 200
            assert connection.recv(1) == b""


def test_host_headers(server: Server) -> None:
    for head, status in ((b"Host: a\r\nHost: b\r\n", 400), (b"", 400), (b"Host: a\r\n", 200)):
        with connect(server, b"GET /v2 HTTP/1.1\r\n" + head + b"\r\n") as connection:
            assert read(connection).status == status
    with connect(server, b"GET /v2 HTTP/1.0\r\n\r\n") as connection:
        assert read(connection).status == 200


@pytest.mark.parametrize("path", ["/v2", "/v2/health/live", "/v1/models", "/metrics", "/openapi.json", "/v2/models/affine"])
def test_head_is_get_without_a_body(server: Server, path: str) -> None:
    whole, head = server.get(path), server.request("HEAD", path)
    assert (whole.status, head.status, head.body) == (200, 200, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]


def test_errors_are_counted_by_route(server: Server) -> None:
    def count(route: str, status: int) -> float:
        return server.metric(f'llmos_http_requests_total{{route="{route}",status="{status}"}}')

    server.request("POST", INFER, b"{")
    server.get("/nothing")
    with connect(server, b"GET\r\n\r\n") as connection:
        read(connection)
    assert count("/v2/models/{model}/infer", 400) >= 1
    assert count("other", 404) >= 1
    assert count("none", 400) >= 1
    with pytest.raises(StopIteration):
        count("/nothing", 404)


def test_a_root_path_may_be_there_or_not() -> None:
    with numpy_server(root_path="/models", api_keys=["key"]) as server:
        for prefix in ("", "/models"):
            assert server.get(f"{prefix}/v2/health/live").status == 200
            assert server.get(f"{prefix}/v1/models").json()["error"]["code"] == "invalid_api_key"
            assert server.request("POST", prefix + INFER, BODY, {"X-Api-Key": "key"}).status == 200


@pytest.mark.slow
def test_few_descriptors_shut_nobody_out() -> None:
    """As under `ulimit -n 64`, with 100 half-open connections and an upload that needs a process."""
    import sys

    from .harness import SCRIPT, running

    command = ["bash", "-c", 'ulimit -n 64; exec "$@"', "serve", sys.executable, str(SCRIPT), json.dumps({"gate": None})]
    with running(command) as server:
        held = [connect(server, b"GET /v2 HTTP/1.1\r\nHos") for _ in range(100)]
        try:
            assert server.get("/v2/health/live").status == 200
            assert server.request("POST", INFER, BODY + b" " * 100_000).status == 200
        finally:
            for connection in held:
                connection.close()


def test_what_follows_a_request_does_not_take_its_answer(server: Server) -> None:
    for rest in (b"\0garbage\r\n\r\n", LIVE + b"\0", b"GET / HTTP/1.1\r\n\r\n"):
        with connect(server, post(INFER, BODY) + rest) as connection:
            answer = read(connection)
            assert (answer.status, b"[3.0,5.0,7.0]" in answer.body) == (200, True)


@pytest.mark.slow
def test_broken_and_abandoned_connections_leave_no_error_behind() -> None:
    """Requests in pipelines, some of them damaged, in pieces, closed at once or on one side: no exception is in the log."""
    kinds = [
        post(INFER, BODY), post(INFER, BODY, "Connection: Upgrade", "Upgrade: h2c"), LIVE, LIVE.replace(b"GET", b"HEAD"),
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n"
        b"2\r\n{}\r\n0\r\nA: b\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nabcde",
        b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\nabc", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]  # fmt: skip
    random = Random(7)
    with numpy_server(access_log=False) as server:
        for _ in range(100):
            data = bytearray(b"".join(random.choice(kinds) for _ in range(random.randint(1, 4))))
            for _ in range(random.choice([0, 0, 1, 3])):
                at = random.randrange(len(data))
                data[at : at + random.choice([0, 1, 10])] = random.choice([b"", b"\0", b"Upgrade: h2c\r\n", b"\r\n"])
            with connect(server) as connection, contextlib.suppress(OSError):
                connection.settimeout(0.02)
                for start in range(0, len(data), size := random.choice([5, 100, 10_000])):
                    connection.sendall(data[start : start + size])
                if random.random() < 0.5:
                    connection.shutdown(socket.SHUT_WR)
                while random.random() < 0.7 and connection.recv(65536):
                    pass
        assert server.affine([1, 2, 3]).status == 200
        assert server.stop() == 0
        assert not [line for line in server.log if "Traceback" in line or "ERROR" in line], server.log
