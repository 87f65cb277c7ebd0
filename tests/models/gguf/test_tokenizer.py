"""Tokenizers of GGUF vocabularies: the ids of the tokenizers that they were made of, and of llama.cpp's merging by scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from llmos.models.gguf.file import GgufFile
from llmos.models.gguf.pretokenizers import PRETOKENIZERS
from llmos.models.gguf.tokenizer import CONFIG, TEMPLATE, TOKENIZER, tokenizer_assets
from llmos.runtime.errors import UnsupportedError, UserError

from .models import Written

CORPUS = [
    "The cat isn't on the mat; it's in 2026 of 31415 hats.",
    "Le garçon a déjà vu 3 châteaux, et l'été?",
    "日本語のテキスト  and\n\n  more\ttabs",
] * 4
TEXTS = [
    *CORPUS[:3],
    "",
    " ",
    "   spaces   ",
    "he'S I'LL\r\n\r\n x",
    "🎉 12 1234567",
    "<|im_start|>user\nthe cat<|im_end|>\n",
    "e\u0301te\u0301",
    "a <think>b",
]
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def opened(folder: Path, **metadata: Any) -> GgufFile:
    """A file of a tokenizer's metadata, named without `tokenizer.ggml.`; None leaves an entry out."""
    named = {f"tokenizer.{'' if key == 'chat_template' else 'ggml.'}{key}": value for key, value in metadata.items() if value is not None}
    return GgufFile.open(Written("llama", named).write(folder / "m.gguf"))


def built(file: GgufFile) -> Tokenizer:
    return Tokenizer.from_str(tokenizer_assets(file)[TOKENIZER].decode())


# -- byte-level


def trained(pre_tokenizer: Any) -> Tokenizer:
    """Byte-level BPE, control tokens first."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizer, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=420, special_tokens=CONTROL, initial_alphabet=alphabet, show_progress=False)
    )
    made.add_tokens([AddedToken("<think>", normalized=False)])
    return made


def metadata_of(tokenizer: Tokenizer, pre: str | None) -> dict[str, Any]:
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return {
        "model": "gpt2",
        "pre": pre,
        "tokens": [token for token, _ in vocabulary],
        "token_type": [3 if token in CONTROL else 4 if token == "<think>" else 1 for token, _ in vocabulary],
        "merges": [" ".join(pair) for pair in merges],
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def split_at(expression: str) -> Any:
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(expression), "isolated"), in_bytes])


LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
OWN: Mapping[str, Any] = {  # as the tokenizer.json of such models has it
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]),
    "gpt-2": GPT2,
    "llama-bpe": split_at(LLAMA3),
    "qwen2": split_at(LLAMA3.replace("{1,3}", "")),
}


@pytest.mark.parametrize("pre", OWN)
def test_byte_level_ids_are_those_of_its_own_tokenizer(pre: str, tmp_path: Path) -> None:
    wanted = trained(OWN[pre])
    if pre == "qwen2":
        wanted.normalizer = normalizers.NFC()
    found = built(opened(tmp_path, **metadata_of(wanted, pre), add_bos_token=False))
    assert found.get_vocab() == wanted.get_vocab()
    for text in TEXTS:
        ids = found.encode(text).ids
        assert ids == wanted.encode(text).ids, text
        assert found.decode(ids, skip_special_tokens=False) == wanted.decode(ids, skip_special_tokens=False)
    assert found.encode("<|im_end|>").ids == [2] and found.decode([1, 2], skip_special_tokens=True) == ""


@pytest.mark.parametrize("pre", PRETOKENIZERS)
def test_every_way_of_splitting_keeps_the_text(pre: str, tmp_path: Path) -> None:
    found = built(opened(tmp_path, **metadata_of(trained(split_at(LLAMA3)), pre)))
    for text in TEXTS:
        if not PRETOKENIZERS[pre].is_composed:
            assert found.decode(found.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text
    assert (found.encode("a").ids[0] == 1) == PRETOKENIZERS[pre].adds_bos


def test_words_that_are_tokens_are_taken_whole(tmp_path: Path) -> None:
    """Llama 3 takes a piece that is a token as it is, even where no merges lead to it."""
    metadata = metadata_of(trained(split_at(LLAMA3)), "llama-bpe")
    metadata["tokens"].append("zzqqzz"), metadata["token_type"].append(1)
    number = len(metadata["tokens"]) - 1
    assert built(opened(tmp_path, **metadata, add_bos_token=False)).encode("zzqqzz").ids == [number]
    assert number not in built(opened(tmp_path, **{**metadata, "pre": "qwen2"})).encode("zzqqzz").ids


# -- by scores

SCORES = {"▁t": -1.0, "th": -1.5, "he": -2.0, "ha": -2.1, "▁a": -2.2, "at": -2.5, "▁the": -3.0, "hat": -3.2, "cat": -3.5}
SCORES |= {"▁c": -4.0, "▁cat": -5.0, "ca": -6.0, "▁▁": -7.0}
PIECES = ["▁", "t", "h", "e", "a", "c", *SCORES]


def sentencepiece(**more: Any) -> dict[str, Any]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(PIECES)]
    scores = [0.0] * 259 + [SCORES.get(piece, -100.0) for piece in PIECES]
    ids = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    return {"model": "llama", "tokens": tokens, "token_type": kinds, "scores": scores, **ids, **more}


def merged_by_score(text: str) -> list[str]:
    """As llama.cpp's `llm_tokenizer_spm`: the neighbors of the highest score are merged, the leftmost of equals, until none is a token."""
    pieces = list(text.replace(" ", "▁"))
    while pairs := [(SCORES[left + right], -at) for at, (left, right) in enumerate(pairwise(pieces)) if left + right in SCORES]:
        at = -max(pairs)[1]
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    in_bytes = ([piece] if piece in PIECES else [f"<0x{byte:02X}>" for byte in piece.encode()] for piece in pieces)
    return [each for some in in_bytes for each in some]


