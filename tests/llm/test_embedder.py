"""Embeddings beside the texts of a model: of one text or several, alone and among others, with errors of one line."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmos.runtime.engine import ClosedError
from llmos.runtime.engine.generate.null import NullStepModel, null_spec
from llmos.runtime.errors import InputError
from llmos.runtime.llm import LLMOS, Embedder

from ..engine.numpy_models import Encoder  # noqa: TID252
from .conftest import Make

TOKENIZER = Path(__file__).parents[1] / "server" / "tokenizer.json"
TEXTS = ["cat", "the cat sat on the mat", "dog " * 40, "a"]


def encoder() -> Encoder:
    return Encoder(assets={"tokenizer.json": TOKENIZER.read_bytes()})


@pytest.fixture
def model(assets: dict[str, bytes], tokenizer: Any) -> Iterator[LLMOS]:
    step = NullStepModel(null_spec(vocab_size=tokenizer.get_vocab_size(), max_length=512))
    with LLMOS.of(step, assets.get, embeddings=encoder()) as made:
        yield made


def test_texts_alone_and_together(model: LLMOS) -> None:
    alone = [model.embed(text) for text in TEXTS]
    assert all(each.shape == (16,) and each.dtype == np.float32 for each in alone)
    assert np.array_equal(model.embed(TEXTS), alone)
    with ThreadPoolExecutor(8) as pool:
        assert all(np.array_equal(row, own) for row, own in zip(pool.map(model.embed, TEXTS * 8), alone * 8, strict=True))
    assert np.array_equal(asyncio.run(model.aembed(TEXTS[:2])), alone[:2])
    assert model.generate_text("hello", max_tokens=4)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("", "is empty"),
        ([], "is empty"),
        (["a", ""], "is empty"),
        ([1, 2], "a text or a list of texts"),
        (b"a", "a text or a list of texts"),
        (None, "a text or a list of texts"),
        ("\ud800", "surrogate"),
    ],
)
def test_what_is_no_text_gets_one_line(model: LLMOS, texts: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.embed(texts)
    assert model.embed("cat").shape == (16,)


def test_a_model_without_embeddings_says_how_to_get_them(make: Make) -> None:
    with pytest.raises(InputError, match="compile it with --embeddings"):
        make().embed("cat")


def test_a_closed_model_embeds_nothing(model: LLMOS) -> None:
    model.close()
    with pytest.raises(ClosedError):
        model.embed("cat")


def test_closing_ends_calls_that_wait() -> None:
    embedder = Embedder(encoder())
    embedder.close()
    with pytest.raises(ClosedError):
        embedder.embed("cat")
    embedder.engine.check_integrity()
