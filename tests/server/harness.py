"""A real server in a process of its own, on a free loopback port."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("serve_models.py")
_ADDRESS = re.compile(r"serving .* on http://127\.0\.0\.1:(\d+)")


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Server:
    """log: what it wrote so far to stdout and stderr, line by line."""

    process: subprocess.Popen[str]
    port: int = 0
    log: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def request(
        self, method: str, path: str, body: bytes | object = b"", headers: dict[str, str] | None = None, timeout_s: float = 20
    ) -> Answer:
        """One request on a connection of its own; a body that is not bytes goes as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request(method, path, body if isinstance(body, bytes) else json.dumps(body).encode(), headers or {})
            response = connection.getresponse()
            return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, headers=headers)

    def affine(self, values: list[float], headers: dict[str, str] | None = None) -> Answer:
        """y = 2 x + 1 of one row."""
        return self.request("POST", "/v2/models/affine/infer", affine_body(values), headers)

    def metric(self, line_start: str) -> float:
        """The value of the metric whose line starts so, labels included."""
        text = self.get("/metrics").body.decode()
        return next(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(line_start))

    def stop(self, timeout_s: float = 20) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


def affine_body(values: list[float]) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": values}]}


def wait_for(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "timed out waiting"
        time.sleep(0.005)


@contextmanager
def running(command: list[str], **popen: Any) -> Iterator[Server]:
    """Run a command that serves, until the block ends."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **popen)
    server = Server(process)
    reader = threading.Thread(target=_read, args=(server,), daemon=True)
    reader.start()
    try:
        wait_for(lambda: bool(server.port) or process.poll() is not None)
        assert server.port, "\n".join(server.log)
        yield server
    finally:
        process.kill()
        process.wait()
        reader.join(5)


def numpy_server(**options: Any) -> Any:
    """A server of the numpy models, with these settings."""
    return running([sys.executable, str(SCRIPT), json.dumps(options)])


def _read(server: Server) -> None:
    assert server.process.stdout is not None
    for line in server.process.stdout:
        server.log.append(line.rstrip("\n"))
        found = _ADDRESS.search(line)
        if found:
            server.port = int(found.group(1))
