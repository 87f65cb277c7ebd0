"""Probes of kinds that no other test names: whatever is sent, the answer is a 2xx or a 4xx in the protocol's own form, and soon."""

from __future__ import annotations

import gzip
import http.client
import itertools
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from .harness import Answer, Server, affine_body, language_server, numpy_server
from .language_model import FAILS_AT

SOON_S = 20.0  # a second where nothing else runs: what this finds takes minutes, or for ever
TEMPLATE = """{% for tool in tools or [] %}{{ tool.function.name }}<tool_call>{% endfor %}
{% for m in messages %}{{ m.role }}: {{ m.content }}
{% endfor %}"""


@pytest.fixture(scope="module")
def texts() -> Iterator[Server]:
    """A server of a language model that takes tools, and an encoder, with a cache of answers."""
    with language_server(template=TEMPLATE, response_cache_bytes=1 << 20) as running:
        yield running


@pytest.fixture(scope="module")
def tensors() -> Iterator[Server]:
    """A server of numpy models, with a cache of answers."""
    with numpy_server(response_cache_bytes=1 << 20) as running:
        yield running


@pytest.fixture(scope="module")
def watched() -> Iterator[Server]:
    """A server with an admin port and a health rule."""
    rules = 'rules: [{name: full, when: {memory_bytes: "> 1e15"}, action: {degrade: {max_tokens: 1}}}]'
    with numpy_server(admin=True, health=rules) as running:
        yield running


def check(server: Server, path: str, body: bytes, headers: dict[str, str] | None = None, port: int | None = None) -> Answer:
    """Send a request, and look at the form of its answer."""
    answer = server.request("POST", path, body, headers, timeout_s=SOON_S, port=port)
    late = answer.status == 504 and b'"timeout"' in body  # which is a client's own
    assert 200 <= answer.status < 300 or 400 <= answer.status < 500 or late, (body[:300], answer)
    if answer.status >= 400:
        error = answer.json()["error"]
        assert isinstance(error, dict if path.startswith("/v1/") else str), answer
        assert len(answer.body) < 2000
    elif answer.headers["content-type"] == "text/event-stream":
        assert answer.body.endswith(b"data: [DONE]\n\n") or b'"error"' in answer.body
    elif answer.headers["content-type"] == "application/json":
        answer.json()
    return answer


def check_alive(server: Server) -> None:
    assert server.process.poll() is None
    assert server.get("/v2/health/ready").status == 200
    lines = list(server.log)
    server.log.clear()  # what is one test's is none of the next one's
    assert not [line for line in lines if "Traceback" in line], "\n".join(lines[-40:])


# Any value for any parameter.

