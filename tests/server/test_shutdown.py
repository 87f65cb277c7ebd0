"""The end of a server: what is accepted is finished and read, what never came is not waited for."""

from __future__ import annotations

import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from .attack import connect, post, read
from .harness import Server, affine_body, numpy_server, wait_for

INFER = "/v2/models/affine/infer"
RUNNING = 'llmos_num_requests_running{model_name="affine"}'


def slow_reader(server: Server, request: bytes) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    connection.settimeout(60)
    connection.sendall(request)
    return connection


@pytest.mark.slow
def test_an_answer_that_is_being_read_is_not_cut() -> None:
    body = json.dumps({"model": "encoder", "input": [[5, 6]] * 2048}).encode()
    with numpy_server(width=1024) as server, slow_reader(server, post("/v1/embeddings", body)) as connection:
        wait_for(lambda: server.metric('llmos_request_success_total{finished_reason="stop",model_name="encoder"}') == 1)
        server.process.terminate()
        wait_for(lambda: server.get("/v2/health/ready").status == 503)
        time.sleep(6)
        answer = read(connection)
        assert (answer.status, len(answer.body)) == (200, int(answer.headers["content-length"]))
        assert len(json.loads(answer.body)["data"]) == 2048
        assert server.process.wait(60) == 0


def test_an_answer_that_nobody_reads_ends_with_the_grace_and_code_1() -> None:
    body = json.dumps({"model": "encoder", "input": [[5, 6]] * 2048}).encode()
    with numpy_server(grace_s=0.3, width=1024) as server, slow_reader(server, post("/v1/embeddings", body)):
        wait_for(lambda: server.metric('llmos_request_success_total{finished_reason="stop",model_name="encoder"}') == 1)
        assert server.stop() == 1


def test_a_request_without_its_body_is_not_waited_for() -> None:
    with numpy_server(grace_s=3600) as server:
        head = post(INFER, b"x" * 1000)[:-900]
        with connect(server, head) as connection:
            wait_for(lambda: server.get("/v2/health/ready").status == 200)
            server.process.terminate()
            answer = read(connection)
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        assert server.process.wait(60) == 0


def test_a_second_signal_ends_requests_with_503() -> None:
    with numpy_server(grace_s=3600, hold=True) as server, ThreadPoolExecutor(1) as pool:
        job = pool.submit(server.affine, [1, 2, 3])
        wait_for(lambda: server.metric(RUNNING) == 1)
        server.process.terminate()
        wait_for(lambda: server.get("/v2/health/ready").status == 503)
        server.process.send_signal(signal.SIGINT)
        answer = job.result()
        assert (answer.status, "shutting down" in answer.json()["error"]) == (503, True)
        assert server.process.wait(60) == 1


def test_balancers_have_time_to_see_that_it_is_not_ready() -> None:
    with numpy_server(drain_delay_s=3600) as server:
        server.process.terminate()
        wait_for(lambda: server.get("/v2/health/ready").status == 503)
        assert server.affine([1, 2, 3]).status == 200, "it serves on, on new connections too"
        server.process.terminate()
        assert server.process.wait(60) == 0, "a second signal ends the delay, and nothing is cut"


def test_after_the_delay_it_ends() -> None:
    with numpy_server(drain_delay_s=0.2) as server:
        assert server.stop() == 0


def test_uploads_before_the_end_are_served_when_they_come_in_time() -> None:
    request = post(INFER, json.dumps(affine_body([1, 2, 3])).encode())
    with numpy_server(drain_delay_s=0.5) as server, connect(server, request[:-5]) as connection:
        wait_for(lambda: server.get("/v2/health/ready").status == 200)
        server.process.terminate()
        wait_for(lambda: server.get("/v2/health/ready").status == 503)
        connection.sendall(request[-5:])
        assert read(connection).status == 200
        assert server.process.wait(60) == 0
