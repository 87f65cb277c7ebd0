"""Errors are short, whatever a client sends, and so are the lines of the log."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest

from .harness import Server

LONG = "é" + "x" * 20_000
MOST_BYTES = 2_000  # of an answer
TEXT = {"model": "null", "prompt": "a"}
INPUT = {"name": "input_ids", "datatype": "INT64", "shape": [1, 1], "data": [1]}
COMPLETIONS, INFER = "/v1/completions", "/v2/models/encoder/infer"

CASES: list[tuple[str, Any]] = [
    *((COMPLETIONS, {**TEXT, **fields}) for fields in (
        {"model": LONG}, {LONG: 1}, {"structured_outputs": {LONG: 1}}, {"structured_outputs": {"regex": LONG, LONG: "a"}},
        {"structured_outputs": LONG}, {"structured_outputs": [LONG]}, {"structured_outputs": {"json_object": LONG}},
        {"structured_outputs": {"json": LONG}}, {"guided_regex": f"({LONG}"}, {"guided_grammar": f"start: {LONG}"},
        {"guided_json": {"type": LONG}}, {"guided_json": {"$ref": LONG}}, {"response_format": {"type": LONG}}, {"temperature": LONG},
        {"n": LONG}, {"seed": LONG}, {"stop": {LONG: 1}}, {"stop": [3, LONG]}, {"logit_bias": {LONG: 1}}, {"logit_bias": {"1": LONG}},
        {"ignore_eos": LONG}, {"stop_token_ids": LONG}, {"stop_token_ids": [LONG]}, {"prompt": {LONG: 1}}, {"stream": LONG},
        {"stream": True, "stream_options": {LONG: True}}, {"best_of": LONG}, {"max_tokens": LONG}, {"echo": LONG},
    )),
    *(("/v1/chat/completions", {"model": "null", "messages": messages}) for messages in (
        LONG, [LONG], [{"role": [LONG], "content": "a"}], [{"role": "user", "content": {LONG: 1}}], [{"role": "user", "tool_calls": LONG}],
        [{"role": "user", "content": [{"type": LONG}]}],
    )),
    *(("/v1/embeddings", fields) for fields in (
        {"model": LONG}, {"model": "encoder", "input": {LONG: 1}}, {"model": "encoder", "input": "a", "encoding_format": LONG},
        {"model": "encoder", "input": "a", "dimensions": LONG},
    )),
    *((INFER, {"inputs": [{**INPUT, **fields}]}) for fields in (
        {"name": LONG}, {"datatype": LONG}, {"shape": LONG}, {"shape": [LONG]}, {"shape": list(range(5000))}, {"data": [LONG]},
        {"parameters": LONG}, {"parameters": {"binary_data_size": LONG}},
    )),
    (INFER, {"inputs": [{**INPUT, "name": LONG}, {**INPUT, "name": LONG}]}),
    (INFER, {"inputs": [INPUT], "outputs": [{"name": LONG}]}),
    (INFER, {"inputs": [INPUT], "id": [LONG]}),
    (f"/v2/models/{quote(LONG)}/infer", {"inputs": []}),
    (f"/v2/models/encoder/versions/{quote(LONG)}/infer", {"inputs": []}),
    (f"/{quote(LONG)}", {}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body"), CASES, ids=range(len(CASES)))
def test_what_a_client_sends_is_quoted_in_part(served: Server, path: str, body: Any) -> None:
    num_lines = len(served.log)
    answer = served.request("POST", path, body)
    assert 400 <= answer.status < 500, answer
    assert len(answer.body) < MOST_BYTES
    error = answer.json()["error"]
    message = error["message"] if path.startswith("/v1") else error
    assert 0 < len(message) <= 500
    assert all(len(line) < 2 * MOST_BYTES for line in served.log[num_lines:])


@pytest.mark.parametrize(
    "header", ["Content-Encoding", "X-Request-Timeout", "Inference-Header-Content-Length", "X-Request-Id", "Authorization"]
)
def test_a_header_is_quoted_in_part(served: Server, header: str) -> None:
    answer = served.request("POST", INFER, {"inputs": [INPUT]}, {header: "x" * 20_000})
    assert 400 <= answer.status < 500, answer
    assert len(answer.body) < MOST_BYTES
    assert len(json.dumps(answer.headers)) < MOST_BYTES


@pytest.mark.parametrize("path", [COMPLETIONS, INFER, "/v1/models", "/v2/models/encoder", "/health", "/metrics"])
def test_a_path_with_a_slash_behind_it_is_unknown(served: Server, path: str) -> None:
    """A redirection would name the address that the client sent as Host, and the scheme of whatever stands before the server."""
    for method in ("GET", "POST"):
        answer = served.request(method, path + "/", {} if method == "POST" else b"")
        assert answer.status == 404 and "location" not in answer.headers