_DEEP = b"[" * 900 + b"]" * 900
_DEEP_OBJECT = b'{"a":' * 900 + b"1" + b"}" * 900
_NUMBERS = (
    b"0", b"-0", b"-1", b"1", b"1.0", b"0.5", b"1e0", b"1e400", b"-1e-400", b"129", b"2147483648", b"9223372036854775807",
        b"9223372036854775808",
    b"-9223372036854775809", b"18446744073709551615", b"18446744073709551616", b"1" + b"0" * 400,
)  # fmt: skip
_TEXTS = (
    "", "a", "\0", "a\nb", "é" * 300, "😀", "\u2028", "\ufeff", "null", "__proto__", "../../etc/passwd", "{{ 7 * 7 }}", "%s%n", "<eos>",
        "(a+)+$",
    "x" * 100_000,
)  # fmt: skip
VALUES: tuple[bytes, ...] = (
    b"null", b"true", b"false", b"[]", b"{}", b"[[]]", b"[{}]", b'{"":""}', b"[null]", b"[1,null]", b'["a",1]', b"[[1],[2]]", b"[1.5]",
        b"[true]",
    b"NaN", b"Infinity", b'"\\ud800"', b'["\\ud800"]', b'"\\udc00\\ud800"', b'"\xff"', b'"\xed\xa0\x80"', b"[-1]",
        b"[" + b"1," * 3000 + b"1]",
    b"[" + b'"a",' * 3000 + b'"a"]', b"{" + b",".join(b'"%d":1' % number for number in range(3000)) + b"}", _DEEP, _DEEP_OBJECT,
    b"[" * 5000 + b"]" * 5000, *_NUMBERS, *(json.dumps(text).encode() for text in _TEXTS), *(json.dumps([text]).encode(
        ) for text in _TEXTS),
)  # fmt: skip
_COMMON = (
    "model", "n", "seed", "stop", "temperature", "top_p", "presence_penalty", "frequency_penalty", "logit_bias", "max_tokens", "stream",
        "stream_options",
    "top_k", "min_p", "typical_p", "repetition_penalty", "min_tokens", "stop_token_ids", "ignore_eos", "response_format",
        "structured_outputs",
    "guided_json", "guided_regex", "guided_choice", "guided_grammar", "user", "metadata", "logprobs",
)  # fmt: skip
_CHAT = (
    "messages",
    "max_completion_tokens",
    "top_logprobs",
    "chat_template_kwargs",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "functions",
)
_OTHERS = ("prompt", "echo", "best_of", "suffix", "unknown")
FIELDS = [("/v1/completions", field) for field in (*_COMMON, *_OTHERS)] + [("/v1/chat/completions", field) for field in (*_COMMON, *_CHAT)]
FIELDS += [("/v1/embeddings", field) for field in ("model", "input", "encoding_format", "dimensions", "user", "unknown")]
WHOLE = {str(FAILS_AT): -100}  # a generation that the model doesn't fail
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": "null", "prompt": "a", "max_tokens": 2, "temperature": 0, "logit_bias": WHOLE},
    "/v1/chat/completions": {
        "model": "null",
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 2,
        "temperature": 0,
        "logit_bias": WHOLE,
    },
    "/v1/embeddings": {"model": "encoder", "input": "a"},
}


def with_field(body: dict[str, Any], field: str, value: bytes) -> bytes:
    """Return a body in which a field has a value that needn't be JSON."""
    rest = json.dumps({name: each for name, each in body.items() if name != field})
    return rest[:-1].encode() + b", " * (len(rest) > 2) + json.dumps(field).encode() + b": " + value + b"}"


@pytest.mark.parametrize(("path", "field"), FIELDS, ids=[f"{path.split('/')[2]}-{field}" for path, field in FIELDS])
def test_any_value_of_any_parameter(texts: Server, path: str, field: str) -> None:
    for value in VALUES:
        check(texts, path, with_field(BODIES[path], field, value))
    check_alive(texts)


_INPUT = affine_body([1, 2, 3])["inputs"][0]
TENSOR_FIELDS = [(place, field) for place, names in {
    "request": ("id", "parameters", "inputs", "outputs", "unknown"),
    "input": ("name", "shape", "datatype", "data", "parameters", "unknown"),
    "parameters": ("timeout", "binary_data_output", "binary_data_size", "classification", "shared_memory_region", "priority",
        "sequence_id"),
    "output": ("name", "parameters", "unknown"),
}.items() for field in names]  # fmt: skip


def tensor_body(place: str, field: str, value: bytes) -> bytes:
    """Return a request in which a field of a place has a value that needn't be JSON."""
    marked = {field: "@@"}
    inputs = [{**_INPUT, **(marked if place == "input" else {}), **({"parameters": marked} if field == "binary_data_size" else {})}]
    body: dict[str, Any] = {"inputs": inputs, "outputs": [{"name": "y", **(marked if place == "output" else {})}]}
    if place in ("request", "parameters"):
        body |= marked if place == "request" else {"parameters": marked}
    return json.dumps(body).encode().replace(b'"@@"', value)


@pytest.mark.parametrize(("place", "field"), TENSOR_FIELDS)
def test_any_value_of_any_part_of_a_tensor(tensors: Server, place: str, field: str) -> None:
    for value in VALUES:
        check(tensors, "/v2/models/affine/infer", tensor_body(place, field, value))
    check_alive(tensors)


@pytest.mark.parametrize("field", ["model", "score", "ready", "parameters", "unknown"])
def test_any_value_at_the_admin_port(watched: Server, field: str) -> None:
    for name, value in itertools.product(("index", "models/affine/load", "models/affine/reload", "models/none/unload"), VALUES):
        check(watched, f"/v2/repository/{name}", with_field({}, field, value), port=watched.admin_port)
        check(watched, f"/v2/repository/{name}", value, port=watched.admin_port)
    for value in VALUES:
        check(watched, "/v2/health/scores", with_field({"model": "affine", "score": 1}, field, value), port=watched.admin_port)
    check_alive(watched)


