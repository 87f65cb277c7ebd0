"""OpenVINO GenAI for benchmarks/llm.py: `python llm_peer_openvino.py MODEL THREADS`; MODEL is a GGUF file or a directory in its form.

Its continuous batching with a paged cache, as its server has it; the likeliest token is taken.
"""

from __future__ import annotations

import sys
import time
from functools import partial

import numpy as np
import openvino as ov
import openvino_genai as genai
from llm_peer import answer_points

KNOWN_IDS = 500  # every model has so many; a directory may lack a tokenizer that says how many more
CACHE_GB, TOKENS_OF_STEP = 2, 1024  # both as benchmarks/llm.py gives llmos


def run(pipeline: genai.ContinuousBatchingPipeline, prompt: int, generated: int, batch: int) -> dict[str, float]:
    """Seconds from the start to the first token of the last request, and to the last token."""
    prompts = np.random.default_rng(0).integers(10, KNOWN_IDS, (batch, 1, prompt))
    config = genai.GenerationConfig(max_new_tokens=generated, ignore_eos=True, do_sample=False)
    start = time.perf_counter()
    handles = [pipeline.add_request(number, ov.Tensor(ids), config) for number, ids in enumerate(prompts)]
    waiting, first = set(range(batch)), 0.0
    while pipeline.has_non_finished_requests():
        pipeline.step()
        waiting -= {number for number in waiting if handles[number].can_read()}
        first = first or (0.0 if waiting else time.perf_counter() - start)
    last = time.perf_counter() - start
    lengths = [len(each.generated_ids) for handle in handles for each in handle.read_all()]
    assert lengths == [generated] * batch, lengths
    return {"first_s": first, "last_s": last}


def main() -> None:
    path, threads = sys.argv[1], int(sys.argv[2])
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size, scheduler.max_num_batched_tokens, scheduler.enable_prefix_caching = CACHE_GB, TOKENS_OF_STEP, False
    answer_points(partial(run, genai.ContinuousBatchingPipeline(path, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads})))


if __name__ == "__main__":
    main()
