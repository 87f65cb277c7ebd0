"""What the server says of its routes: an OpenAPI document, and a page of it that needs nothing from elsewhere.

Written by hand, since a framework's own says nothing of plain ASGI routes, and promises errors that never come.
"""

from __future__ import annotations

import html
from importlib.metadata import version
from typing import Any

Json = dict[str, Any]

_REASONS = {
    200: "the answer",
    400: "the request is malformed, or does not fit the model",
    401: "keys are set and none was sent",
    403: "the address is banned for a while, or a web page has sent what it may not",
    404: "no such model or version",
    408: "the request did not arrive in time",
    413: "the body is too large",
    415: "the body's encoding is unknown",
    429: "the queue is full; Retry-After says when to come back",
    431: "URL and headers are too large",
    500: "the model failed",
    503: "the server is shutting down or overloaded",
    504: "the request's time was over",
}
_GET = (400, 401, 403, 408, 431, 503)
_POST = (400, 401, 403, 404, 408, 413, 415, 429, 431, 500, 503, 504)
_TENSOR_MODELS, _OPENAI, _HEALTH, _REPOSITORY = "open inference protocol", "openai", "health", "model repository"
_CHANGES = {"load": "Load a model", "unload": "Unload a model", "reload": "Load a model again"}

_INFER: Json = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": {"type": "object"},
        "inputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "datatype", "shape"],
                "properties": {
                    "name": {"type": "string"},
                    "datatype": {"type": "string"},
                    "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
                    "data": {"type": "array"},
                    "parameters": {"type": "object"},
                },
            },
        },
        "outputs": {"type": "array", "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}},
    },
}
_TOKENS: Json = {"type": "array", "items": {"type": "integer"}}
_TEXTS: Json = {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, _TOKENS, {"type": "array", "items": _TOKENS}]}
_SAMPLING: Json = {
    "model": {"type": "string"},
    "stream": {"type": "boolean"},
    "n": {"type": "integer", "minimum": 1},
    "max_tokens": {"type": "integer", "minimum": 1},
    "seed": {"type": "integer"},
    "temperature": {"type": "number", "minimum": 0},
    "top_p": {"type": "number", "minimum": 0, "maximum": 1},
    "stop": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": 16}]},
    "response_format": {
        "type": "object",
        "required": ["type"],
        "properties": {
            "type": {"enum": ["text", "json_object", "json_schema"]},
            "json_schema": {"$ref": "#/components/schemas/JsonSchema"},
        },
    },
    "structured_outputs": {
        "type": "object",
        "properties": {
            "json": {"type": ["object", "string"]},
            "json_object": {"const": True},
            "regex": {"type": "string"},
            "choice": {"type": "array", "items": {"type": "string"}},
            "grammar": {"type": "string"},
        },
    },
}
_FUNCTION: Json = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
        "description": {"type": "string"},
        "parameters": {"type": "object"},
        "strict": {"type": "boolean"},
    },
}
_CALL: Json = {
    "type": "object",
    "required": ["function"],
    "properties": {
        "id": {"type": "string"},
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "required": ["name", "arguments"],
            "properties": {"name": {"type": "string"}, "arguments": {"type": "string"}},
        },
    },
}
_MESSAGE: Json = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"type": "string"},
        "content": {"type": ["string", "null"]},
        "tool_calls": {"type": "array", "items": _CALL},
        "tool_call_id": {"type": "string"},
    },
}
_TOOLS: Json = {
    "tools": {
        "type": "array",
        "maxItems": 128,
        "items": {"type": "object", "required": ["type", "function"], "properties": {"type": {"const": "function"}, "function": _FUNCTION}},
    },
    "tool_choice": {"oneOf": [{"enum": ["none", "auto", "required"]}, {"type": "object", "required": ["type"]}]},
    "parallel_tool_calls": {"type": "boolean"},
}
_SCHEMA: Json = {
    "type": "object",
    "required": ["name", "schema"],
    "properties": {"name": {"type": "string"}, "schema": {"type": "object"}, "strict": {"type": "boolean"}},
}


def _object(required: list[str], properties: Json) -> Json:
    return {"type": "object", "required": required, "properties": properties}


_EMBEDDINGS = _object(
    ["model", "input"],
    {
        "model": {"type": "string"},
        "input": _TEXTS,
        "encoding_format": {"enum": ["float", "base64"]},
        "dimensions": {"type": "integer", "minimum": 1},
    },
)
_COMPLETIONS = _object(["model", "prompt"], {**_SAMPLING, "prompt": _TEXTS})
_INDEX = _object([], {"ready": {"type": "boolean"}})
_CHANGE = _object([], {"parameters": {"type": "object", "properties": {"unload_dependents": {"type": "boolean"}}}})
_CHAT = _object(["model", "messages"], {**_SAMPLING, **_TOOLS, "messages": {"type": "array", "items": _MESSAGE, "minItems": 1}})