# Forms of bodies.

_ENCODED = json.dumps(affine_body([1, 2, 3])).encode()
_HUGE_ZIP = gzip.compress(b'{"a":"' + b"x" * (8 << 20) + b'"}')
FORMS: dict[str, tuple[bytes, dict[str, str]]] = {
    "a byte order mark": (b"\xef\xbb\xbf" + _ENCODED, {}),
    "utf-16": (_ENCODED.decode().encode("utf-16"), {}),
    "utf-32": (_ENCODED.decode().encode("utf-32"), {}),
    "what follows": (_ENCODED + b"x", {}),
    "two documents": (_ENCODED * 2, {}),
    "NULs": (bytes(1000), {}),
    "a key twice": (_ENCODED[:-1] + b', "inputs": []}', {}),
    "the first of two keys is wrong": (b'{"inputs": [], ' + _ENCODED[1:], {}),
    "a comment": (b"/* */" + _ENCODED, {}),
    "single quotes": (_ENCODED.replace(b'"', b"'"), {}),
    "a trailing comma": (_ENCODED[:-1] + b",}", {}),
    "another content type": (_ENCODED, {"Content-Type": "text/html; charset=utf-7"}),
    "multipart": (b"--x\r\n\r\n" + _ENCODED + b"\r\n--x--", {"Content-Type": "multipart/form-data; boundary=x"}),
    "a form": (b"inputs=1&inputs=2", {"Content-Type": "application/x-www-form-urlencoded"}),
    "a bomb": (_HUGE_ZIP, {"Content-Encoding": "gzip"}),
    "a bomb in a bomb": (gzip.compress(_HUGE_ZIP), {"Content-Encoding": "gzip"}),
    "several encodings": (gzip.compress(_ENCODED), {"Content-Encoding": "gzip, gzip"}),
    "an encoding that it is not": (_ENCODED, {"Content-Encoding": "deflate"}),
    "many members": (gzip.compress(b"") * 5000 + gzip.compress(_ENCODED), {"Content-Encoding": "gzip"}),
    "many empty objects": (b'{"inputs": [' + b"{}," * 20_000 + b"{}]}", {}),
    "blanks": (b" " * 60_000 + _ENCODED, {}),
    "a large number of digits": (_ENCODED.replace(b"1, 2, 3", b"1" * 60_000 + b", 2, 3"), {}),
    "an exponent": (_ENCODED.replace(b"1, 2, 3", b"1e" + b"9" * 1000 + b", 2, 3"), {}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("path", ["/v2/models/affine/infer", "/v1/embeddings", "/v1/completions", "/v1/chat/completions"])
def test_any_form_of_a_body(tensors: Server, path: str, form: str) -> None:
    body, headers = FORMS[form]
    check(tensors, path, body, headers)
    check_alive(tensors)


_HEAD = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}}]}).encode()
LENGTHS = [
    "0",
    "1",
    "-1",
    "+5",
    "0x10",
    "1e2",
    "1_0",
    "٣",
    " 12",
    "12 ",
    "1,2",
    "9" * 30,
    str(len(_HEAD)),
    f"0{len(_HEAD)}",
    str(len(_HEAD) + 12),
    "",
]


@pytest.mark.parametrize("length", LENGTHS, ids=range(len(LENGTHS)))
def test_any_length_of_a_header_of_tensors(tensors: Server, length: str) -> None:
    for num_bytes in (0, 11, 12, 13, 70_000):
        headers = {"Inference-Header-Content-Length": length.encode().decode("latin-1")}
        answer = check(tensors, "/v2/models/affine/infer", _HEAD + bytes(num_bytes), headers)
        assert (answer.status == 200) == (num_bytes == 12 and length.strip().lstrip("0") == str(len(_HEAD)))
    check_alive(tensors)


# Schemas and grammars.

