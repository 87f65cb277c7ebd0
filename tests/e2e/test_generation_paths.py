"""The generation engine on float models whose caches begin as NaN: the same tokens and log probabilities, however they are computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmos
from llmos.runtime.engine.generate import (
    GenerationEngine,
    GenerationOptions,
    Limits,
    NullGenerationObserver,
    ProgramStepModel,
    SamplingParams,
    StepReport,
)
from llmos.runtime.program import Program

from .conftest import Compile

Array = np.ndarray[Any, Any]
Answer = list[tuple[int, float | None, Any]]
NUM_REQUESTS = 20
SETTINGS = {
    "together": GenerationOptions(cache_blocks=400),
    "in chunks": GenerationOptions(cache_blocks=400, limits=Limits(7, 3, 8), prefix_cache=False),
    "preempted": GenerationOptions(cache_blocks=12, limits=Limits(40, 8, 16)),
}


class Preemptions(NullGenerationObserver):
    """Counts the sequences that lost their blocks."""

    num_preempted = 0

    def on_step(self, report: StepReport) -> None:
        self.num_preempted += report.num_preempted


@contextmanager
def engine_of(program: Program, options: GenerationOptions, observer: Preemptions | None = None) -> Iterator[GenerationEngine]:
    engine = GenerationEngine(ProgramStepModel(program), options, observer=observer)
    for cache in engine._runner.caches:
        cache.fill(np.nan if cache.dtype == np.float32 else 0x7FC0)  # whatever is not written must not be read
    try:
        yield engine
        assert engine.drain(60)
        engine.check_integrity()
    finally:
        engine.close()


def requests_of(vocab_size: int) -> list[tuple[Array, SamplingParams]]:
    """Prompts with common beginnings, greedy and sampled."""
    rng = np.random.default_rng(0)
    shared = rng.integers(3, vocab_size, 60)
    found = []
    for seed in range(NUM_REQUESTS):
        prompt = np.concatenate([shared[: int(rng.integers(0, 60))], rng.integers(3, vocab_size, int(rng.integers(1, 30)))])
        params = SamplingParams(
            temperature=float(rng.choice([0, 0.9])),
            frequency_penalty=float(rng.choice([0, 1])),
            seed=seed,
            max_tokens=int(rng.integers(2, 50)),
            logprobs=2,
            ignore_eos=True,
        )
        found.append((prompt, params))
    return found


def answers(engine: GenerationEngine, requests: Sequence[tuple[Array, SamplingParams]]) -> list[Answer]:
    running = [engine.submit(prompt, params) for prompt, params in requests]
    return [[(event.token, event.logprob, event.top) for event in each.result()[0].tokens] for each in running]


def check_independence(program: Program) -> None:
    requests = requests_of(ProgramStepModel(program).spec.vocab_size)
    with engine_of(program, SETTINGS["together"]) as engine:
        alone = [answers(engine, [request])[0] for request in requests[::-1]][::-1]
        again = answers(engine, requests)
        assert again == alone, "with prefix hits"
    observer = Preemptions()
    for name, options in SETTINGS.items():
        with engine_of(program, options, observer) as engine:
            assert answers(engine, requests) == alone, name
    assert observer.num_preempted or ProgramStepModel(program).spec.window, "with windows sequences hardly grow"
    num_threads = llmos.num_threads()
    try:
        llmos.set_num_threads(1)
        with engine_of(program, SETTINGS["together"]) as engine:
            assert answers(engine, requests) == alone, "one thread"
    finally:
        llmos.set_num_threads(num_threads)


@pytest.mark.slow
def test_a_story_is_told_whoever_else_listens(models: Path, compiled: Compile) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    source = models / "stories260k"
    if not source.is_dir():
        pytest.skip(f"no {source}")
    program = llmos.load(compiled(source, "stories", "--target", "native"))
    with engine_of(program, SETTINGS["together"]) as engine:
        (story,) = engine.submit([1], SamplingParams(temperature=0, max_tokens=40)).result()
    text = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json")).decode(story.token_ids)
    assert text.startswith("Once upon a time, there was a little girl named Lily. She loved to play outside in the park.")
    check_independence(program)


@pytest.mark.slow
def test_a_model_with_windows(tmp_path: Path) -> None:
    """Of which every layer has one, so that blocks behind it are freed."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from llmos.compiler.backends.options import CompileOptions
    from llmos.compiler.driver import compile as compile_model
    from llmos.models.causal_lm import CausalLMOptions, import_model

    torch.manual_seed(0)
    config = transformers.MistralConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        vocab_size=100,
        max_position_embeddings=512,
        sliding_window=24,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval().float()
    artifact = compile_model(
        import_model(model, CausalLMOptions("bf16"), name="mistral"), options=CompileOptions(target="native", repro=None)
    )
    artifact.save(tmp_path / "mistral.llmos")
    program = llmos.load(tmp_path / "mistral.llmos")
    assert ProgramStepModel(program).spec.window == 24
    check_independence(program)
