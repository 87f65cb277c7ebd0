"""Mixed load for a while: right answers beside clients that leave, send garbage, read slowly or send too much; memory stays flat."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest

from .attack import connect, post, read
from .harness import Server, affine_body, numpy_server

SECONDS = float(os.environ.get("LLMOS_SOAK_S", "15"))
INFER, EMBEDDINGS = "/v2/models/affine/infer", "/v1/embeddings"


def honest(server: Server, random: Random, seen: Counter[str]) -> None:
    values = [float(random.randrange(100)) for _ in range(3)]
    body = json.dumps(affine_body(values)).encode() + b" " * random.choice([0, 0, 100_000])
    answer = server.request("POST", INFER, body)
    if answer.status == 200:
        assert answer.json()["outputs"][0]["data"] == [2 * value + 1 for value in values], "a wrong answer"
    seen[f"honest {answer.status}"] += 1


def leaves(server: Server, random: Random, seen: Counter[str]) -> None:
    data = post(EMBEDDINGS, json.dumps({"model": "encoder", "input": ["cat sat"] * random.choice([1, 300])}).encode())
    with connect(server, data[: random.randrange(1, len(data) + 1)]):
        time.sleep(random.choice([0, 0.005]))
    seen["left"] += 1


def garbage(server: Server, random: Random, seen: Counter[str]) -> None:
    data = bytearray(post(random.choice([INFER, EMBEDDINGS]), json.dumps(affine_body([1, 2, 3])).encode()))
    for _ in range(3):
        data[random.randrange(len(data))] = random.randrange(256)
    with connect(server, bytes(data)) as connection, contextlib.suppress(OSError):
        connection.settimeout(0.1)
        status = read(connection).status
        assert status in (0, 200, 400, 404, 405, 408, 413, 415, 431, 499), status
    seen["garbage"] += 1


def reads_slowly(server: Server, random: Random, seen: Counter[str]) -> None:
    body = json.dumps({"model": "encoder", "input": [[5, 6]] * 500}).encode()
    with connect(server, post(EMBEDDINGS, body)) as connection:
        received = 0
        while received < 50_000 and (piece := connection.recv(8192)):
            received += len(piece)
            time.sleep(0.001)
    seen["slow"] += 1


def sends_much(server: Server, random: Random, seen: Counter[str]) -> None:
    value = random.choice([[7] * 500_000, "cat " * 300_000, ["cat " * 500] * 200])
    answer = server.request("POST", EMBEDDINGS, {"model": "encoder", "input": value})
    assert answer.status in (200, 400, 429, 503)
    seen[f"much {answer.status}"] += 1


@pytest.mark.slow
def test_mixed_load() -> None:
    """LLMOS_SOAK_S says how long."""
    with numpy_server(access_log=False) as server:
        seen: Counter[str] = Counter()
        end_s = time.monotonic() + SECONDS
        stop = threading.Event()

        def client(number: int) -> None:
            random = Random(number)
            try:
                while time.monotonic() < end_s and not stop.is_set():
                    random.choice([honest, honest, honest, leaves, garbage, reads_slowly, sends_much])(server, random, seen)
            finally:
                stop.set()

        with ThreadPoolExecutor(6) as pool:
            jobs = [pool.submit(client, number) for number in range(6)]
            time.sleep(SECONDS / 2)
            before = server.metric("process_resident_memory_bytes")
            for job in jobs:
                job.result()
        after = server.metric("process_resident_memory_bytes")
        print(dict(seen), f"{before / 2**20:.0f} to {after / 2**20:.0f} MiB")
        assert seen["honest 200"] > 10
        assert after - before < 64 << 20
        assert server.metric('llmos_num_requests_running{model_name="encoder"}') == 0
        assert server.stop() == 0
        assert not [line for line in server.log if "Traceback" in line], server.log
