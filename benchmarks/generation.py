"""What a step of the generation engine takes outside compiled code: `benchmarks/generation.py [M.llmos]`.

Without an artifact the model gives constant logits, so what remains is planning, the arrays, sampling, commit and delivery. It gives
them at once, or reads 64 MiB first, as a model reads its weights, so that nothing of Python is left in a cache. With an artifact the
call of its entry is in it too. Time in the code of artifacts and in the sampler's pass over the logits is left out. Targets, in
microseconds: 100 at batch 1, 300 at batch 16.

With an artifact follow three latencies: the first token of a prompt of PROMPT tokens when all but the last are cached, beside the same
uncached (target: 5 %); the 95th percentile of times between tokens of one request while prompts of others are computed, beside that of the
request alone (1.5 times); and the start of a process of `llmos run` to its first token (1.5 s for a billion parameters).
"""

from __future__ import annotations

import math
import subprocess
import sys
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
PROMPT, ROUNDS = 1008, 5


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


class Gaps(NullGenerationObserver):
    """Keeps the times between tokens."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step(self, report: StepReport) -> None:
        self.seconds += report.inter_token_s


def first_token_s(engine: GenerationEngine, prompt: np.ndarray) -> float:
    begin = time.perf_counter()
    engine.submit(prompt, SamplingParams(temperature=0, max_tokens=1)).result()
    return time.perf_counter() - begin


def prefix_hits(model: StepModel) -> tuple[float, float]:
    """Seconds to the first token of a prompt that is new, and of the same one again."""
    engine = GenerationEngine(model, GenerationOptions(cache_bytes=1 << 30))
    prompts = np.random.default_rng(0).integers(10, model.spec.vocab_size, (ROUNDS, PROMPT))
    found = [(first_token_s(engine, prompt), first_token_s(engine, prompt)) for prompt in prompts]
    engine.close()
    new, known = (float(np.median(each)) for each in zip(*found, strict=True))
    return new, known


def gaps(model: StepModel) -> tuple[float, float]:
    """The 95th percentile of seconds between tokens of one request, alone and while prompts of others are computed."""
    observer = Gaps()
    engine = GenerationEngine(model, GenerationOptions(cache_bytes=1 << 30, prefix_cache=False), observer=observer)
    prompts = np.random.default_rng(1).integers(10, model.spec.vocab_size, (ROUNDS, PROMPT))
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    found = []
    for others in (prompts[:0], prompts, prompts[:0], prompts):  # the first time it learns how many tokens of prompts a step bears
        observer.seconds.clear()
        request = engine.submit(prompts[0][:16], params)
        while len(observer.seconds) < 8:  # it decodes
            time.sleep(0.001)
        waiting = [engine.submit(prompt, SamplingParams(temperature=0, max_tokens=1)) for prompt in others]
        seconds = observer.seconds
        request.result()
        found.append(float(np.percentile(seconds, 95)))
        for each in waiting:
            each.cancel()
    engine.close()
    return found[2], found[3]


def cold_start_s(artifact: Path) -> float:
    """Seconds from the start of a process to its first token, the median of some."""
    command = [sys.executable, "-m", "llmos.runtime.cli", "run", str(artifact), "--prompt", "Once upon a time", "--max-tokens", "1"]
    found = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            assert process.stdout.read(1)
            found.append(time.perf_counter() - begin)
    return float(np.median(found))


def print_latencies(artifact: Path, model: StepModel) -> None:
    new, known = prefix_hits(model)
    print(f"first token of {PROMPT} tokens: {1e3 * new:.1f} ms, cached {1e3 * known:.1f} ms ({known / new:.1%})", flush=True)
    alone, beside = gaps(model)
    print(
        f"between tokens, 95 %: {1e3 * alone:.1f} ms alone, {1e3 * beside:.1f} ms beside prompts ({beside / alone:.2f} times)", flush=True
    )
    print(f"from the start of a process to its first token: {cold_start_s(artifact):.2f} s")


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
    if artifact is None:
        return
    if models[artifact.stem].spec.max_length < PROMPT + TOKENS:
        raise click.ClickException(f"latencies need a context of {PROMPT + TOKENS} tokens")
    print_latencies(artifact, models[artifact.stem])


if __name__ == "__main__":
    main()