def document(*, keys: bool, root_path: str, repository: bool = False) -> Json:
    """Return the OpenAPI document. keys: whether routes need one. repository: whether models are loaded and unloaded here."""
    model = "/v2/models/{model}"
    paths = {
        "/v2/health/live": _get(_HEALTH, "Whether the process lives"),
        "/v2/health/ready": _get(_HEALTH, "Whether to send requests"),
        "/metrics": _get("metrics", "Metrics of Prometheus", content_type="text/plain"),
        "/v2": _get(_TENSOR_MODELS, "What this server is"),
        model: _get(_TENSOR_MODELS, "Inputs and outputs of a model", 404, 504),
        f"{model}/versions/{{version}}": _get(_TENSOR_MODELS, "Inputs and outputs of a version", 404, 504),
        f"{model}/ready": _get(_TENSOR_MODELS, "Whether a model is ready", 404),
        f"{model}/versions/{{version}}/ready": _get(_TENSOR_MODELS, "Whether a version is ready", 404),
        f"{model}/infer": _post(_TENSOR_MODELS, "Run a model on tensors", _INFER, "application/octet-stream"),
        f"{model}/versions/{{version}}/infer": _post(_TENSOR_MODELS, "Run a version on tensors", _INFER, "application/octet-stream"),
        "/v1/models": _get(_OPENAI, "The models"),
        "/v1/models/{model}": _get(_OPENAI, "A model", 404),
        "/v1/embeddings": _post(_OPENAI, "Embeddings of texts", _EMBEDDINGS),
        "/v1/completions": _post(_OPENAI, "Text that follows a prompt", _COMPLETIONS, "text/event-stream"),
        "/v1/chat/completions": _post(_OPENAI, "An answer to a chat", _CHAT, "text/event-stream"),
        "/": _get("documentation", "A page: models, live metrics and a playground", content_type="text/html"),
        "/openapi.json": _get("documentation", "This document"),
        "/docs": _get("documentation", "This document as a page", content_type="text/html"),
    }
    if repository:
        paths |= _repository_paths()
    for path, methods in paths.items():
        names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
        form = "OpenAIError" if path.startswith("/v1/") else "Error"
        for operation in methods.values():
            operation["operationId"] = "_".join(part.strip("{}") for part in path.split("/") if part) or "page"
            operation["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
            for status, response in operation["responses"].items():
                if status != "200":
                    response["content"] = {"application/json": {"schema": {"$ref": f"#/components/schemas/{form}"}}}
        if keys and ("/health/" in path or path == "/"):
            methods["get"]["security"] = []
    ready: Json = {"application/json": {"schema": {"type": "object"}}}
    for path in paths:
        if path.endswith("/ready"):
            paths[path]["get"]["responses"]["503"]["content"] = ready
    found: Json = {
        "openapi": "3.1.0",
        "info": {"title": "llmos", "version": version("llmos")},
        "paths": paths,
        "components": {"schemas": {**_ERRORS, "JsonSchema": _SCHEMA}},
    }
    if root_path:
        found["servers"] = [{"url": root_path}]
    if keys:
        found["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
        }
        found["security"] = [{"bearer": []}, {"key": []}]
    return found


_ERRORS: Json = {
    "Error": _object(["error"], {"error": {"type": "string"}}),
    "OpenAIError": _object(
        ["error"],
        {
            "error": _object(
                ["message", "type", "param", "code"],
                {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
            )
        },
    ),
}


def _repository_paths() -> Json:
    paths = {
        "/v2/repository/index": _post(_REPOSITORY, "The models that there are", _INDEX),
        **{f"/v2/repository/models/{{model}}/{change}": _post(_REPOSITORY, summary, _CHANGE) for change, summary in _CHANGES.items()},
    }
    paths["/v2/repository/index"]["post"]["responses"]["200"]["content"]["application/json"]["schema"] = {"type": "array"}
    for methods in paths.values():
        methods["post"]["requestBody"]["required"] = False
        methods["post"]["responses"]["403"] = {"description": _REASONS[403]}
    return paths


def _get(tag: str, summary: str, *more: int, content_type: str = "application/json") -> Json:
    return {"get": {"tags": [tag], "summary": summary, "responses": _responses((*_GET, *more), [content_type])}}


def _post(tag: str, summary: str, schema: Json, *types: str) -> Json:
    content: Json = {"application/json": {"schema": schema}}
    if "application/octet-stream" in types:
        content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    operation: Json = {"tags": [tag], "summary": summary, "requestBody": {"required": True, "content": content}}
    return {"post": {**operation, "responses": _responses(_POST, ["application/json", *types])}}


def _responses(errors: tuple[int, ...], types: list[str]) -> Json:
    answer = {kind: {"schema": {"type": "object" if kind.endswith("json") else "string"}} for kind in types}
    found: Json = {"200": {"description": _REASONS[200], "content": answer}}
    return found | {str(status): {"description": _REASONS[status]} for status in sorted(errors)}


def page(found: Json) -> str:
    """Return a document's routes as HTML, without scripts."""
    rows = [
        f"<tr><td><code>{method.upper()} {html.escape(path)}</code></td><td>{html.escape(operation['summary'])}</td>"
        f"<td>{', '.join(operation['responses'])}</td></tr>"
        for path, methods in found["paths"].items()
        for method, operation in methods.items()
    ]
    reasons = [f"<tr><td>{status}</td><td>{html.escape(reason)}</td></tr>" for status, reason in _REASONS.items()]
    style = "body{font:15px sans-serif;margin:2em}td,th{text-align:left;padding:.3em 1em .3em 0;border-bottom:1px solid #ddd}"
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>llmos</title><style>{style}</style></head><body>'
        f'<h1>llmos {html.escape(found["info"]["version"])}</h1><p>In full: <a href="openapi.json">openapi.json</a></p>'
        f"<table><tr><th>Route</th><th></th><th>Statuses</th></tr>{''.join(rows)}</table>"
        f"<h2>Statuses</h2><table>{''.join(reasons)}</table></body></html>"
    )
