"""Bytes of tokens of byte-level, SentencePiece and other vocabularies."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from llmos.runtime.text.token_bytes import TokenBytes

TEXT = "Hi, 日本 😀 naïve\n"


def test_byte_level_tokens_are_their_bytes() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({each: id for id, each in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<é>"])
    found = TokenBytes(tokenizer)
    assert b"".join(map(found, tokenizer.encode(TEXT).ids)) == TEXT.encode()
    assert sorted(map(found, range(256))) == [bytes([byte]) for byte in range(256)]
    assert found(256) == "<é>".encode(), "a special token is what it is written as"
    assert found(257) == b"", "an id that the tokenizer lacks"


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
        decoders.Metaspace(),
    ],
)
def test_sentence_piece_tokens_have_spaces_and_bytes(decoder: decoders.Decoder) -> None:
    vocabulary = {"▁the": 0, "▁": 1, "cat": 2, "<0xE6>": 3, "<0xZZ>": 4}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    tokenizer.decoder = decoder
    assert [TokenBytes(tokenizer)(id) for id in range(5)] == [b" the", b" ", b"cat", b"\xe6", b"<0xZZ>"]


def test_other_tokens_are_as_they_are_written() -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "cat": 1, "##s": 2}, unk_token="[UNK]"))
    assert [TokenBytes(tokenizer)(id) for id in (1, 2)] == [b"cat", b"##s"]
