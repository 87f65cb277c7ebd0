"""A language model that computes a hash, behind a real tokenizer and a chat template."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from llmos.runtime.engine.generate import GenerationSpec
from llmos.runtime.engine.generate.null import NullStepModel, null_spec
from llmos.runtime.llm import LLMOS

CORPUS = ["hello world, the quick brown fox jumps over the lazy dog", "é 日本語 😀 naïve", "Paris is the capital of France."] * 20
TEMPLATE = b"{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
CONFIG = b'{"eos_token": "<eos>"}'


def _tokenizer() -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return _tokenizer()


@pytest.fixture(scope="session")
def assets(tokenizer: Any) -> dict[str, bytes]:
    return {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": CONFIG, "chat_template.jinja": TEMPLATE}


Make = Callable[..., LLMOS]


@pytest.fixture
def make(assets: dict[str, bytes], tokenizer: Any) -> Iterator[Make]:
    """Return a model over a NullStepModel; its engine must be idle and intact at the end of the test."""
    made: list[LLMOS] = []

    def call(changed: Mapping[str, bytes | None] | None = None, spec: GenerationSpec | None = None, **options: Any) -> LLMOS:
        found = {**assets, **(changed or {})}
        null = NullStepModel(spec or null_spec(vocab_size=tokenizer.get_vocab_size(), max_length=512), **options)
        made.append(LLMOS.of(null, found.get))
        return made[-1]

    yield call
    for model in made:
        assert model.engine.engine.drain(10)
        model.engine.engine.check_integrity()
        model.close()


@pytest.fixture
def model(make: Make) -> LLMOS:
    return make()
