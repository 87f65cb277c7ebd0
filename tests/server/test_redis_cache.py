"""The response cache in a Redis of its own: shared by servers, and no harm to requests where it is slow, gone or full of other things."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from llmos.runtime.errors import UserError
from llmos.runtime.server.core.http import Reply
from llmos.runtime.server.core.redis_store import MAX_VALUE_BYTES, RedisStore
from llmos.runtime.server.core.response_cache import CacheKey, opened, sealed

from .harness import Answer, Server, language_server, wait_for

HITS = 'llmos_response_cache_hits_total{model_name="%s"}'
pytestmark = pytest.mark.skipif(shutil.which("redis-server") is None, reason="there is no redis-server here")


class Running:
    """A Redis on a port of its own."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.client = redis.Redis(port=self.port, retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0))
        wait_for(self._answers)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.client.close()

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path)
    yield running
    running.stop()


@contextmanager
def server_of(url: str, wait_s: float = 10.0, **options: object) -> Iterator[Server]:
    """wait_s: for a value; long, so that a busy machine makes no difference where time is not what is tested."""
    with language_server(
        digest="model", response_cache_url=url, response_cache_wait_s=wait_s, api_keys=["first", "second"], **options
    ) as server:
        server.key = "first"
        yield server


def chat(server: Server, **fields: object) -> Answer:
    body = {"model": "null", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 12, "seed": 1, **fields}
    return server.request("POST", "/v1/chat/completions", body)


def embed(server: Server, text: str = "cat") -> Answer:
    return server.request("POST", "/v1/embeddings", {"model": "encoder", "input": text})


def warm(server: Server, store: Running) -> None:
    """Wait until the server has reached the Redis: then it keeps what is asked for."""
    count = store.client.dbsize()

    def kept() -> bool:
        embed(server, f"warm {time.monotonic()}")
        return bool(store.client.dbsize() > count)  # type: ignore[operator]

    wait_for(kept)


@pytest.mark.slow
def test_servers_share_answers_that_nobody_else_can_read(store: Running) -> None:
    with server_of(store.url) as first, server_of(store.url) as second:
        warm(first, store)
        warm(second, store)
        store.client.flushall()
        # What was late for one of them, it has computed itself, and kept under an id of its own.
        wait_for(lambda: chat(first).body == chat(second).body)
        wait_for(lambda: chat(first, stream=True).body == chat(second, stream=True).body)
        assert embed(first).body == embed(second).body
        wait_for(lambda: store.client.dbsize() == 3)
        second.key = "second"
        hits = second.metric(HITS % "null")
        chat(second)
        assert second.metric(HITS % "null") == hits, "another's answer is its own"
        for key in list(store.client.scan_iter()):
            assert key.startswith(b"llmos:response:") and len(key) == 15 + 64
            value = store.client.get(key)
            assert b"choices" not in value and b"embedding" not in value  # type: ignore[operator]
            assert 0 < store.client.pttl(key) <= 300_000  # type: ignore[operator]


def test_foreign_values_are_no_answers(store: Running) -> None:
    with server_of(store.url) as server:
        warm(server, store)
        store.client.flushall()
        expected = chat(server)
        wait_for(lambda: store.client.dbsize() == 1)
        (key,) = store.client.keys()  # type: ignore[misc]
        value: bytes = store.client.get(key)  # type: ignore[assignment]
        foreign = [b"", b"x", value[:-1], value + b"x", value[1:], b"\x80\x04cos\nsystem\n", bytes(20 << 20)]
        foreign.append(sealed(CacheKey.of("another"), Reply(200, b"{}")))
        for each in foreign:
            store.client.set(key, each)
            assert chat(server).json()["choices"] == expected.json()["choices"]
        # At once, since the server may still be writing what it has computed.
        store.client.pipeline().delete(key).rpush(key, "a", "list").execute()
        assert chat(server).json()["choices"] == expected.json()["choices"]
        wait_for(lambda: bool(store.client.delete(key) and store.client.set(key, value)) and chat(server).body == expected.body)


@pytest.mark.slow
def test_a_redis_that_stops_and_comes_back(store: Running) -> None:
    with server_of(store.url, wait_s=0.05) as server:
        warm(server, store)
        chat(server)
        os.kill(store.process.pid, signal.SIGSTOP)
        begin_s = time.monotonic()
        assert {chat(server, max_tokens=1).status for _ in range(20)} == {200}
        assert time.monotonic() - begin_s < 10, "20 requests to a Redis that is waited for would take 20 s"
        assert server.metric("llmos_response_cache_failures_total") > 0
        os.kill(store.process.pid, signal.SIGCONT)
        hits = server.metric(HITS % "null")
        wait_for(lambda: chat(server).status == 200 and server.metric(HITS % "null") > hits)
        store.stop()
        assert chat(server).status == 200
        store.start()
        wait_for(lambda: chat(server).status == 200 and server.metric(HITS % "null") > hits + 1)
        said = [line for line in server.log if "Redis" in line]
        assert any("serving without it" in line for line in said) and any("answers again" in line for line in said)
        assert len(said) < 10


@pytest.mark.slow
def test_a_redis_that_is_not_there_or_swallows_everything(tmp_path: Path) -> None:
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen(0)
        fill = [socket.socket() for _ in range(4)]
        for each in fill:
            each.setblocking(False)
            each.connect_ex(hole.getsockname())
        for url in (f"redis://:secret@127.0.0.1:{hole.getsockname()[1]}", "redis://127.0.0.1:1", "redis://no.such.host.invalid:6379"):
            with server_of(url) as server:
                begin_s = time.monotonic()
                assert {embed(server).status for _ in range(50)} == {200}
                assert time.monotonic() - begin_s < 10
                assert not any("secret" in line for line in server.log)
        for each in fill:
            each.close()


def test_urls_that_are_none() -> None:
    for url in ("http://localhost", "redis://localhost:port", "localhost"):
        with pytest.raises(UserError, match="URL"):
            RedisStore(url, 10, lambda: None)


def test_no_value_is_waited_for_longer_than_its_limit(store: Running) -> None:
    """Without a server around it, whose own work takes time as well."""
    failures: list[int] = []

    async def run() -> list[float]:
        found = RedisStore(store.url, 10, lambda: failures.append(1), 0.2)
        name = bytes(32)
        while not await found.get(name):
            found.put(name, b"value")
            await asyncio.sleep(0.01)
        failures.clear()
        os.kill(store.process.pid, signal.SIGSTOP)
        took = []
        for _ in range(50):
            begin_s = time.perf_counter()
            assert await found.get(name) is None
            took.append(time.perf_counter() - begin_s)
        os.kill(store.process.pid, signal.SIGCONT)
        found.close()
        return took

    took = sorted(asyncio.run(run()))
    assert failures == [1]
    assert sum(took) < 5, "who fails once is not asked again before it has answered: 50 times would take 10 s"


def test_values_are_bounded() -> None:
    key = CacheKey.of("a")
    reply = Reply(200, b"x" * 10, b"text/plain", [(b"a", b"b")], [b"y", b"z"])
    found = opened(key, sealed(key, reply))
    assert found == Reply(200, b"x" * 10 + b"yz", b"text/plain", [(b"a", b"b")])
    assert opened(CacheKey.of("b"), sealed(key, reply)) is None
    assert len(sealed(key, Reply(200, bytes(MAX_VALUE_BYTES - 512)))) <= MAX_VALUE_BYTES
