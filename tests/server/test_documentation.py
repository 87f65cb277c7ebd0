"""The OpenAPI document says what comes, of every route; the page needs nothing from elsewhere."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .harness import Answer, Server, affine_body, numpy_server

VALUES = {"{model}": ("affine", "none"), "{version}": ("1", "7")}
BODIES: dict[str, Any] = {
    "infer": affine_body([1, 2, 3]),
    "/v1/embeddings": {"model": "encoder", "input": "cat"},
    "/v1/completions": {"model": "encoder", "prompt": "cat"},
    "/v1/chat/completions": {"model": "none", "messages": []},
    **{end: {} for end in ("index", "load", "unload")},
}


@pytest.fixture(scope="module")
def document(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = server.get("/openapi.json").json()
    return found


def filled(path: str) -> list[str]:
    paths = [path]
    for name, values in VALUES.items():
        paths = [each.replace(name, value) for each in paths for value in values]
    return list(dict.fromkeys(paths))


def tried(server: Server, method: str, path: str) -> list[Answer]:
    if method == "get":
        return [server.get(path)]
    body = next(body for end, body in BODIES.items() if path.endswith(end))
    bodies = [json.dumps(body).encode(), b"", b"[]", b"{}", b"\xff"]
    return [server.request("POST", path, each) for each in bodies] + [
        server.request("POST", path, b"x", {"Content-Encoding": "br"}),
        server.request("POST", path, b" " * (65 << 20)),
        server.request("POST", path, bodies[0], {"X-Request-Timeout": "0"}),
        server.request("POST", path, bodies[0], {"X-Request-Timeout": "1e-9"}),
        server.request("POST", path, bodies[0], {"A": "b" * 70_000}),
    ]


def statuses(server: Server, document: dict[str, Any], start: str) -> set[int]:
    """Try all routes that start so, and return the statuses that came, each of which was declared."""
    seen = set()
    for template, methods in document["paths"].items():
        if not template.startswith(start):
            continue
        for method, operation in methods.items():
            for answer in (answer for path in filled(template) for answer in tried(server, method, path)):
                declared = operation["responses"].get(str(answer.status))
                assert declared, (method, template, answer)
                assert answer.headers["content-type"].split(";")[0] in declared["content"], (method, template, answer)
                if answer.status >= 400:
                    error = answer.json()["error"]
                    assert isinstance(error, dict if template.startswith("/v1/") else str)
                seen.add(answer.status)
    return seen


def test_every_status_and_type_that_comes_is_declared(server: Server, document: dict[str, Any]) -> None:
    assert statuses(server, document, "/") >= {200, 400, 404, 413, 415, 431, 504}


def test_the_repository_is_in_it_where_clients_may_use_it(document: dict[str, Any]) -> None:
    assert "/v2/repository/index" not in document["paths"]
    with numpy_server(repository_api=True) as running:
        offered = running.get("/openapi.json").json()
        assert statuses(running, offered, "/v2/repository") >= {200, 400, 404, 413, 415, 431}
        answer = running.request("POST", "/v2/repository/index", headers={"Origin": "http://localhost"})
        assert str(answer.status) in offered["paths"]["/v2/repository/index"]["post"]["responses"]


def test_every_route_is_in_it(server: Server, document: dict[str, Any]) -> None:
    for path, allowed in (("/v2/models/affine/infer", "post"), ("/v1/models", "get"), ("/metrics", "get")):
        assert server.request("DELETE", path).status == 405
        assert allowed in next(methods for template, methods in document["paths"].items() if path in filled(template))
    assert "422" not in json.dumps(document)


def test_the_page_needs_nothing_from_elsewhere(server: Server) -> None:
    text = server.get("/docs").body.decode()
    assert "http" not in text.replace("HTTP", "")
    assert "<script" not in text
    assert "POST /v1/chat/completions" in text
