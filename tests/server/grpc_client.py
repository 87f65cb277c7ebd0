"""What tritonclient's gRPC clients see; in a process of its own, since its protobuf symbols are those of the server's package as well.

The arguments: the name of a function below, and the server's address.
"""

from __future__ import annotations

import asyncio
import queue
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))

from numpy_models import VOCABULARY, Echo, Encoder


def tensor(name: str, array: np.ndarray) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array)
    return made


def refused(code: str, call: Any) -> str:
    try:
        call()
    except InferenceServerException as error:
        assert str(error.status()) == f"StatusCode.{code}", error
        return str(error.message())
    raise AssertionError(f"it was not refused with {code}")


def metadata_and_inference(address: str) -> None:
    with triton.InferenceServerClient(address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("encoder", "1")
        assert not client.is_model_ready("encoder", "2")
        assert not client.is_model_ready("nothing")
        assert client.get_server_metadata(as_json=True)["name"] == "llmos"
        metadata = client.get_model_metadata("encoder", as_json=True)
        assert metadata["versions"] == ["1"]
        assert metadata["inputs"][1] == {"name": "attention_mask", "datatype": "INT64", "shape": ["-1", "-1"]}
        arrays = {}
        for dtype in Echo.DTYPES:
            kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
            limits = [np.iinfo(kind).min, np.iinfo(kind).max] if kind.kind in "iu" else [0, 1]
            arrays[dtype] = np.array([limits, [0, 1]], kind)
        result = client.infer("echo", [tensor(f"in_{dtype}", array) for dtype, array in arrays.items()], request_id="an-id")
        assert result.get_response().id == "an-id"
        for dtype, array in arrays.items():
            np.testing.assert_array_equal(result.as_numpy(f"out_{dtype}"), array)
        x = np.array([[1, 2, 3], [4, 5, np.inf]], np.float32)
        result = client.infer("affine", [tensor("x", x)], outputs=[triton.InferRequestedOutput("y")], model_version="1")
        np.testing.assert_array_equal(result.as_numpy("y"), 2 * x + 1)
        assert result.as_numpy("sum") is None
        result = client.infer("affine", [tensor("x", np.ones((1, 3), np.float32))], compression_algorithm="gzip")
        np.testing.assert_array_equal(result.as_numpy("y"), [[3, 3, 3]])
        wrong = tensor("x", np.ones((1, 4), np.float32))
        assert "input 'x' has shape [1, 4], the model takes [batch, 3]" in refused(
            "INVALID_ARGUMENT", lambda: client.infer("affine", [wrong])
        )
        assert "'nothing' is not served here" in refused("NOT_FOUND", lambda: client.infer("nothing", [wrong]))
        refused("UNIMPLEMENTED", client.get_model_repository_index)
        large = np.arange(3 << 18, dtype=np.float32).reshape(-1, 3)[:1024]
        np.testing.assert_array_equal(client.infer("affine", [tensor("x", large)]).as_numpy("y"), 2 * large + 1)


def streaming(address: str) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton.InferenceServerClient(address) as client:
        client.start_stream(callback=lambda result, error: answers.put((result, error)))
        for number in range(20):
            width = 4 if number == 10 else 3
            client.async_stream_infer("affine", [tensor("x", np.full((1, width), number, np.float32))], request_id=str(number))
        for number in range(20):
            result, error = answers.get(timeout=60)
            if number == 10:
                assert "has shape [1, 4]" in str(error)
                continue
            assert error is None, error
            assert result.get_response().id == str(number)
            np.testing.assert_array_equal(result.as_numpy("y"), np.full((1, 3), 2 * number + 1, np.float32))
        client.stop_stream()


def many_at_once(address: str) -> None:
    model = Encoder()

    async def call(client: triton_aio.InferenceServerClient, number: int) -> float:
        random = np.random.default_rng(number)
        ids = random.integers(0, VOCABULARY, (1 + number % 3, 1 + number % 40))
        mask = np.ones_like(ids)
        result = await client.infer("encoder", [tensor("input_ids", ids), tensor("attention_mask", mask)])
        return float(np.abs(result.as_numpy("embeddings") - model.compute([ids, mask])[0]).max())

    async def main() -> None:
        async with triton_aio.InferenceServerClient(address) as client:
            assert max(await asyncio.gather(*(call(client, number) for number in range(64)))) <= 1e-6

    asyncio.run(main())


def repository(address: str) -> None:
    with triton.InferenceServerClient(address) as client:
        states = [(model.name, model.version, model.state) for model in client.get_model_repository_index().models]
        assert states == [("affine", "1", "UNAVAILABLE")]
        client.load_model("affine")
        assert client.is_model_ready("affine", "1")
        result = client.infer("affine", [tensor("x", np.ones((1, 3), np.float32))])
        np.testing.assert_array_equal(result.as_numpy("y"), [[3, 3, 3]])
        client.unload_model("affine")
        assert not client.is_model_ready("affine")
        refused("NOT_FOUND", lambda: client.load_model("nothing"))
        assert "'config' isn't supported" in refused("INVALID_ARGUMENT", lambda: client.load_model("affine", config="{}"))


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2])
