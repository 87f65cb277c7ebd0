"""What a step of the generation engine takes outside compiled code: `benchmarks/generation.py`.

The model gives constant logits at once, so what remains is planning, the arrays, sampling (whose pass over the logits is compiled code,
and is given apart), commit and delivery. Targets: under 100 microseconds at batch 1, 300 at batch 16; a call of a program adds about 30.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from llmos.runtime.engine.generate import (
    GenerationEngine,
    GenerationOptions,
    Limits,
    NullGenerationObserver,
    SamplingParams,
    StepReport,
    StepSizes,
)
from llmos.runtime.engine.generate.null import null_spec
from llmos.runtime.native.sampling import RowSampling, sample_rows

VOCABULARY, TOKENS = 32_000, 400
BATCHES = (1, 4, 16, 64)


class ConstantModel:
    """Gives the same logits for every row."""

    name = "constant"
    spec = null_spec(vocab_size=VOCABULARY, max_length=4096, block_size=16)
    sizes = StepSizes(1024, 128, 256)

    def __init__(self) -> None:
        self.logits = np.random.default_rng(0).standard_normal((256, VOCABULARY)).astype(np.float32)

    def __call__(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        return self.logits[: len(arrays[5])]


class Steps(NullGenerationObserver):
    """Keeps the durations of steps of decodes alone."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.durations_s: list[float] = []

    def on_step(self, report: StepReport) -> None:
        if report.num_tokens == report.num_decodes == self.batch:
            self.durations_s.append(report.step_s)


def step_us(model: ConstantModel, batch: int) -> list[float]:
    steps = Steps(batch)
    limits = Limits(max_tokens=1024, max_requests=64, max_rows=128)
    options = GenerationOptions(limits=limits, cache_blocks=64 * 64, prefix_cache=False, slowdown=math.inf)
    engine = GenerationEngine(model, options, observer=steps)
    params = SamplingParams(temperature=0, max_tokens=TOKENS)
    requests = [engine.submit(np.arange(3, 23), params) for _ in range(batch)]
    assert all(len(request.result()[0].tokens) == TOKENS for request in requests)
    engine.close()
    return [1e6 * duration_s for duration_s in steps.durations_s]


def sampling_us(model: ConstantModel, batch: int) -> list[float]:
    """Of the pass over the logits: a call for all rows less one for rows of a few logits."""
    rows: list[Any] = [RowSampling()] * batch, list(range(batch)), [None] * batch  # type: ignore[assignment]
    found = []
    for logits in (model.logits[:batch], np.ascontiguousarray(model.logits[:batch, :16])):
        durations = []
        for _ in range(200):
            begin = time.perf_counter()
            sample_rows(logits, *rows)
            durations.append(1e6 * (time.perf_counter() - begin))
        found.append(np.sort(durations))
    return list(found[0] - found[1])


def main() -> None:
    model = ConstantModel()
    print(f"{'batch':>5} {'step: fastest 5 %, median us':>30} {'of it the logits':>18}")
    for batch in BATCHES:
        steps, logits = step_us(model, batch), sampling_us(model, batch)
        print(f"{batch:5d} {np.percentile(steps, 5):20.0f} {np.median(steps):9.0f} {np.median(logits):18.0f}")


if __name__ == "__main__":
    main()