_LOOP = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
_TREE = {"$defs": {"t": {"type": "object", "properties": {"l": {"$ref": "#/$defs/t"}, "r": {"$ref": "#/$defs/t"}}}}, "$ref": "#/$defs/t"}
SCHEMAS: list[Any] = [
    _LOOP, _TREE, {"$ref": "#"}, {"$ref": "#/properties/x"}, {"$ref": "file:///etc/passwd"}, {"$ref": "http://127.0.0.1:1/"}, {
        "$id": "x", "$ref": "x"},
    {"type": "string", "pattern": "(a+)+$"}, {"type": "string", "pattern": "(a|a)*b"}, {"type": "string", "pattern": "^(?=x)y"},
    {"type": "string", "pattern": r"(.)\1"}, {"type": "string", "pattern": "a{1000000}"}, {"type": "string", "pattern": "(x{99}){99}"},
    {"type": "string", "pattern": "["}, {"type": "string", "minLength": 10**9}, {"type": "string", "maxLength": -1}, {"type": "string",
        "format": "x"},
    {"type": "string", "format": "ipv6"}, {"type": "string", "format": "date-time"}, {"type": "integer", "minimum": 10**30,
        "maximum": 10**31},
    {"type": "number", "multipleOf": 1e-300}, {"type": "number", "multipleOf": 0}, {"type": "integer", "minimum": 5, "maximum": 1},
    {"enum": [float(number) for number in range(3000)]}, {"enum": [None, True, {"a": [1]}]}, {"const": "x" * 50_000}, {"anyOf": [{
        "const": n} for n in range(999)]},
    {"allOf": [{"type": "string"}, {"type": "integer"}]}, {"oneOf": [{"type": "string"}, {"minLength": 3}]}, {"type": ["string", "null",
        "x"]},
    {"type": "object", "properties": {name: {} for name in ('"', "\\", "\n", "\u2028", "__proto__", "😀", "a" * 5000)}},
    {"type": "object", "required": [f"k{number}" for number in range(500)]}, {"type": "object", "minProperties": 10**9},
    {"type": "object", "patternProperties": {"(a+)+$": {}}}, {"type": "object", "additionalProperties": {"$ref": "#"}},
    {"type": "array", "items": {"$ref": "#"}}, {"type": "array", "minItems": 10**9}, {"type": "array", "prefixItems": [{}] * 500,
        "items": False},
    {"x-guidance": {"whitespace_pattern": "(a+)+"}}, {"x-guidance": 3}, {"type": "object", "x-guidance": {"lenient": 1}}, True, False, {},
]  # fmt: skip
GRAMMARS = [
    "start: start", "start: start start | /x/", "start: a\na: b\nb: a", "start: /(a+)+$/", "start: /[/", "start: /a{1000000}/",
        "%import common.NUMBER\nstart: NUMBER",
    "%import ../x\nstart: X", "%ignore /.*/\nstart: /a/", 'start: "a"~9999999', 'start: %json {"$ref": "#"}', "start: %json {",
        "start: <[999999]>",
    "start: <eos>", "start: <nothing>", 'start: ""', "start[capture]: /a/", "start[max_tokens=0]: /.*/", "start[temperature=9]: /a/",
        "START: START",
    "start: \0", "start: /\ud83d\ude00/", "x: y", "start: @g", '%llguidance {"no_forcing": 1}\nstart: /a/', "start: " + '("a"|' * 3000,
        "start: a\n" * 5000,
    "start: /x/ -> y", "start: gen(regex='a')", "start: &a & /b/", "start: /(?i)A/ & ~/a/",
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_any_schema(texts: Server, schema: Any) -> None:
    """As a form, and as the parameters of a tool that must be called."""
    common = {**BODIES["/v1/chat/completions"], "seed": 1}
    named = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    for fields in ({"guided_json": schema}, {"response_format": named}, {"tools": [tool], "tool_choice": "required"}, {"tools": [tool]}):
        check(texts, "/v1/chat/completions", json.dumps({**common, **fields}).encode())
    check_alive(texts)


@pytest.mark.parametrize("grammar", GRAMMARS, ids=range(len(GRAMMARS)))
def test_any_grammar(texts: Server, grammar: str) -> None:
    for fields in ({"guided_grammar": grammar}, {"guided_regex": grammar.removeprefix("start: ").strip("/")}):
        check(texts, "/v1/completions", json.dumps({**BODIES["/v1/completions"], **fields}).encode())
    check_alive(texts)


_NAMES = [".*", "a|b", "(", "a.b", "a b", "", "é", "a" * 65, "$", "[a-z]", "\n", '"', "\\d", "get\0"]


@pytest.mark.parametrize("name", _NAMES, ids=range(len(_NAMES)))
def test_names_of_tools_are_no_patterns(texts: Server, name: str) -> None:
    good = {"type": "function", "function": {"name": "get"}}
    bad = {"type": "function", "function": {"name": name}}
    body = {**BODIES["/v1/chat/completions"], "tools": [good]}
    for fields in (
        {"tools": [bad]},
        {"tool_choice": bad},
        {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [bad]}}},
    ):
        assert check(texts, "/v1/chat/completions", json.dumps({**body, **fields}).encode()).status == 400
    check_alive(texts)


