"""Mixed load for a while: right answers beside clients that leave, send garbage, read slowly or send too much; memory stays flat.

LLMOS_SOAK_S says how long each test takes, in seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import pytest

from .attack import connect, post, read
from .harness import Server, affine_body, language_server, numpy_server, wait_for

SECONDS = float(os.environ.get("LLMOS_SOAK_S", "15"))
INFER, EMBEDDINGS, CHAT = "/v2/models/affine/infer", "/v1/embeddings", "/v1/chat/completions"
Client = Callable[[Server, Random, Counter[str]], None]


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


def run_clients(server: Server, clients: Sequence[Client]) -> Counter[str]:
    """Let six threads act as clients chosen at random until the time is over. Memory of the second half must stay flat."""
    seen: Counter[str] = Counter()
    end_s = time.monotonic() + SECONDS
    stop = threading.Event()

    def act(number: int) -> None:
        random = Random(number)
        try:
            while time.monotonic() < end_s and not stop.is_set():
                random.choice(clients)(server, random, seen)
        finally:
            stop.set()

    with ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(act, number) for number in range(6)]
        stop.wait(SECONDS / 2)
        before = server.metric("process_resident_memory_bytes")
        for job in jobs:
            job.result()
    after = server.metric("process_resident_memory_bytes")
    print(dict(seen), f"{before / 2**20:.0f} to {after / 2**20:.0f} MiB")
    assert after - before < 64 << 20
    return seen


def assert_stops_quietly(server: Server, but: str = "") -> None:
    """but: the message of errors that the model raises."""
    assert server.stop() == 0
    raised = [line for line in server.log if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    assert not [line for line in raised if not but or but not in line], server.log


@pytest.mark.slow
def test_mixed_load() -> None:
    with numpy_server(access_log=False) as server:
        seen = run_clients(server, [honest, honest, honest, leaves, garbage, reads_slowly, sends_much])
        assert seen["honest 200"] > 10
        assert server.metric('llmos_num_requests_running{model_name="encoder"}') == 0
        assert_stops_quietly(server)


class Chats:
    """Clients of a language model, who know what it answers: the text of each chat when nobody else is there."""

    def __init__(self, server: Server) -> None:
        lengths = (1, 9, 40, 120)
        self.bodies = [self._body(f"{words} cats" + " sat" * words, seed) for words in lengths for seed in (0, 1)]
        self.texts = [server.request("POST", CHAT, body).json()["choices"][0]["message"]["content"] for body in self.bodies]

    @staticmethod
    def _body(content: str, seed: int) -> dict[str, Any]:
        return {"model": "null", "messages": [{"role": "user", "content": content}], "seed": seed, "temperature": 1.0, "max_tokens": 40}

    def asks(self, server: Server, random: Random, seen: Counter[str]) -> None:
        number = random.randrange(len(self.bodies))
        answer = server.request("POST", CHAT, self.bodies[number])
        if answer.status == 200:
            assert answer.json()["choices"][0]["message"]["content"] == self.texts[number], "a wrong answer"
        seen[f"chat {answer.status}"] += 1

    def streams(self, server: Server, random: Random, seen: Counter[str]) -> None:
        number = random.randrange(len(self.bodies))
        answer = server.request("POST", CHAT, {**self.bodies[number], "stream": True})
        if answer.status == 200:
            events = [line.removeprefix("data: ") for line in answer.body.decode().splitlines() if line.startswith("data: ")]
            choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
            assert events[-1] == "[DONE]" and choices[-1]["finish_reason"] in ("stop", "length")
            assert "".join(choice["delta"].get("content") or "" for choice in choices) == self.texts[number], "a wrong answer"
        seen[f"stream {answer.status}"] += 1

    def forms(self, server: Server, random: Random, seen: Counter[str]) -> None:
        schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["n"]}
        form = {"type": "json_schema", "json_schema": {"name": "one", "schema": schema | {"additionalProperties": False}}}
        answer = server.request("POST", CHAT, {**self.bodies[0], "max_tokens": 60, "response_format": form})
        if answer.status == 200 and (choice := answer.json()["choices"][0])["finish_reason"] == "stop":
            assert list(json.loads(choice["message"]["content"])) == ["n"]
        seen[f"form {answer.status}"] += 1

    def leaves(self, server: Server, random: Random, seen: Counter[str]) -> None:
        """Close after a part of the request, or of the answer."""
        body = {**random.choice(self.bodies), "stream": True, "n": random.choice([1, 4]), "max_tokens": 300}
        data = post(CHAT, json.dumps(body).encode())
        with connect(server, data[: random.choice([len(data), random.randrange(1, len(data))])]) as connection:
            if random.random() < 0.5:
                connection.settimeout(0.2)
                with contextlib.suppress(OSError):
                    connection.recv(random.randrange(1, 5000))
        seen["left"] += 1

    def reads_slowly(self, server: Server, random: Random, seen: Counter[str]) -> None:
        body = {**random.choice(self.bodies), "stream": True, "n": 4, "max_tokens": 200}
        with connect(server, post(CHAT, json.dumps(body).encode(), "Connection: close")) as connection:
            while connection.recv(512):
                time.sleep(0.001)
        seen["slow"] += 1

    def is_refused(self, server: Server, random: Random, seen: Counter[str]) -> None:
        wrong: dict[str, Any] = random.choice(
            [
                {"messages": [{"role": "user", "content": "cat " * 5000}]},
                {"messages": []},
                {"temperature": -1},
                {"n": 10**6},
                {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}},
            ]
        )
        answer = server.request("POST", CHAT, {**self.bodies[0], **wrong})
        assert 400 <= answer.status < 500, (wrong, answer.status)
        assert answer.json()["error"]["message"]
        seen[f"refused {answer.status}"] += 1


@pytest.mark.slow
def test_mixed_load_of_chats() -> None:
    with language_server(access_log=False) as server:
        chats = Chats(server)
        clients = [chats.asks, chats.asks, chats.streams, chats.streams, chats.forms, chats.leaves, chats.reads_slowly, chats.is_refused]
        seen = run_clients(server, clients)
        assert seen["chat 200"] > 10 and seen["stream 200"] > 10
        wait_for(lambda: server.metric('llmos_num_requests_running{model_name="null"}') == 0)
        assert server.metric('llmos_kv_cache_usage_perc{model_name="null"}') == 0
        assert_stops_quietly(server, but="a token of the step fails")
