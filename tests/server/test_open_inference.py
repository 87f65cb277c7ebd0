"""The Open Inference Protocol, through tritonclient and by hand."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from ..engine.numpy_models import VOCABULARY, Echo, Encoder  # noqa: TID252
from .harness import Server, affine_body

Array = np.ndarray[Any, Any]


@pytest.fixture
def client(server: Server) -> Any:
    with triton.InferenceServerClient(server.address) as found:
        yield found


def tensor(name: str, array: Array, *, binary: bool = True) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("encoder")
    assert client.is_model_ready("encoder", "1")
    assert not client.is_model_ready("nothing")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("encoder", "1")
    assert metadata["inputs"] == [
        {"name": "input_ids", "datatype": "INT64", "shape": [-1, -1]},
        {"name": "attention_mask", "datatype": "INT64", "shape": [-1, -1]},
    ]
    assert metadata["outputs"] == [{"name": "embeddings", "datatype": "FP32", "shape": [-1, 16]}]


EXTREMES: dict[str, list[Any]] = {
    "bool": [True, False],
    "float16": [-65504.0, 6e-8],
    "bfloat16": [-1.5, 3.0e38],
    "float32": [1e-45, -3.4028234663852886e38],
    "float64": [5e-324, 1.7976931348623157e308],
}


def echo_arrays() -> dict[str, Array]:
    arrays = {}
    for dtype in Echo.DTYPES:
        kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
        limits = EXTREMES.get(dtype) or [np.iinfo(dtype).min, np.iinfo(dtype).max]
        arrays[dtype] = np.array([limits, [0, 1]], dtype=kind)
    return arrays


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_every_dtype_comes_back_unchanged(client: Any, binary_in: bool, binary_out: bool | None) -> None:
    arrays = echo_arrays()
    # BF16 has no JSON form in this client.
    inputs = [tensor(f"in_{dtype}", array, binary=binary_in or dtype == "bfloat16") for dtype, array in arrays.items()]
    outputs = None if binary_out is None else [triton.InferRequestedOutput(f"out_{dtype}", binary_data=binary_out) for dtype in arrays]
    result = client.infer("echo", inputs, outputs=outputs, request_id="a-request")
    assert result.get_response()["id"] == "a-request"
    for dtype, array in arrays.items():
        returned = result.as_numpy(f"out_{dtype}")
        assert returned.dtype == array.dtype
        np.testing.assert_array_equal(returned, array)


def test_bfloat16_in_json_rounds_to_nearest_even(server: Server) -> None:
    arrays = echo_arrays()
    items = [{"name": f"in_{dtype}", "datatype": "X", "shape": [1, 2], "data": [1, 0]} for dtype in arrays]
    for item, dtype in zip(items, arrays, strict=True):
        item["datatype"] = np_to_triton_dtype(arrays[dtype].dtype)
    values = [1.00390625, 3.3895313892515355e38]  # halfway between two bfloat16s; the largest finite one
    items[list(arrays).index("bfloat16")]["data"] = values
    answer = server.request("POST", "/v2/models/echo/infer", {"inputs": items, "outputs": [{"name": "out_bfloat16"}]})
    expected = np.array(values, dtype=np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)
    (output,) = answer.json()["outputs"]
    np.testing.assert_array_equal(np.array(output["data"], np.float32), expected)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(client: Any, algorithm: str) -> None:
    result = client.infer("affine", [tensor("x", np.ones((2, 3), np.float32))], request_compression_algorithm=algorithm)
    np.testing.assert_array_equal(result.as_numpy("y"), np.full((2, 3), 3.0, np.float32))


def test_outputs_may_be_chosen_one_by_one(client: Any) -> None:
    outputs = [triton.InferRequestedOutput("sum", binary_data=False)]
    result = client.infer("affine", [tensor("x", np.ones((1, 3), np.float32))], outputs=outputs, model_version="1")
    assert result.get_response() == {
        "model_name": "affine",
        "model_version": "1",
        "outputs": [{"name": "sum", "datatype": "FP64", "shape": [1], "data": [3.0]}],
    }


def test_nested_json_data(server: Server) -> None:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 3], "data": [[1, 2, 3], [4, 5, 6]]}]}
    assert server.request("POST", "/v2/models/affine/infer", body).json()["outputs"][1]["data"] == [6.0, 15.0]


def test_nan_is_null_in_json_and_infinity_is_an_error_that_says_what_to_do(server: Server, client: Any) -> None:
    body = affine_body([0, 0, 0])
    assert server.request("POST", "/v2/models/not-finite/infer", body).json()["outputs"][0]["data"] == [None, None, None]
    answer = server.request("POST", "/v2/models/not-finite/infer", affine_body([0, 1, 0]))
    assert answer.status == 400
    assert "ask for binary data" in answer.json()["error"]
    result = client.infer("not-finite", [tensor("x", np.array([[0, 1, -1]], np.float32))])
    np.testing.assert_array_equal(result.as_numpy("x"), [[np.nan, np.inf, -np.inf]])


def test_client_errors_are_readable(client: Any) -> None:
    with pytest.raises(InferenceServerException, match=r"input 'x' has shape \[1, 4\], the model takes \[batch, 3\]") as caught:
        client.infer("affine", [tensor("x", np.ones((1, 4), np.float32))])
    assert caught.value.status() == "400"
    with pytest.raises(InferenceServerException, match="model 'nothing' is not served here") as caught:
        client.infer("nothing", [tensor("x", np.ones((1, 3), np.float32))])
    assert caught.value.status() == "404"


def test_32_clients_at_once_get_what_each_gets_alone(server: Server) -> None:
    model = Encoder()

    def call(number: int) -> float:
        random = np.random.default_rng(number)
        ids = random.integers(0, VOCABULARY, (1 + number % 3, 1 + number % 40))
        mask = np.ones_like(ids)
        with triton.InferenceServerClient(server.address) as client:
            worst = 0.0
            for _ in range(5):
                result = client.infer("encoder", [tensor("input_ids", ids), tensor("attention_mask", mask)])
                worst = max(worst, float(np.abs(result.as_numpy("embeddings") - model.compute([ids, mask])[0]).max()))
            return worst

    with ThreadPoolExecutor(32) as pool:
        assert max(pool.map(call, range(32))) <= 1e-6


def raw(body: Any, headers: dict[str, str] | None = None) -> tuple[bytes, dict[str, str]]:
    return (body if isinstance(body, bytes) else json.dumps(body).encode()), headers or {}


def changed(**fields: Any) -> dict[str, Any]:
    body = affine_body([1, 2, 3])
    body["inputs"][0].update(fields)
    return {"inputs": [{key: value for key, value in body["inputs"][0].items() if value is not None}]}


def binary(size: Any, data: bytes, header: str | None = None) -> tuple[bytes, dict[str, str]]:
    head = json.dumps(changed(data=None, parameters={"binary_data_size": size})).encode()
    return head + data, {"Inference-Header-Content-Length": header or str(len(head))}


MALFORMED = [
    (raw(b""), "not valid JSON"),
    (raw(b"{"), "not valid JSON"),
    (raw(b"\xff\xfe\xfd"), "not valid JSON"),
    (raw(b"[" * 100_000), "not valid JSON"),
    (raw(b'{"inputs": ' + b"9" * 10_000 + b"}"), "not valid JSON"),
    (raw([]), "must be a JSON object"),
    (raw({}), "'inputs' must be an array"),
    (raw({"inputs": {}}), "'inputs' must be an array"),
    (raw({"inputs": [1]}), "each with a 'name'"),
    (raw({"inputs": [{"name": 3}]}), "each with a 'name'"),
    (raw({"inputs": []}), "input 'x' is missing"),
    (raw({"inputs": affine_body([1, 2, 3])["inputs"] * 2}), "'x' twice"),
    (raw(changed(name="z")), "unknown input 'z'"),
    (raw(changed(name="\ud800")), "not valid JSON"),
    (raw(changed(datatype="FP64")), "the model takes FP32"),
    (raw(changed(datatype=None)), "the model takes FP32"),
    (raw(changed(shape="x")), "'shape' must be"),
    (raw(changed(shape=[True, 3])), "'shape' must be"),
    (raw(changed(shape=[-1, -3])), "'shape' must be"),
    (raw(changed(shape=[1] * 40)), "too large"),
    (raw(changed(shape=[10**12, 10**12])), "too large"),
    (raw(changed(shape=[0, 3], data=[])), "batch = 0"),
    (raw(changed(shape=[3])), "the model takes [batch, 3]"),
    (raw(changed(data=[1, 2])), "takes 3 elements"),
    (raw(changed(data=[[1, 2], [3]])), "nested evenly"),
    (raw(changed(data=[[1], 2, 3])), "nested evenly"),
    (raw(changed(data=[1, [2], 3])), "no FP32"),
    (raw(changed(data=["1", "2", "3"])), "no FP32"),
    (raw(changed(data=[True, 2, 3])), "no FP32"),
    (raw(changed(data=[{}, 2, 3])), "no FP32"),
    (raw(changed(data=[10**400, 2, 3])), "not valid JSON"),
    (raw(changed(data=[1e39, 2, 3])), "out of range"),
    (raw(changed(data="123")), "'data' must be an array"),
    (raw(changed(data=None)), "neither 'data' nor"),
    (raw(changed(parameters=[])), "'parameters' must be an object"),
    (raw(changed(parameters={"shared_memory_region": "r"})), "shared memory"),
    (raw({**changed(), "parameters": {"timeout": -1}}), "microseconds"),
    (raw({**changed(), "parameters": {"binary_data_output": 1}}), "true or false"),
    (raw({**changed(), "outputs": [{"name": "q"}]}), "unknown output 'q'"),
    (raw({**changed(), "outputs": "y"}), "'outputs' must be"),
    (raw({**changed(), "outputs": [{"name": "y", "parameters": {"classification": 2}}]}), "'classification' isn't supported"),
    (raw({**changed(), "id": 7}), "'id' must be a string"),
    (raw(changed(), {"Inference-Header-Content-Length": "x"}), "Inference-Header-Content-Length"),
    (raw(changed(), {"Inference-Header-Content-Length": "-1"}), "Inference-Header-Content-Length"),
    (raw(changed(), {"Inference-Header-Content-Length": "99999"}), "Inference-Header-Content-Length"),
    (raw(changed(), {"Inference-Header-Content-Length": "9" * 50}), "Inference-Header-Content-Length"),
    (raw(changed(), {"X-Request-Timeout": "soon"}), "X-Request-Timeout"),
    (raw(changed(), {"X-Request-Timeout": "nan"}), "X-Request-Timeout"),
    (raw(b"not gzip", {"Content-Encoding": "gzip"}), "damaged"),
    (raw(b"\x1f\x8b\x08\x00\x00\x00\x00\x00", {"Content-Encoding": "gzip"}), "cut short"),
    (binary(12, b"\0" * 11), "11 are there"),
    (binary(12, b"\0" * 13), "belong to no input"),
    (binary(8, b"\0" * 8), "takes 12 bytes, got 8"),
    (binary(-4, b"\0" * 12), "not negative"),
    (binary(1 << 60, b"\0" * 12), "12 are there"),
    (binary("12", b"\0" * 12), "not negative"),
    (binary(12, b"\0" * 12, header="5"), "not valid JSON"),
]


@pytest.mark.parametrize(("request_", "message"), MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_requests_get_a_readable_400(server: Server, request_: tuple[bytes, dict[str, str]], message: str) -> None:
    body, headers = request_
    answer = server.request("POST", "/v2/models/affine/infer", body, headers)
    assert answer.status == 400, answer
    assert message in answer.json()["error"]
    assert "\n" not in answer.json()["error"]
    assert server.affine([1, 2, 3]).status == 200


def test_integers_and_bools_in_json_are_checked(server: Server) -> None:
    arrays = echo_arrays()

    def status(dtype: str, data: list[Any]) -> int:
        items = [
            {"name": f"in_{name}", "datatype": np_to_triton_dtype(array.dtype), "shape": [1, 2], "data": data if name == dtype else [1, 1]}
            for name, array in arrays.items()
        ]
        return server.request("POST", "/v2/models/echo/infer", {"inputs": items}).status

    good: list[tuple[str, list[Any]]] = [("bool", [True, 0]), ("uint8", [0, 255]), ("int64", [-(2**63), 0]), ("uint64", [2**64 - 1, 0])]
    bad: list[tuple[str, list[Any]]] = [
        ("bool", [2, 0]),
        ("uint8", [0, 256]),
        ("uint8", [-1, 0]),
        ("int64", [2**63, 0]),
        ("int32", [1.5, 0]),
    ]
    assert [status(*case) for case in good] == [200] * len(good)
    assert [status(*case) for case in bad] == [400] * len(bad)


def test_a_bool_byte_is_0_or_1(server: Server, client: Any) -> None:
    inputs = [tensor(f"in_{dtype}", array) for dtype, array in echo_arrays().items()]
    inputs[0]._raw_data = b"\x00\x01\x02\x00"
    with pytest.raises(InferenceServerException, match="must be 0 or 1"):
        client.infer("echo", inputs)
