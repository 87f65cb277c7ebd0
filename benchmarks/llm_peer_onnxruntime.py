"""ONNX Runtime GenAI for benchmarks/llm.py: `python llm_peer_onnxruntime.py DIR THREADS`; the likeliest token is taken.

DIR is made by `python -m onnxruntime_genai.models.builder -i MODEL -o DIR -p int4 -e cpu`. Requests of a batch have the same length, so
that none of them is padded.
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime_genai as genai
from llm_peer import answer_points


def run(model: genai.Model, vocabulary: int, prompt: int, generated: int, batch: int) -> dict[str, float]:
    """Seconds from the start to the first token of the last request, and to the last token."""
    prompts = np.random.default_rng(0).integers(10, vocabulary, (batch, prompt), dtype=np.int32)
    length = prompt + generated
    params = genai.GeneratorParams(model)
    params.set_search_options(batch_size=batch, min_length=length, max_length=length, do_sample=False)
    start = time.perf_counter()
    generator = genai.Generator(model, params)
    generator.append_tokens(prompts)
    generator.generate_next_token()
    first = time.perf_counter() - start
    for _ in range(generated - 1):
        generator.generate_next_token()
    last = time.perf_counter() - start
    assert all(len(generator.get_sequence(row)) == length for row in range(batch))
    return {"first_s": first, "last_s": last}


def main() -> None:
    path, threads = sys.argv[1], int(sys.argv[2])
    config = genai.Config(path)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    vocabulary = json.loads(Path(path, "genai_config.json").read_text(encoding="utf-8"))["model"]["vocab_size"]
    answer_points(partial(run, genai.Model(config), vocabulary))


if __name__ == "__main__":
    main()