def test_long_and_many_stop_strings(texts: Server) -> None:
    for stop in (
        "x" * 100_000,
        ["y" * 6_000 + str(number) for number in range(10)],
        ["a" * count for count in range(1, 17)],
        ["😀\0" * 500],
    ):
        body = {**BODIES["/v1/completions"], "max_tokens": 200, "stop": stop, "logit_bias": {**WHOLE, "64": 5}}
        check(texts, "/v1/completions", json.dumps(body).encode())
    endless = {"stop": "a" * 60_000, "n": 64, "logit_bias": {**WHOLE, "65": 100}, "max_tokens": 300, "ignore_eos": True}
    texts_of = check(texts, "/v1/completions", json.dumps({**BODIES["/v1/completions"], **endless}).encode()).json()["choices"]
    assert {choice["text"] for choice in texts_of} == {"a" * 300}
    check_alive(texts)


@pytest.mark.parametrize("identity", ["a\nb", "a\r\nX-Evil: 1", "\0", "é😀", "x" * 50_000, "", "\u2028"])
def test_an_id_comes_back_as_it_is(tensors: Server, identity: str) -> None:
    answer = check(tensors, "/v2/models/affine/infer", json.dumps({**affine_body([1, 2, 3]), "id": identity}).encode())
    assert answer.json()["id"] == identity
    assert "x-evil" not in answer.headers


def test_sizes_of_zero(tensors: Server) -> None:
    def shaped(name: str, datatype: str, shape: list[int]) -> bytes:
        return json.dumps({"inputs": [{"name": name, "datatype": datatype, "shape": shape, "data": []}]}).encode()

    for shape in ([0, 3], [1, 0], [0], [], [0, 0], [0] * 9, [1 << 62, 0], [0, 1 << 62]):
        check(tensors, "/v2/models/affine/infer", shaped("x", "FP32", shape))
        check(tensors, "/v2/models/encoder/infer", shaped("input_ids", "INT64", shape))
    check_alive(tensors)


# HTTP itself.

_POST = b"POST /v2/models/affine/infer HTTP/1.1\r\nHost: x\r\n"
_GET = b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n"
_HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"  # that only a server reads which ends the body before too early
_CHUNKED = _POST + b"Transfer-Encoding: chunked\r\n\r\n"
_CHUNKS = b"%x\r\n%s\r\n0\r\n" % (len(_ENCODED), _ENCODED)


def framed(*lines: bytes, body: bytes = b"") -> bytes:
    return _POST + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


