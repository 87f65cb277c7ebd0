"""Raw connections of misbehaving clients."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from .harness import Server


@dataclass(frozen=True)
class Raw:
    """An answer as it came. status: 0 if the server closed without one."""

    status: int
    headers: dict[str, str]
    body: bytes


def connect(server: Server, data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    connection.sendall(data)
    return connection


def post(path: str, body: bytes, *headers: str) -> bytes:
    head = "\r\n".join((f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers))
    return head.encode() + b"\r\n\r\n" + body


def read(connection: socket.socket) -> Raw:
    """Read one answer."""
    file = connection.makefile("rb")
    try:
        line = file.readline()
        if not line:
            return Raw(0, {}, b"")
        headers = {}
        while (pair := file.readline().rstrip()) != b"":
            name, _, value = pair.decode().partition(":")
            headers[name.lower()] = value.strip()
        return Raw(int(line.split()[1]), headers, file.read(int(headers.get("content-length", "0"))))
    except ConnectionError:
        return Raw(0, {}, b"")
