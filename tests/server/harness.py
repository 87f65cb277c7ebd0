"""A real server in a process of its own, on a free loopback port."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("serve_models.py")
LANGUAGE_SCRIPT = Path(__file__).with_name("serve_language.py")
_ADMIN = re.compile(r"admin on https?://127\.0\.0\.1:(\d+)")
_GRPC = re.compile(r"gRPC on 127\.0\.0\.1:(\d+)")
_ADDRESS = re.compile(r"serving .* on https?://127\.0\.0\.1:(\d+)")


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Server:
    """log: what it wrote so far to stdout and stderr, line by line. gate: the file that lets held calls go on.

    key: the API key of requests that give none themselves.
    """

    process: subprocess.Popen[str]
    gate: Path | None = None
    port: int = 0
    admin_port: int = 0
    grpc_port: int = 0
    key: str = ""
    log: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def request(
        self,
        method: str,
        path: str,
        body: bytes | object = b"",
        headers: dict[str, str] | None = None,
        timeout_s: float = 60,
        port: int | None = None,
    ) -> Answer:
        """One request on a connection of its own; a body that is not bytes goes as JSON."""
        if self.key:
            headers = {"Authorization": f"Bearer {self.key}", **(headers or {})}
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=timeout_s)
        try:
            connection.request(method, path, body if isinstance(body, bytes) else json.dumps(body).encode(), headers or {})
            response = connection.getresponse()
            return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, headers=headers)

    def admin(self, path: str, body: bytes | object = b"", **headers: str) -> Answer:
        """POST to the admin port."""
        return self.request("POST", path, body, headers, port=self.admin_port)

    def affine(self, values: list[float], headers: dict[str, str] | None = None) -> Answer:
        """y = 2 x + 1 of one row."""
        return self.request("POST", "/v2/models/affine/infer", affine_body(values), headers)

    def metric(self, line_start: str) -> float:
        """The value of the metric whose line starts so, labels included."""
        text = self.get("/metrics").body.decode()
        return next(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(line_start))

    def release(self) -> None:
        """Let all held calls go on, now and later."""
        assert self.gate is not None, "nothing is held: start the server with hold=True"
        self.gate.touch()

    def stop(self, timeout_s: float = 60) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


def affine_body(values: list[float]) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": values}]}


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "timed out waiting"
        time.sleep(0.005)


@contextmanager
def running(command: list[str], gate: Path | None = None, **popen: Any) -> Iterator[Server]:
    """Run a command that serves, until the block ends."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **popen)
    server = Server(process, gate)
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


@contextmanager
def numpy_server(hold: bool = False, script: Path = SCRIPT, **options: Any) -> Iterator[Server]:
    """A server of the numpy models, with these settings. hold: calls of `affine` run until `Server.release()`, not for a time."""
    with tempfile.TemporaryDirectory(prefix="llmos-gate-") as folder:
        gate = Path(folder) / "open" if hold else None
        with running([sys.executable, str(script), json.dumps({**options, "gate": gate and str(gate)})], gate) as server:
            yield server


def language_server(**options: Any) -> AbstractContextManager[Server]:
    """A server of a language model, `null`, and an encoder, with these settings."""
    return numpy_server(script=LANGUAGE_SCRIPT, **options)


def _read(server: Server) -> None:
    assert server.process.stdout is not None
    for line in server.process.stdout:
        server.log.append(line.rstrip("\n"))
        if admin := _ADMIN.search(line):
            server.admin_port = int(admin.group(1))
        if grpc := _GRPC.search(line):
            server.grpc_port = int(grpc.group(1))
        found = _ADDRESS.search(line)
        if found:
            server.port = int(found.group(1))