_SIZE = b"Content-Length: %d" % len(_ENCODED)
FRAMES: dict[str, bytes] = {
    "length and chunks": framed(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + _HIDDEN),
    "chunks and length": framed(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n" + _HIDDEN),
    "two lengths": framed(_SIZE, b"Content-Length: 1", body=_ENCODED + _HIDDEN),
    "a list of lengths": framed(b"Content-Length: 5, 5", body=b"12345" + _HIDDEN),
    **{
        f"the length {value!r}": framed(b"Content-Length: " + value, body=_HIDDEN)
        for value in (b"+5", b"-5", b"0x5", b"5 5", b"5e0", b"", b"9" * 30, b"1_0", "٣".encode(), b"18446744073709551616", b"5;",
            b"\x0b5")
    },
    **{
        f"the encoding {value!r}": framed(b"Transfer-Encoding: " + value, body=b"0\r\n\r\n" + _HIDDEN)
        for value in (b"xchunked", b"identity", b"chunked, identity", b"gzip, chunked", b"chunked, chunked", b"\x0bchunked", b"",
            b'"chunked"', b"chunked\xff")
    },
    "two encodings": framed(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", body=b"0\r\n\r\n" + _HIDDEN),
    "a blank before the colon": framed(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n" + _HIDDEN),
    "a folded header": framed(b"X: 1\r\n Transfer-Encoding: chunked", b"Content-Length: 0", body=_HIDDEN),
    "a header without a colon": framed(b"nonsense", b"Content-Length: 0"),
    "a header without a name": framed(b": x", b"Content-Length: 0"),
    "a NUL in a header": framed(b"X: \0", b"Content-Length: 0"),
    "a bare CR in a header": framed(b"X: 1\rContent-Length: 9", b"Content-Length: 0"),
    "bare LFs": b"POST /v2/models/affine/infer HTTP/1.1\nHost: x\nContent-Length: 0\n\n",
    "blank lines before": b"\r\n\r\n" + _GET,
    **{
        f"the chunk size {value[:20]!r}": _CHUNKED + value + b"\r\nhello\r\n0\r\n\r\n" + _HIDDEN
        for value in (b"0x5", b"+5", b"-5", b" 5", b"g", b"", b"fffffffffffffffff1", b"5 5")
    },
    "a long chunk size": _CHUNKED + b"0" * 1000 + b"5\r\nhello\r\n0\r\n\r\n",
    "a long chunk extension": _CHUNKED + b"5;" + b"e" * 200_000 + b"\r\nhello\r\n0\r\n\r\n",
    "a chunk without its end": _CHUNKED + b"5\r\nhelloX0\r\n\r\n" + _HIDDEN,
    "chunks with bare LFs": _CHUNKED + b"5\nhello\n0\n\n" + _HIDDEN,
    "many empty lines for a chunk": _CHUNKED + b"\r\n" * 1000,
    "one byte a chunk": _CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in _ENCODED) + b"0\r\n\r\n",
    "a trailer": _CHUNKED + _CHUNKS + b"X: 1\r\n\r\n",
    "a trailer that frames": _CHUNKED + _CHUNKS + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\nHost: y\r\n\r\n",
    "a trailer with a key": _CHUNKED + _CHUNKS + b"Authorization: Bearer x\r\n\r\n",
    "many trailers": _CHUNKED + _CHUNKS + b"X: 1\r\n" * 500 + b"\r\n",
    "a long trailer": _CHUNKED + _CHUNKS + b"X: " + b"1" * 500_000 + b"\r\n\r\n",
    "a trailer that is none": _CHUNKED + _CHUNKS + b"nonsense\r\n\r\n",
    "no version": b"GET /v2\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    **{f"the version {value!r}": b"GET /v2 %s\r\nHost: x\r\n\r\n" % value for value in (b"HTTP/1.2", b"HTTP/9.9", b"HTTP/0.9",
        b"http/1.1", b"HTTPS/1.1", b"HTTP/1.10")},
    **{
        f"the method {value!r}": b"%s /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" % value
        for value in (b"get", b"FOO", b"TRACE", b"OPTIONS", b"DELETE", b"PATCH", b"PUT", b"PROPFIND", b"G\0T", b"QUERY", b"M-SEARCH",
            b"\xff")
    },
    "CONNECT": b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "all of the server": b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    **{
        f"the path {value[:30]!r}": b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % value
        for value in (
            b"http://x/v2", b"http://y:1/v2", b"//v2", b"/v2/../metrics", b"/%2e%2e/%2e%2e/etc/passwd", b"/v2%00", b"/%ff", b"/%zz",
                b"/%", b"*", b"v2", b"/v2/models/%0d%0aX-Evil:%201",
            b"/v2?" + b"a=1&" * 10_000, b"/v2#x", b"/v2;x=1", b"/\xff\xfe", b"/\\", b"/" + b"../" * 1000,
                b"/v2/models/affine/versions/" + b"9" * 5000, b"/v2/models/a/versions/%2e%2e", b"",
        )
    },
    "a path with a blank": b"GET /v2 /x HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": bytes.fromhex("16030100c8010000c40303") + bytes(200),
    "SSH": b"SSH-2.0-OpenSSH_9.0\r\n",
    "binary": bytes(range(256)) * 20,
    "an expectation": framed(b"Expect: 100-continue", _SIZE, body=_ENCODED),
    "another expectation": framed(b"Expect: 200-ok", _SIZE, body=_ENCODED),
    "a body of a GET": b"GET /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    "chunks of a GET": b"GET /v2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "a body of a HEAD": b"HEAD /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    "an upgrade that hides a request": framed(b"Connection: Upgrade", b"Upgrade: h2c", b"HTTP2-Settings: x", b"Content-Length: 5",
        body=b"hello"),
    "an upgrade of two kinds": framed(b"Connection: Upgrade, close", b"Upgrade: websocket, h2c", b"Transfer-Encoding: chunked",
        body=b"0\r\n\r\n"),
    "a chunked HTTP/1.0": b"POST /v2/models/affine/infer HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + _HIDDEN,
    "a host with a path": b"GET /v2 HTTP/1.1\r\nHost: x/y\r\n\r\n",
    "an empty host": b"GET /v2 HTTP/1.1\r\nHost:\r\n\r\n",
    "a host with a NUL": b"GET /v2 HTTP/1.1\r\nHost: x\0y\r\n\r\n",
    "connection headers": framed(b"Connection: close, keep-alive, Content-Length", _SIZE, body=_ENCODED),
}  # fmt: skip


