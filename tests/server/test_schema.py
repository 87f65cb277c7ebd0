"""Requests that schemathesis makes of the server's own OpenAPI document, valid and not: no answer is a 5xx, and all are declared.

LLMOS_SCHEMA_CASES says how many of each kind every operation of the slow test gets.
"""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from .harness import Server, language_server

FEW, MANY = 3, int(os.environ.get("LLMOS_SCHEMA_CASES", "150"))
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
MODELS = {"enum": ["null", "encoder", "none"]}
# What the models take, so that many requests get further than to the first check.
TENSOR = {
    "name": {"enum": ["input_ids", "attention_mask", "x"]},
    "datatype": {"enum": ["INT64", "INT32", "FP32", "BOOL", "FP16", "BYTES"]},
    "shape": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 4}, "maxItems": 3},
    "data": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 20}, "maxItems": 16},
    "parameters": {"type": "object"},
}


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with language_server(max_queue=64, repository_api=True) as server:
        yield server


def enriched(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the models that there are wherever one is named."""
    found = copy.deepcopy(document)
    for methods in found["paths"].values():
        for operation in methods.values():
            for parameter in operation["parameters"]:
                parameter["schema"] = {"model": MODELS, "version": {"enum": ["1", "2", "x"]}}.get(parameter["name"], parameter["schema"])
            for content in operation.get("requestBody", {}).get("content", {}).values():
                properties = content["schema"].get("properties", {})
                if "model" in properties:
                    properties["model"] = MODELS
                if "inputs" in properties:
                    properties["inputs"]["items"]["properties"] = TENSOR
                if "max_tokens" in properties:
                    properties["max_tokens"] = {"type": "integer", "minimum": 1, "maximum": 20}
    return found


def exercise(server: Server, num_cases: int) -> Counter[int]:
    """Send requests of each operation; return how often each status came."""
    schema = schemathesis.openapi.from_dict(enriched(server.get("/openapi.json").json()))
    schema.config.update(base_url=f"http://{server.address}")
    seen: Counter[int] = Counter()
    with requests.Session() as session:
        for result in schema.get_all_operations():
            operation = result.ok()
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

                @settings(
                    max_examples=num_cases,
                    derandomize=True,
                    database=None,
                    deadline=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                @given(case=operation.as_strategy(generation_mode=mode))
                def send(case: schemathesis.Case) -> None:
                    response = case.call(session=session, timeout=60)
                    seen[response.status_code] += 1
                    case.validate_response(response, checks=CHECKS)

                with suppress(Unsatisfiable if mode is GenerationMode.NEGATIVE else ()):  # nothing can be wrong about a GET of a fixed path
                    send()
    return seen


def test_a_sample_of_requests(running: Server) -> None:
    seen = exercise(running, FEW)
    assert {200, 400, 404} <= set(seen), seen
    assert not [line for line in running.log if "Traceback" in line], running.log


@pytest.mark.slow
def test_many_requests(running: Server) -> None:
    seen = exercise(running, MANY)
    assert {200, 400, 404} <= set(seen), seen
    assert not [line for line in running.log if "Traceback" in line], running.log
