"""The Open Inference Protocol over gRPC: through tritonclient, and message by message."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmos.runtime.server.rpc import open_inference_pb2
from llmos.runtime.server.rpc.messages import as_binary_form, document_of, split

from ..cli_runtime.artifacts import affine_artifact  # noqa: TID252
from .harness import Server, numpy_server, running, wait_for
from .test_artifacts import COMMAND, _certificate

pb2: Any = open_inference_pb2
INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = INFER.replace("ModelInfer", "ModelStreamInfer")
CODE = grpc.StatusCode
RUNNING = 'llmos_num_requests_running{model_name="affine"}'


@pytest.fixture(scope="module")
def grpc_server() -> Iterator[Server]:
    with numpy_server(grpc_port=0, max_body_bytes=80 << 20) as server:
        yield server


def address(server: Server) -> str:
    return f"127.0.0.1:{server.grpc_port}"


def triton(server: Server, function: str) -> None:
    script = Path(__file__).with_name("grpc_client.py")
    done = subprocess.run(
        [sys.executable, str(script), function, address(server)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("function", ["metadata_and_inference", "streaming", "many_at_once"])
def test_tritonclient(grpc_server: Server, function: str) -> None:
    triton(grpc_server, function)


def test_tritonclient_loads_and_unloads(tmp_path: Path) -> None:
    (tmp_path / "affine" / "1").mkdir(parents=True)
    affine_artifact(tmp_path / "affine.llmos").rename(tmp_path / "affine" / "1" / "model.llmos")
    options = ["--model-repository", str(tmp_path), "--model-control", "explicit", "--repository-api", "--grpc-port", "0"]
    with running([*COMMAND, *options]) as server:
        triton(server, "repository")
        assert server.stop() == 0


def infer_message(**contents: Any) -> Any:
    tensor = pb2.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 3])
    tensor.contents.fp32_contents.extend([1, 2, 3])
    return pb2.ModelInferRequest(**{"model_name": "affine", "inputs": [tensor], **contents})


def call(server: Server, message: Any, method: str = INFER, timeout_s: float = 300, **metadata: str) -> bytes:
    """The serialized answer. Raises grpc.RpcError."""
    data = message if isinstance(message, bytes) else message.SerializeToString()
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(address(server), options) as channel:
        sent = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
        answer: bytes = channel.unary_unary(method)(data, timeout=timeout_s, metadata=sent)
        return answer


def refusal(server: Server, message: Any, **options: Any) -> tuple[Any, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(server, message, **options)
    return caught.value.code(), caught.value.details()


def outputs(answer: bytes) -> list[list[float]]:
    found = pb2.ModelInferResponse.FromString(answer)
    dtypes = [{"FP32": "<f4", "FP64": "<f8"}.get(output.datatype, "<f4") for output in found.outputs]
    return [np.frombuffer(raw, dtype).tolist() for raw, dtype in zip(found.raw_output_contents, dtypes, strict=True)]


TYPED = [
    ("bool", "BOOL", "bool_contents", [True, False]),
    ("uint8", "UINT8", "uint_contents", [0, 255]),
    ("uint16", "UINT16", "uint_contents", [0, 65535]),
    ("uint32", "UINT32", "uint_contents", [0, 2**32 - 1]),
    ("uint64", "UINT64", "uint64_contents", [0, 2**64 - 1]),
    ("int8", "INT8", "int_contents", [-128, 127]),
    ("int16", "INT16", "int_contents", [-32768, 32767]),
    ("int32", "INT32", "int_contents", [-(2**31), 2**31 - 1]),
    ("int64", "INT64", "int64_contents", [-(2**63), 2**63 - 1]),
    ("float32", "FP32", "fp32_contents", [float("-inf"), 1.5]),
    ("float64", "FP64", "fp64_contents", [5e-324, float("inf")]),
]


@pytest.mark.parametrize(("dtype", "datatype", "field", "values"), TYPED)
def test_typed_contents_are_binary_data(dtype: str, datatype: str, field: str, values: list[Any]) -> None:
    tensor = pb2.ModelInferRequest.InferInputTensor(name="x", datatype=datatype, shape=[2])
    getattr(tensor.contents, field).extend(values)
    message = pb2.ModelInferRequest(model_name="m", inputs=[tensor], id="a")
    message.parameters["timeout"].int64_param = 7
    rest, raw = split(message.SerializeToString())
    document, (piece,) = document_of(rest, raw)
    np.testing.assert_array_equal(np.frombuffer(piece, dtype), np.array(values, dtype))
    assert (document["id"], document["parameters"], document["inputs"][0]["shape"]) == ("a", {"timeout": 7}, [2])
    num_json, form = as_binary_form(rest)
    assert (json.loads(form[:num_json]), form[num_json:]) == (document, piece)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=6), st.text(max_size=50), st.lists(st.text(max_size=20), max_size=4))
def test_raw_data_stays_where_it_is(raw: list[bytes], name: str, names: list[str]) -> None:
    inputs = [{"name": each, "datatype": "FP32", "shape": [1]} for each in names]
    message = pb2.ModelInferRequest(model_name=name, inputs=inputs, raw_input_contents=raw)
    rest, found = split(message.SerializeToString())
    assert list(map(bytes, found)) == raw
    del message.raw_input_contents[:]
    assert pb2.ModelInferRequest.FromString(rest) == message


def tensor_with(datatype: str, shape: list[int], **contents: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": datatype, "shape": shape, "contents": contents}


ONE = {"name": "x", "datatype": "FP32", "shape": [1, 3]}
MALFORMED = [
    (b"\xff", "no ModelInferRequest"),
    (b"\x0a\xff\xff\xff\xff\x0f", "no ModelInferRequest"),
    (b"\x0b", "no ModelInferRequest"),
    (b"\x0a\x01\xff", "no ModelInferRequest"),  # no UTF-8
    (b"\x2a\x00" * 5000, "more than 4096 inputs"),
    (infer_message(inputs=[]), "input 'x' is missing"),
    (infer_message(inputs=[ONE], raw_input_contents=[b"\0" * 11]), "takes 12 bytes, got 11"),
    (infer_message(inputs=[ONE], raw_input_contents=[b"\0" * 12] * 2), "1 inputs and 2 raw_input_contents"),
    (infer_message(raw_input_contents=[b"\0" * 12]), "contents beside raw_input_contents"),
    (infer_message(inputs=[ONE]), "takes 12 bytes, got 0"),
    (infer_message(inputs=[tensor_with("FP32", [1, 3], fp64_contents=[1, 2, 3])]), "has fp64_contents, and FP32 takes fp32_contents"),
    (infer_message(inputs=[tensor_with("FP16", [1, 3], fp32_contents=[1, 2, 3])]), "FP16 has no typed contents"),
    (infer_message(inputs=[tensor_with("INT8", [1], int_contents=[128])]), "out of range for INT8"),
    (infer_message(inputs=[tensor_with("BYTES", [1], bytes_contents=[b"a"])]), "datatype 'BYTES' isn't supported"),
    (infer_message(inputs=[tensor_with("FP64", [1, 3], fp64_contents=[1, 2, 3])]), "the model takes FP32"),
    (infer_message(inputs=[tensor_with("FP32", [-1, -3], fp32_contents=[1, 2, 3])]), "not negative"),
    (infer_message(inputs=[{**ONE, "name": "z"}], raw_input_contents=[b"\0" * 12]), "unknown input 'z'"),
    (infer_message(inputs=[ONE, ONE], raw_input_contents=[b"\0" * 12] * 2), "'x' twice"),
    (infer_message(outputs=[{"name": "q"}]), "unknown output 'q'"),
    (infer_message(model_version="2"), "has no version '2'"),
    (infer_message(model_name="../affine"), "is not served here"),
    (infer_message(parameters={"timeout": pb2.InferParameter(int64_param=-1)}), "microseconds"),
    (infer_message(parameters={"x" * 70_000: pb2.InferParameter(bool_param=True)}), "larger than 65536 bytes"),
]


@pytest.mark.parametrize(("message", "text"), MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_requests_are_refused_in_one_line(grpc_server: Server, message: Any, text: str) -> None:
    code, details = refusal(grpc_server, message)
    assert code in (CODE.INVALID_ARGUMENT, CODE.NOT_FOUND)
    assert text in details
    assert "\n" not in details


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_messages_never_break_the_server(grpc_server: Server, data: st.DataObject) -> None:
    message = bytearray(infer_message().SerializeToString())
    for _ in range(data.draw(st.integers(1, 6))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    try:
        call(grpc_server, bytes(message))
    except grpc.RpcError as error:
        assert error.code() in (CODE.INVALID_ARGUMENT, CODE.NOT_FOUND), error
    assert outputs(call(grpc_server, infer_message())) == [[3, 5, 7], [6]]


def typed(count: int) -> Any:
    tensor = pb2.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[count, 3])
    tensor.contents.fp32_contents.extend(range(3 * count))
    return infer_message(inputs=[tensor])


def test_typed_contents_above_what_is_parsed_on_the_event_loop(grpc_server: Server) -> None:
    message = typed(1000)
    message.inputs[0].parameters["note"].string_param = "x" * 60_000
    y, _ = outputs(call(grpc_server, message))
    assert y == [2 * value + 1 for value in range(3000)]
    code, details = refusal(grpc_server, typed(10_000))
    assert (code, "the model takes 1 to 1024" in details) == (CODE.INVALID_ARGUMENT, True)


@pytest.mark.slow
def test_large_requests_are_bounded(grpc_server: Server) -> None:
    many = b"\x2a\x00" * (30 << 20)  # would be gigabytes of objects
    nested = pb2.ModelInferRequest(model_name="affine").SerializeToString() + field(5, b"\x22\x00" * (20 << 20))
    with ThreadPoolExecutor(3) as pool:
        refusals = [pool.submit(refusal, grpc_server, message) for message in (many, nested, typed(5 << 20))]
        slowest_s = 0.0
        while not all(future.done() for future in refusals):
            begin_s = time.monotonic()
            assert grpc_server.get("/v2/health/live").status == 200
            slowest_s = max(slowest_s, time.monotonic() - begin_s)
        assert {future.result()[0] for future in refusals} <= {CODE.INVALID_ARGUMENT, CODE.RESOURCE_EXHAUSTED}
    assert slowest_s < 5, "the event loop goes on"
    assert refusal(grpc_server, b"\x3a" + bytes(90 << 20))[0] == CODE.RESOURCE_EXHAUSTED
    assert outputs(call(grpc_server, infer_message())) == [[3, 5, 7], [6]]


def field(number: int, data: bytes) -> bytes:
    size, written = len(data), bytearray((number << 3 | 2,))
    while size >= 0x80:
        written.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*written, size]) + data


@pytest.mark.parametrize("letter", ["x", "é"])
def test_an_error_that_repeats_a_long_name_keeps_its_code(grpc_server: Server, letter: str) -> None:
    code, message = refusal(grpc_server, infer_message(model_name=letter * 20_000))
    assert code == CODE.NOT_FOUND
    assert message.startswith(f"model '{letter}")


def test_a_stream_without_a_key_is_counted() -> None:
    with numpy_server(grpc_port=0, api_keys=["one"]) as server:
        with grpc.insecure_channel(address(server)) as channel, pytest.raises(grpc.RpcError) as caught:
            list(channel.stream_stream(STREAM)(iter([infer_message().SerializeToString()]), timeout=60))
        assert caught.value.code() == CODE.UNAUTHENTICATED
        server.key = "one"
        assert server.metric(f'llmos_grpc_requests_total{{code="UNAUTHENTICATED",method="{STREAM}"}}') == 1


def test_keys_and_quotas_are_those_of_http() -> None:
    quotas = {"limited": {"requests_per_min": 2}}
    with numpy_server(grpc_port=0, api_keys=["one", "limited"], quotas=quotas) as server:
        assert refusal(server, infer_message())[0] == CODE.UNAUTHENTICATED
        assert refusal(server, infer_message(), x_api_key="two")[0] == CODE.UNAUTHENTICATED
        assert refusal(server, b"", method="/inference.GRPCInferenceService/ServerMetadata")[0] == CODE.UNAUTHENTICATED
        assert refusal(server, b"\x3a\xff\xff\xff\x08")[0] == CODE.UNAUTHENTICATED, "before the message"
        assert outputs(call(server, infer_message(), authorization="Bearer one")) == [[3, 5, 7], [6]]
        assert call(server, b"", method="/inference.GRPCInferenceService/ServerReady") == b"\x08\x01"
        assert call(server, b"", method="/grpc.health.v1.Health/Check") == b"\x08\x01"
        assert server.affine([1, 2, 3], {"X-Api-Key": "limited"}).status == 200
        call(server, infer_message(), x_api_key="limited")
        with pytest.raises(grpc.RpcError) as caught:
            call(server, infer_message(), x_api_key="limited")
        assert caught.value.code() == CODE.RESOURCE_EXHAUSTED
        assert int(dict(caught.value.trailing_metadata())["retry-after"]) > 0
        server.key = "one"
        start = f'llmos_grpc_requests_total{{code="%s",method="{INFER}"}}'
        assert [server.metric(start % code) for code in ("OK", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED")] == [2, 3, 1]
        lines = [json.loads(line) for line in server.log if INFER in line]
        assert [line["status"] for line in lines].count("OK") == 2
        assert lines[-1]["client"] == "127.0.0.1"


def test_an_address_that_is_banned_is_so_in_both_protocols() -> None:
    rules = 'interval_s: 0.02\nrules: [{name: abuse, when: {bad_requests_per_min: "> 20"}, action: {ban: {seconds: 600}}}]'
    with numpy_server(grpc_port=0, health=rules) as server:
        for _ in range(21):
            assert refusal(server, infer_message(model_name="none"))[0] == CODE.NOT_FOUND
        wait_for(lambda: server.get("/v1/models").status == 403)
        code, details = refusal(server, infer_message())
        assert (code, "too many bad requests" in details) == (CODE.PERMISSION_DENIED, True)
        assert call(server, b"", method="/grpc.health.v1.Health/Check") == b"\x08\x01", "probes are not banned"


def test_deadlines_and_cancellations_end_the_work() -> None:
    ended = 'llmos_request_success_total{finished_reason="%s",model_name="affine"}'
    with numpy_server(grpc_port=0, hold=True) as server, grpc.insecure_channel(address(server)) as channel:
        assert refusal(server, infer_message(), timeout_s=0.3)[0] == CODE.DEADLINE_EXCEEDED
        future = channel.unary_unary(INFER).future(infer_message().SerializeToString())
        wait_for(lambda: server.metric('llmos_num_requests_waiting{model_name="affine"}') == 1)
        future.cancel()
        wait_for(lambda: server.metric('llmos_num_requests_waiting{model_name="affine"}') == 0)
        message = infer_message()
        message.parameters["timeout"].int64_param = 200_000
        assert refusal(server, message)[0] == CODE.DEADLINE_EXCEEDED
        server.release()
        wait_for(lambda: server.metric(RUNNING) == 0)
        assert server.metric(ended % "stop") == 0
        assert outputs(call(server, infer_message())) == [[3, 5, 7], [6]]


def test_a_shutdown_finishes_calls_and_takes_no_more() -> None:
    with numpy_server(grpc_port=0, hold=True, grace_s=3600) as server, ThreadPoolExecutor(1) as pool:
        held = pool.submit(call, server, infer_message())
        wait_for(lambda: server.metric(RUNNING) == 1)
        server.process.terminate()
        wait_for(lambda: server.get("/v2/health/ready").status == 503)
        assert call(server, b"", method="/grpc.health.v1.Health/Check") == b"\x08\x02"
        wait_for(lambda: any("draining" in line for line in server.log))
        assert refusal(server, infer_message())[0] == CODE.UNAVAILABLE
        server.release()
        assert outputs(held.result()) == [[3, 5, 7], [6]]
        assert server.process.wait(60) == 0


def test_an_idle_stream_ends_when_the_server_does() -> None:
    sent: queue.Queue[bytes | None] = queue.Queue()
    with numpy_server(grpc_port=0, grace_s=3600) as server, grpc.insecure_channel(address(server)) as channel:
        answers = channel.stream_stream(STREAM)(iter(sent.get, None), timeout=300)
        for _ in range(2):
            sent.put(infer_message().SerializeToString())
            assert next(answers)
        server.process.terminate()
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        assert caught.value.code() == CODE.UNAVAILABLE, "it is told, before the port closes"
        assert "shutting down" in caught.value.details()
        sent.put(None)
        assert server.process.wait(60) == 0


def test_answers_are_kept_as_over_http() -> None:
    runs, hits = (
        'llmos_request_success_total{finished_reason="stop",model_name="affine"}',
        'llmos_response_cache_hits_total{model_name="affine"}',
    )
    with numpy_server(grpc_port=0, api_keys=["one", "two"], response_cache_bytes=1 << 20) as server:
        server.key = "one"
        first = call(server, infer_message(id="a"), x_api_key="one")
        assert call(server, infer_message(id="a"), x_api_key="one") == first
        assert (server.metric(runs), server.metric(hits)) == (1, 1)
        assert call(server, infer_message(id="a"), x_api_key="two") == first
        assert call(server, infer_message(id="b"), x_api_key="one") != first
        assert server.affine([1, 2, 3]).status == server.affine([1, 2, 3]).status == 200
        assert (server.metric(runs), server.metric(hits)) == (4, 2)


@pytest.mark.parametrize("method", ["ModelReady", "ModelMetadata", "ServerMetadata", "ServerLive", "ServerReady"])
def test_only_infer_takes_large_messages(grpc_server: Server, method: str) -> None:
    assert refusal(grpc_server, b"\x2a\x00" * (1 << 16), method=INFER.replace("ModelInfer", method))[0] == CODE.RESOURCE_EXHAUSTED


def test_a_second_signal_ends_calls() -> None:
    with numpy_server(grpc_port=0, hold=True, grace_s=3600) as server, ThreadPoolExecutor(1) as pool:
        held = pool.submit(refusal, server, infer_message())
        wait_for(lambda: server.metric(RUNNING) == 1)
        server.process.terminate()
        wait_for(lambda: server.get("/v2/health/ready").status == 503)
        server.process.send_signal(signal.SIGINT)
        assert held.result()[0] == CODE.UNAVAILABLE
        assert server.process.wait(60) == 1


def test_a_port_in_use_is_one_line(grpc_server: Server, tmp_path: Path) -> None:
    command = [*COMMAND, str(affine_artifact(tmp_path / "affine.llmos")), "--grpc-port", str(grpc_server.grpc_port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.count("\n"), "choose another --grpc-port" in done.stderr) == (2, 1, True), done


@pytest.mark.slow
def test_tls(tmp_path: Path) -> None:
    certificate, key = _certificate(tmp_path)
    artifact = affine_artifact(tmp_path / "affine.llmos")
    options = ["--tls-cert", str(certificate), "--tls-key", str(key), "--grpc-port", "0"]
    with running([*COMMAND, str(artifact), *options]) as server:
        credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
        names = [("grpc.ssl_target_name_override", "localhost")]
        with grpc.secure_channel(address(server), credentials, names) as channel:
            answer = channel.unary_unary(INFER)(infer_message().SerializeToString(), timeout=60)
            assert outputs(answer) == [[3, 5, 7]]
