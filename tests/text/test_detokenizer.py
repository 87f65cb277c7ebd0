"""Streams of tokens give the text that all tokens give at once, and no part of a character."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from llmos.runtime.text.detokenizer import TextStream

from .tokenizers import byte_fallback, byte_level

TOKENIZERS = {"byte level": byte_level, "byte fallback": byte_fallback}
TEXTS = ["hello world", "a naïve 日本語 text 😀😀, é", " two  spaces", "zürich\n\n\tok", "👩‍👩‍👧 family"]


def pieces(tokenizer: Any, ids: Sequence[int], prompt: Sequence[int] = (), **options: Any) -> list[str]:
    stream = TextStream(tokenizer, prompt, **options)
    return [*(stream.push(token) for token in ids), stream.finish()]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_make_the_whole(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]()
    ids = tokenizer.encode(text).ids
    found = pieces(tokenizer, ids)
    assert "".join(found) == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in found)
    assert found[-1] == ""


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_text_behind_a_prompt(name: str, text: str) -> None:
    """Wherever the prompt ends, also within a character, what follows is the rest of the text, with its space."""
    tokenizer = TOKENIZERS[name]()
    ids = tokenizer.encode(f"the {text}").ids
    whole = tokenizer.decode(ids)
    for count in range(1, len(ids)):
        # Whole characters of the prompt: a token may hold one and begin another; bytes may hide those before them.
        texts = [tokenizer.decode(ids[: max(0, count - k)]).rstrip("\ufffd") for k in range(4)]
        begun = max((text for text in texts if whole.startswith(text)), key=len)
        assert "".join(pieces(tokenizer, ids[count:], ids[:count])) == whole[len(begun) :], count


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_character_that_is_cut_off(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    ids = tokenizer.encode("ok 🜁").ids[:-1]
    found = pieces(tokenizer, ids)
    assert "\ufffd" not in "".join(found[:-1])
    assert "".join(found) == tokenizer.decode(ids)


def test_ids_without_text() -> None:
    tokenizer = byte_level()
    (hello,), (eos,) = tokenizer.encode("h").ids, tokenizer.encode("<eos>").ids
    assert pieces(tokenizer, [hello, 10**6, eos, hello]) == ["h", "", "", "h", ""]
    assert pieces(tokenizer, [hello, eos, hello], skip_special_tokens=False) == ["h", "<eos>", "h", ""]


def test_a_prompt_of_special_tokens() -> None:
    tokenizer = byte_fallback()
    assert "".join(pieces(tokenizer, tokenizer.encode("hello").ids, [1, 1, 2])) == "hello"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_text_without_end_is_not_held_back(name: str) -> None:
    """Bytes that never make a character, and special tokens, neither pile up nor hold up what comes behind them."""
    tokenizer = TOKENIZERS[name]()
    start = next(i for i in range(tokenizer.get_vocab_size()) if tokenizer.decode([i]) == "\ufffd")
    found = pieces(tokenizer, [start] * 100)
    assert all(found[15:96:16]) and "".join(found) == "\ufffd" * 100
    special = 0 if name == "byte level" else 2
    world = tokenizer.encode("a hello").ids[1:]
    assert "".join(pieces(tokenizer, [*tokenizer.encode("a").ids, *[special] * 50, *world])) == "a" + tokenizer.decode([0, *world]).rjust(6)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_any_tokens(name: str) -> None:
    """Senseless tokens raise nothing, and text of valid ones that follow comes out right."""
    tokenizer = TOKENIZERS[name]()
    for seed in range(1500):
        rng = random.Random(seed)
        ids = [rng.randrange(tokenizer.get_vocab_size() + 5) for _ in range(rng.randrange(1, 14))]
        stream = TextStream(tokenizer, ids[: rng.randrange(len(ids))])
        text = "".join(map(stream.push, ids))
        tail = tokenizer.encode("x 😀 hello").ids
        ending = "".join(map(stream.push, tail)) + stream.finish()
        assert ending.endswith("x 😀 hello"), (ids, text, ending)
