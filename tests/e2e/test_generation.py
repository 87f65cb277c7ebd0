"""A compiled language model behind the engine: tokens and log probabilities don't depend on who else is served, nor how, nor on threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf

import llmos
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver import compile as compile_model
from llmos.models.causal_lm import CausalLMOptions, import_model
from llmos.runtime.engine.generate import (
    GenerationEngine,
    GenerationOptions,
    GenerationRequest,
    Limits,
    NullGenerationObserver,
    SamplingParams,
    StepReport,
)
from llmos.runtime.engine.generate.model import ProgramStepModel

pytestmark = pytest.mark.slow
VOCABULARY = 96
Sampled = list[tuple[int, float | None, tuple[tuple[int, float], ...]]]  # token, logprob and top of each generated token


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model whose only layer has a window and a soft cap, in 8 bits, with a cache of bfloat16."""
    torch.manual_seed(0)
    config = tf.Gemma2Config(
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=96,
        vocab_size=VOCABULARY,
        max_position_embeddings=512,
        sliding_window=48,
    )
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(8)  # else every token is about as likely
    path = tmp_path_factory.mktemp("generation") / "model.llmos"
    imported = import_model(model, CausalLMOptions(), name="model")
    compile_model(imported, options=CompileOptions(target="native", quant="w8a8", repro=None, accuracy_report=False)).save(path)
    return path


class Preemptions(NullGenerationObserver):
    """Counts sequences that lost their blocks."""

    count = 0

    def on_step(self, report: StepReport) -> None:
        self.count += report.num_preempted


@contextmanager
def engine(
    artifact: Path,
    limits: Limits | None = None,
    cache_blocks: int = 400,
    prefix_cache: bool = False,
    observer: NullGenerationObserver | None = None,
) -> Iterator[GenerationEngine]:
    """An engine that must be idle and intact at the end."""
    options = GenerationOptions(limits=limits or Limits(), cache_blocks=cache_blocks, prefix_cache=prefix_cache)
    made = GenerationEngine(ProgramStepModel(llmos.load(artifact)), options, observer=observer)
    yield made
    assert made.drain(60)
    made.check_integrity()
    made.close()


def prompts() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, VOCABULARY, length) for length in (1, 7, 16, 17, 64, 150)]


def params(number: int) -> SamplingParams:
    """Of one prompt: greedy ones and sampled ones, with penalties."""
    common = {"max_tokens": 64, "logprobs": 3, "ignore_eos": True}
    if number % 2 == 0:
        return SamplingParams(temperature=0, **common)
    return SamplingParams(temperature=0.9, top_p=0.95, seed=number, repetition_penalty=1.1, **common)


def sampled(request: GenerationRequest) -> Sampled:
    (sequence,) = request.result()
    assert len(sequence.tokens) == 64
    return [(event.token, event.logprob, event.top) for event in sequence.tokens]


@pytest.fixture(scope="module")
def alone(artifact: Path) -> list[Sampled]:
    """What each prompt gives when it is served alone."""
    with engine(artifact) as made:
        return [sampled(made.submit(prompt, params(number))) for number, prompt in enumerate(prompts())]


def together(made: GenerationEngine, others: int = 0) -> list[Sampled]:
    """What the prompts give when they are served at once, among others."""
    rng = np.random.default_rng(2)
    noise = [made.submit(rng.integers(0, VOCABULARY, rng.integers(1, 90)), params(int(rng.integers(9)))) for _ in range(others)]
    requests = [made.submit(prompt, params(number)) for number, prompt in enumerate(prompts())]
    found = [sampled(request) for request in requests]
    for request in noise:
        sampled(request)
    return found


@pytest.mark.parametrize("others", [0, 1, 58])
def test_beside_others(artifact: Path, alone: Sequence[Sampled], others: int) -> None:
    with engine(artifact) as made:
        assert together(made, others) == alone


def test_prompts_in_chunks(artifact: Path, alone: Sequence[Sampled]) -> None:
    with engine(artifact, Limits(max_tokens=9, max_requests=8, max_rows=9)) as made:
        assert together(made) == alone


def test_prefixes_that_are_cached(artifact: Path, alone: Sequence[Sampled]) -> None:
    with engine(artifact, prefix_cache=True) as made:
        assert together(made) == alone
        assert together(made) == alone
        (again,) = made.submit(prompts()[5], params(5)).result()
        assert again.finish is not None and again.finish.num_cached_tokens >= 128


def test_preempted_and_resumed(artifact: Path, alone: Sequence[Sampled]) -> None:
    """So few blocks that sequences lose theirs to older ones as these grow, and start again."""
    preemptions = Preemptions()
    with engine(artifact, Limits(max_tokens=40, max_requests=8, max_rows=40), cache_blocks=15, observer=preemptions) as made:
        assert together(made, 12) == alone
    assert preemptions.count > 0


def test_any_number_of_threads(artifact: Path, alone: Sequence[Sampled]) -> None:
    before = llmos.num_threads()
    try:
        for threads in (1, 3):
            llmos.set_num_threads(threads)
            with engine(artifact) as made:
                assert together(made) == alone
    finally:
        llmos.set_num_threads(before)
