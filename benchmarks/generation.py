"""What a step of the generation engine takes outside compiled code: `benchmarks/generation.py [M.llmos]`.

Without an artifact the model gives constant logits, so what remains is planning, the arrays, sampling, commit and delivery. It gives
them at once, or reads 64 MiB first, as a model reads its weights, so that nothing of Python is left in a cache. With an artifact the
call of its entry is in it too. Time in the code of artifacts and in the sampler's pass over the logits is left out. Targets, in
microseconds: 100 at batch 1, 300 at batch 16.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

import llmos
from llmos.runtime.engine.generate import (
    GenerationEngine,
    GenerationOptions,
    Limits,
    NullGenerationObserver,
    ProgramStepModel,
    SamplingParams,
    StepModel,
    StepReport,
    StepSizes,
)
from llmos.runtime.engine.generate.null import null_spec
from llmos.runtime.native.binding import core

VOCABULARY, TOKENS = 32_000, 200
BATCHES = (1, 4, 16, 64)


class ConstantModel:
    """Gives the same logits for every row. read: what it reads first."""

    name = "constant"
    spec = null_spec(vocab_size=VOCABULARY, max_length=4096, block_size=16)
    sizes = StepSizes(1024, 128, 256)

    def __init__(self, read: Callable[[], Any]) -> None:
        logits = np.random.default_rng(0).standard_normal((256, VOCABULARY)).astype(np.float32)
        self._logits = [logits[:count] for count in range(257)]
        self._read = read

    def __call__(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        self._read()
        return self._logits[len(arrays[5])]


class Compiled:
    """Adds up the seconds that are spent in functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.perf_counter() - begin

        return call


class Steps(NullGenerationObserver):
    """Keeps, of steps of decodes alone, the seconds outside compiled code."""

    def __init__(self, batch: int, compiled: Compiled) -> None:
        self.batch, self.compiled = batch, compiled
        self.outside_s: list[float] = []

    def on_step(self, report: StepReport) -> None:
        if report.num_tokens == report.num_decodes == self.batch:
            self.outside_s.append(report.step_s - self.compiled.seconds)
        self.compiled.seconds = 0.0


def outside_us(model: StepModel, compiled: Compiled, batch: int) -> np.ndarray:
    steps = Steps(batch, compiled)
    limits = Limits(max_tokens=1024, max_requests=64, max_rows=128)
    options = GenerationOptions(limits=limits, cache_blocks=64 * 16, prefix_cache=False, slowdown=math.inf)
    engine = GenerationEngine(model, options, observer=steps)
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    requests = [engine.submit(np.arange(3, 23), params) for _ in range(batch)]
    assert all(len(request.result()[0].tokens) == TOKENS for request in requests)
    engine.close()
    return 1e6 * np.array(steps.outside_s)


@click.command(help=__doc__)
@click.argument("artifact", required=False, type=click.Path(exists=True, path_type=Path))
def main(artifact: Path | None) -> None:
    compiled = Compiled()
    library = core()
    library.sample, library.run = compiled.timed(library.sample), compiled.timed(library.run)
    if artifact is not None:
        models: dict[str, StepModel] = {artifact.stem: ProgramStepModel(llmos.load(artifact))}
    else:
        read = compiled.timed(np.ones(16 << 20, np.float32).sum)
        models = {"caches warm": ConstantModel(lambda: None), "caches cold": ConstantModel(read)}
    print(f"{'microseconds a step':24} {'batch':>5} {'fastest 5 %':>12} {'median':>8}")
    for name, model in models.items():
        for batch in BATCHES:
            found = outside_us(model, compiled, batch)
            print(f"{name:24} {batch:5d} {np.percentile(found, 5):12.0f} {np.median(found):8.0f}", flush=True)


if __name__ == "__main__":
    main()
