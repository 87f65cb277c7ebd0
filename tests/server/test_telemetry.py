"""Traces and metrics over OTLP, as a collector gets them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .collector import Collector, attributes, collecting
from .harness import Server, affine_body, language_server, numpy_server, wait_for
from .language_model import FAILS_AT

TRACE, ABOVE = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = {"traceparent": f"00-{TRACE}-{ABOVE}-01"}


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        patch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "100")
        yield


@pytest.fixture(scope="module")
def collector(quick: None) -> Iterator[Collector]:
    with collecting() as found:
        yield found


@pytest.fixture(scope="module")
def traced(collector: Collector) -> Iterator[Server]:
    with language_server(otlp_endpoint=f"http://127.0.0.1:{collector.port}") as server:
        yield server


def root_of(collector: Collector, request_id: str) -> Any:
    """The span of a request, once it has come with those below it."""
    found: list[Any] = []

    def came() -> bool:
        found[:] = [span for span in collector.spans if attributes(span).get("llmos.request_id") == request_id]
        return bool(found)

    wait_for(came)
    (root,) = found
    return root


def test_an_embedding_is_a_tree_below_the_clients_span(collector: Collector, traced: Server) -> None:
    before_ns = time.time_ns()
    headers = {**PARENT, "X-Request-Id": "embedding-1"}
    assert traced.request("POST", "/v1/embeddings", {"model": "encoder", "input": "cat sat"}, headers).status == 200
    root = root_of(collector, "embedding-1")
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, ABOVE)
    assert root.name == "embeddings encoder"
    told = attributes(root)
    assert told["gen_ai.operation.name"] == "embeddings"
    assert told["gen_ai.request.model"] == "encoder"
    assert told["gen_ai.provider.name"] == "llmos"
    assert told["http.response.status_code"] == 200
    assert told["gen_ai.usage.input_tokens"] > 0
    parts = collector.children(root)
    assert set(parts) == {"queue", "batch"}
    assert before_ns - 10**9 < root.start_time_unix_nano <= parts["queue"].start_time_unix_nano
    assert parts["queue"].end_time_unix_nano == parts["batch"].start_time_unix_nano
    assert parts["batch"].start_time_unix_nano < parts["batch"].end_time_unix_nano <= root.end_time_unix_nano <= time.time_ns() + 10**9
    assert collector.resources[0]["service.name"] == "llmos"


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_has_its_parts_and_none_for_a_token(collector: Collector, traced: Server, stream: bool) -> None:
    name = f"chat-{stream}"
    asked = {"model": "null", "messages": [{"role": "user", "content": "the cat"}], "max_tokens": 12, "ignore_eos": True}
    body = {**asked, "stream": stream, "logit_bias": {str(FAILS_AT): -100}}
    assert traced.request("POST", "/v1/chat/completions", body, {"X-Request-Id": name}).status == 200
    root = root_of(collector, name)
    assert root.name == "chat null"
    assert root.parent_span_id == b""
    assert attributes(root)["gen_ai.usage.output_tokens"] == 12
    parts = collector.children(root)
    assert set(parts) == {"queue", "prefill", "decode", "detokenize"}
    assert len([span for span in collector.spans if span.trace_id == root.trace_id]) == 5
    assert parts["queue"].end_time_unix_nano == parts["prefill"].start_time_unix_nano
    assert parts["prefill"].end_time_unix_nano == parts["decode"].start_time_unix_nano
    assert root.start_time_unix_nano <= parts["queue"].start_time_unix_nano
    assert parts["decode"].end_time_unix_nano <= root.end_time_unix_nano


def test_an_error_has_its_type(collector: Collector, traced: Server) -> None:
    assert traced.request("POST", "/v1/completions", {"model": "none", "prompt": "x"}, {"X-Request-Id": "error-1"}).status == 404
    root = root_of(collector, "error-1")
    assert root.name == "POST /v1/completions" or root.name.startswith("text_completion")
    assert attributes(root)["error.type"] == "404"
    assert collector.children(root) == {}


@pytest.mark.parametrize("parent", ["", "nonsense", "00-" + "0" * 32 + f"-{ABOVE}-01", f"00-{TRACE}-{ABOVE}-00", "é"])
def test_a_parent_that_is_none_or_not_sampled(collector: Collector, traced: Server, parent: str) -> None:
    name = f"parent-{len(parent)}-{parent[-2:] == '00'}"
    body = {"model": "encoder", "input": "cat"}
    answer = traced.request("POST", "/v1/embeddings", body, {"traceparent": parent, "X-Request-Id": name})
    assert answer.status == 200
    if parent.endswith("-00"):  # whoever began the trace has decided against it
        traced.request("POST", "/v1/embeddings", body, {"X-Request-Id": name + "-later"})
        root_of(collector, name + "-later")
        assert not [span for span in collector.spans if attributes(span).get("llmos.request_id") == name]
    else:
        assert root_of(collector, name).parent_span_id == b""


@pytest.mark.parametrize(
    "state", ["x" * 8000, "é=" + "y" * 5000, "a=1,a=2", ",".join(f"k{number}=v" for number in range(100)), "x" * 20_000]
)
def test_a_wrong_tracestate_is_no_line_of_the_log(collector: Collector, traced: Server, state: str) -> None:
    num_lines, name = len(traced.log), f"state-{len(state)}"
    body = {"model": "encoder", "input": "cat"}
    answer = traced.request("POST", "/v1/embeddings", body, {**PARENT, "tracestate": state, "X-Request-Id": name})
    assert answer.status == 200
    assert root_of(collector, name).trace_id.hex() == TRACE
    wait_for(lambda: len(traced.log) > num_lines)
    assert [name in line for line in traced.log[num_lines:]] == [True], "the access log's alone"


def test_metrics_have_the_conventions_names(collector: Collector, traced: Server) -> None:
    wanted = {
        "gen_ai.server.request.duration",
        "gen_ai.server.time_to_first_token",
        "gen_ai.server.time_per_output_token",
        "gen_ai.client.token.usage",
    }
    body = {"model": "null", "prompt": "the cat", "max_tokens": 5, "ignore_eos": True, "logit_bias": {str(FAILS_AT): -100}}
    assert traced.request("POST", "/v1/completions", body).status == 200
    wait_for(lambda: {metric.name for metric in collector.metrics} >= wanted)

    def came() -> bool:
        durations = [metric for metric in collector.metrics if metric.name == "gen_ai.server.request.duration"]
        told = [attributes(point) for metric in durations for point in metric.histogram.data_points]
        return any((each["gen_ai.operation.name"], each.get("gen_ai.request.model")) == ("text_completion", "null") for each in told)

    wait_for(came)
    assert {metric.unit for metric in collector.metrics if metric.name.startswith("gen_ai.server.")} == {"s"}
    usage = next(metric for metric in reversed(collector.metrics) if metric.name == "gen_ai.client.token.usage")
    assert {attributes(point)["gen_ai.token.type"] for point in usage.histogram.data_points} == {"input", "output"}


def test_a_collector_that_is_gone_holds_nothing_up(quick: None) -> None:
    with numpy_server(otlp_endpoint="http://127.0.0.1:1") as server:
        assert server.affine([1, 2, 3]).status == 200
        start_s = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - start_s < 30
        assert not [line for line in server.log if "Traceback" in line], server.log


def test_nothing_of_it_is_imported_where_it_is_off() -> None:
    folder = Path(__file__).parents[1] / "engine"
    program = """
import sys
sys.path.insert(0, sys.argv[1])
from numpy_models import Affine
from llmos.runtime.server.app import create_app
create_app([Affine(name="affine")])
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))])
"""
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_infer_over_http_is_traced_too(collector: Collector, quick: None) -> None:
    with numpy_server(otlp_endpoint=f"http://127.0.0.1:{collector.port}") as server:
        assert server.request("POST", "/v2/models/affine/infer", affine_body([1, 2, 3]), {"X-Request-Id": "infer-1"}).status == 200
        root = root_of(collector, "infer-1")
        assert root.name == "infer affine"
        assert set(collector.children(root)) == {"queue", "batch"}
