"""`llmos serve minilm.llmos`: 32 clients at once get what the program gives in process, and batching pays."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import tritonclient.http as triton

import llmos
from benchmarks.served import Served, run, serving
from llmos.runtime.bench.load import ClosedLoop
from llmos.runtime.bench.report import summary
from llmos.runtime.bench.workload import Length, TextWorkload
from llmos.runtime.engine import load_model
from llmos.runtime.text.tokenizer import TextEncoder

NUM_CLIENTS = 32
TEXT = "the quick brown fox jumps over a lazy dog while two happy people walk home along the river in the evening sun"
WORDS = TEXT.split()
TEXTS = [" ".join(WORDS[(number * 5 + word) % len(WORDS)] for word in range(3 + number % 8)) for number in range(NUM_CLIENTS)]
Vectors = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def served(minilm: Path) -> Iterator[Served]:
    with serving(minilm) as found:
        yield found


@pytest.fixture(scope="module")
def inputs(minilm: Path) -> list[dict[str, Vectors]]:
    """The model's inputs for each text, tokenized with the artifact's own tokenizer."""
    encoder = TextEncoder(load_model(minilm))
    return [encoder.inputs(ids) for ids in encoder.encode(TEXTS)]


@pytest.fixture(scope="module")
def expected(minilm: Path, inputs: list[dict[str, Vectors]]) -> Vectors:
    """Each text alone, in this process: float32 [texts, 384]."""
    with llmos.load(minilm) as program:
        return np.concatenate([program(**one) for one in inputs])


def test_32_clients_through_openai(served: Served, expected: Vectors) -> None:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key="none", max_retries=0) as client:

        def embed(text: str) -> list[float]:
            return client.embeddings.create(model="minilm", input=text).data[0].embedding

        with ThreadPoolExecutor(NUM_CLIENTS) as pool:
            for _ in range(3):
                found = np.array(list(pool.map(embed, TEXTS)), np.float32)
                assert np.abs(found - expected).max() < 1e-6


def test_32_clients_through_tritonclient(served: Served, inputs: list[dict[str, Vectors]], expected: Vectors) -> None:
    def infer(arrays: dict[str, Vectors]) -> Vectors:
        tensors = [triton.InferInput(name, list(array.shape), "INT64").set_data_from_numpy(array) for name, array in arrays.items()]
        with triton.InferenceServerClient(f"127.0.0.1:{served.port}") as client:
            return np.asarray(client.infer("minilm", tensors).as_numpy("embeddings"))

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        found = np.concatenate(list(pool.map(infer, inputs)))
    assert np.abs(found - expected).max() < 1e-6


@pytest.mark.slow
def test_batching_pays(served: Served) -> None:
    """`benchmarks/serving.py` has the figures (docs/performance.md); this bound holds on a busy machine."""
    workload = TextWorkload("embeddings", "minilm", Length.parse("3:10"), Length.parse("1"))
    gains = []
    for seed in range(3):
        one, many = (summary(run(served.port, ClosedLoop(clients, 60, 600), workload, seed), None) for clients in (1, NUM_CLIENTS))
        assert one["num_ok"] == many["num_ok"] == 600
        gains.append(many["requests_per_s"] / one["requests_per_s"])
        if gains[-1] > 1.5:
            return
    assert max(gains) > 1.2, gains