@pytest.mark.parametrize("has_space", [True, False])
def test_scores_decide_about_merges(has_space: bool, tmp_path: Path) -> None:
    found = built(opened(tmp_path, **sentencepiece(add_space_prefix=has_space)))
    for text in ("the cat", "that hat a", "  the  cate", "thé", "日 cat\n", "x"):
        tokens = found.encode(text).tokens
        assert tokens == ["<s>", *merged_by_score(" " * has_space + text)], text
        assert found.decode(found.encode(text).ids) == text
    assert found.encode("the</s>", add_special_tokens=False).ids[-1] == 2


def test_merges_of_the_file_come_before_scores(tmp_path: Path) -> None:
    found = built(opened(tmp_path, **sentencepiece(scores=None, merges=["h e", "t he"], tokens=[*sentencepiece()["tokens"][:-1], "the"])))
    assert found.encode("the", add_special_tokens=False).tokens == ["▁", "the"]


# -- what is beside the vocabulary


def test_ends_of_texts(tmp_path: Path) -> None:
    metadata = metadata_of(trained(split_at(LLAMA3)), "smollm")
    plain = built(opened(tmp_path, **metadata)).encode("the cat").ids
    for bos in (True, False):
        for eos in (True, False):
            found = built(opened(tmp_path, **metadata, add_bos_token=bos, add_eos_token=eos))
            assert found.encode("the cat").ids == [1] * bos + plain + [2] * eos
            assert found.encode("the cat", add_special_tokens=False).ids == plain


def test_config_and_template(tmp_path: Path) -> None:
    metadata = metadata_of(trained(split_at(LLAMA3)), "smollm")
    assets = tokenizer_assets(opened(tmp_path, **metadata, add_bos_token=True, chat_template="{{ messages[0].content }} ü"))
    config = json.loads(assets[CONFIG])
    assert {key: config.get(key) for key in ("bos_token", "eos_token", "unk_token", "add_bos_token", "add_eos_token")} == {
        "bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": None, "add_bos_token": True, "add_eos_token": False
    }  # fmt: skip
    assert assets[TEMPLATE].decode() == "{{ messages[0].content }} ü"
    assert set(tokenizer_assets(opened(tmp_path, **metadata))) == {TOKENIZER, CONFIG}


def test_files_without_a_vocabulary(tmp_path: Path) -> None:
    assert tokenizer_assets(opened(tmp_path)) == {} == tokenizer_assets(opened(tmp_path, model="none"))


BAD: Mapping[str, tuple[dict[str, Any], type[UserError], str]] = {
    "another-model": ({"model": "bert"}, UnsupportedError, "'bert' isn't supported; gpt2 and llama are"),
    "another-way-of-splitting": ({"pre": "viking"}, UnsupportedError, "'viking' of splitting text"),
    "no-merges": ({"merges": None}, UserError, "no tokenizer.ggml.merges"),
    "a-merge-of-one": ({"merges": ["ab"]}, UserError, "merge 0 is 'ab', not two tokens"),
    "a-merge-of-no-token": ({"merges": ["a zzz"]}, UserError, "makes no tokenizer"),
    "types-of-others": ({"token_type": [1, 2]}, UserError, "isn't a number for each of"),
    "tokens-of-numbers": ({"tokens": [1, 2], "token_type": None}, UserError, "no list of texts"),
    "a-token-twice": ({"tokens": ["a", "b", "a"], "token_type": None}, UserError, "token 2 is 'a', and so is an earlier one"),
    "a-flag-of-2": ({"add_bos_token": 2}, UserError, "add_bos_token is 2, not true or false"),
    "an-end-beyond": ({"bos_token_id": 1 << 20, "add_bos_token": True}, UserError, "bos_token_id is 1048576"),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_vocabularies(case: str, tmp_path: Path) -> None:
    change, kind, message = BAD[case]
    metadata = {**metadata_of(trained(split_at(LLAMA3)), "smollm"), **change}
    with pytest.raises(UserError) as refusal:
        tokenizer_assets(opened(tmp_path, **metadata))
    assert type(refusal.value) is kind and message in str(refusal.value) and "\n" not in str(refusal.value), refusal.value


def test_scores_are_needed_where_there_are_no_merges(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither tokenizer\.ggml\.scores nor merges"):
        tokenizer_assets(opened(tmp_path, **sentencepiece(scores=None)))