def answers(server: Server, data: bytes) -> list[tuple[int, bytes]]:
    """Send bytes, and return the status and body of each answer until the server closes, or says nothing more."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=SOON_S) as connection:
        received = bytearray()
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while more := connection.recv(1 << 16):
                received += more
        except ConnectionError:  # it closed before it had read all
            pass
    found = []
    while received:
        head, ends, rest = bytes(received).partition(b"\r\n\r\n")
        assert ends, received
        status = int(head.split()[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])}
        assert b"x-evil" not in headers
        size = 0 if status == 100 or data.startswith(b"HEAD") else int(headers[b"content-length"])
        if status != 100:
            found.append((status, rest[:size]))
        received = bytearray(rest[size:])
    return found


@pytest.mark.parametrize("frame", FRAMES)
def test_any_bytes(tensors: Server, frame: str) -> None:
    found = answers(tensors, FRAMES[frame])
    for status, body in found:
        assert 200 <= status < 300 or 400 <= status < 500, (status, body)
        if status >= 400:
            assert isinstance(json.loads(body)["error"], str)
    refused = [status for status, _ in found if status >= 400]
    hides = FRAMES[frame].endswith(_HIDDEN)
    assert len(found) <= 1 or (hides and not refused[:-1]), found
    assert not hides or len(found) == 1 or found[0][0] < 400, "what follows a request that is refused is none"
    check_alive(tensors)


def test_pipelined_requests_are_answered_in_their_order(tensors: Server) -> None:
    paths = [b"/v2/models/affine", b"/v2", b"/v2/models/echo", b"/v2/health/live", b"/nothing"] * 20
    found = answers(
        tensors,
        b"".join(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path for path in paths[:-1])
        + b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    assert [status for status, _ in found] == [200, 200, 200, 200, 404] * 20
    assert [body for _, body in found] == [body for _, body in found[:5]] * 20


# Many readers.


def test_many_readers_of_small_streams(texts: Server) -> None:
    """Each reads its stream by and by; every one ends whole."""
    body = json.dumps({**BODIES["/v1/completions"], "max_tokens": 20, "stream": True, "ignore_eos": True}).encode()

    def read(number: int) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", texts.port, timeout=60)
        try:
            connection.request("POST", "/v1/completions", body)
            response = connection.getresponse()
            assert response.status in (200, 429)
            pieces = iter(lambda: response.read(1 + number % 40), b"")
            return b"".join(pieces) if response.status == 200 else b"[DONE]"
        finally:
            connection.close()

    with ThreadPoolExecutor(100) as pool:
        found = list(pool.map(read, range(300)))
    assert all(b"[DONE]" in each for each in found)
    assert sum(each.endswith(b"data: [DONE]\n\n") for each in found) > 100
    check_alive(texts)
