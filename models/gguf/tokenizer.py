"""A GGUF file's vocabulary as the files that the runtime reads: tokenizer.json, tokenizer_config.json and chat_template.jinja.

Byte-level BPE (`gpt2`) and BPE by scores as SentencePiece has it (`llama`), in the format of the tokenizers library.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmos.models.gguf.config import token_id
from llmos.models.gguf.file import GgufFile
from llmos.models.gguf.header import quoted
from llmos.models.gguf.pretokenizers import PRETOKENIZERS, Pretokenizer
from llmos.runtime.errors import UnsupportedError, UserError

TOKENIZER, CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
MODELS = ("gpt2", "llama")
_SPACE = "▁"
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # types of tokens
_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


@dataclass(frozen=True)
class Vocabulary:
    """tokens by id. kinds: int [tokens], ggml's types of tokens. scores: float [tokens] or None. merges: pairs, the first ones first."""

    model: str
    tokens: Sequence[str]
    kinds: np.ndarray
    scores: np.ndarray | None
    merges: Sequence[tuple[str, str]] | None

    @classmethod
    def of(cls, file: GgufFile) -> Vocabulary | None:
        """None for a file without one. Raises UserError where it is damaged, UnsupportedError for a model that isn't read."""
        model, tokens = (file.metadata.get(f"tokenizer.ggml.{name}") for name in ("model", "tokens"))
        if tokens is None or model in (None, "none", "no_vocab"):
            return None
        if model not in MODELS:
            raise UnsupportedError(f"the tokenizer {quoted(str(model))} isn't supported; {' and '.join(MODELS)} are")
        if not isinstance(tokens, list) or not tokens:
            raise UserError("tokenizer.ggml.tokens is no list of texts; copy the file again")
        _require_distinct(tokens)
        kinds = _numbers(file, "token_type", len(tokens))
        return cls(
            str(model), tokens, np.ones(len(tokens)) if kinds is None else kinds, _numbers(file, "scores", len(tokens)), _merges(file)
        )

    def ids(self, kind: int) -> list[int]:
        """Return the tokens of a type."""
        found: list[int] = np.flatnonzero(self.kinds == kind).tolist()
        return found


def tokenizer_assets(file: GgufFile) -> dict[str, bytes]:
    """The tokenizer's files by name, those that the file has content for. Raises UserError, UnsupportedError."""
    vocabulary = Vocabulary.of(file)
    if vocabulary is None:
        return {}
    splitter = _pretokenizer(file) if vocabulary.model == "gpt2" else None
    adds_bos = _flag(file, "add_bos_token", vocabulary.model == "llama" or (splitter is not None and splitter.adds_bos))
    ends = {"bos": adds_bos, "eos": _flag(file, "add_eos_token", False)}
    content = _byte_level(vocabulary, splitter) if splitter is not None else _sentencepiece(vocabulary, file)
    data = json.dumps({**_common(vocabulary), **content, "post_processor": _template(file, vocabulary, ends)}, ensure_ascii=False).encode()
    _check(data)
    config = json.dumps(_config(file, vocabulary, ends), ensure_ascii=False, indent=1).encode()
    template = file.metadata.get("tokenizer.chat_template")
    return {TOKENIZER: data, CONFIG: config, **({TEMPLATE: _encoded(template)} if isinstance(template, str) and template else {})}


# -- reading


def _require_distinct(tokens: Sequence[str]) -> None:
    if len(set(tokens)) != len(tokens):
        seen: set[str] = set()
        for number, token in enumerate(tokens):
            if token in seen:
                raise UserError(f"token {number} is {quoted(token)}, and so is an earlier one; convert the model again")
            seen.add(token)
    for number, token in enumerate(tokens):
        if not token.isascii():
            try:
                token.encode()
            except UnicodeEncodeError:
                raise UserError(f"token {number} is no UTF-8 text; copy the file again") from None


def _numbers(file: GgufFile, name: str, count: int) -> np.ndarray | None:
    """One number for each token, None where there are none."""
    found = file.metadata.get(f"tokenizer.ggml.{name}")
    if found is None:
        return None
    if not isinstance(found, np.ndarray) or found.shape != (count,):
        size = len(found) if isinstance(found, np.ndarray | list) else "no list"
        raise UserError(f"tokenizer.ggml.{name} isn't a number for each of {count:,} tokens, but {size}; copy the file again")
    return found


def _merges(file: GgufFile) -> list[tuple[str, str]] | None:
    found = file.metadata.get("tokenizer.ggml.merges")
    if found is None:
        return None
    if not isinstance(found, list):
        raise UserError("tokenizer.ggml.merges is no list of texts; copy the file again")
    pairs = []
    for number, merge in enumerate(found):
        left, _, right = merge.partition(" ")
        if not left or not right or " " in right:
            raise UserError(f"merge {number} is {quoted(merge)}, not two tokens; copy the file again")
        pairs.append((left, right))
    return pairs


def _flag(file: GgufFile, name: str, default: bool) -> bool:
    value = file.metadata.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, bool):
        raise UserError(f"tokenizer.ggml.{name} is {str(value)[:40]}, not true or false; copy the file again")
    return value


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise UserError("tokenizer.chat_template is no UTF-8 text; copy the file again") from None


def _pretokenizer(file: GgufFile) -> Pretokenizer:
    name = file.metadata.get("tokenizer.ggml.pre", "default")
    if name not in PRETOKENIZERS:
        raise UnsupportedError(
            f"the way {quoted(str(name))} of splitting text (tokenizer.ggml.pre) isn't supported; {', '.join(PRETOKENIZERS)} are"
        )
    return PRETOKENIZERS[str(name)]


# -- writing


def _common(vocabulary: Vocabulary) -> dict[str, Any]:
    special = {*vocabulary.ids(_CONTROL), *(vocabulary.ids(_UNKNOWN) if vocabulary.model == "llama" else ())}
    whole = sorted(special | set(vocabulary.ids(_USER_DEFINED)))
    added = [
        {
            "id": number,
            "content": vocabulary.tokens[number],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": number in special,
        }
        for number in whole
        if vocabulary.tokens[number]
    ]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}


def _bpe(vocabulary: Vocabulary, merges: Sequence[tuple[str, str]], **more: Any) -> dict[str, Any]:
    settings = {"dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, **more}
    return {
        "type": "BPE",
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        **settings,
        "vocab": {token: number for number, token in enumerate(vocabulary.tokens)},
        "merges": merges,
    }


def _byte_level(vocabulary: Vocabulary, splitter: Pretokenizer) -> dict[str, Any]:
    """BPE over bytes, each of which is a character of an alphabet of 256 (GPT-2)."""
    if vocabulary.merges is None:
        raise UserError("the vocabulary has no tokenizer.ggml.merges; copy the file again, or convert the model again")
    splits = [{"type": "Split", "pattern": {"Regex": each}, "behavior": "Isolated", "invert": False} for each in splitter.expressions]
    in_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "normalizer": {"type": "NFC"} if splitter.is_composed else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, in_bytes]},
        "decoder": {**in_bytes, "use_regex": True},
        "model": _bpe(vocabulary, vocabulary.merges, ignore_merges=splitter.takes_whole_words),
    }


def _sentencepiece(vocabulary: Vocabulary, file: GgufFile) -> dict[str, Any]:
    """BPE over characters, spaces as U+2581, characters that no token has as tokens of their bytes."""
    has_space = _flag(file, "add_space_prefix", True)
    as_spaces: dict[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    unknown = token_id(file, "unknown_token_id")
    unknowns = [unknown] if unknown is not None else vocabulary.ids(_UNKNOWN)
    steps = [{"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    start = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if has_space else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": _SPACE}, as_spaces]} if has_space else as_spaces,
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [*steps, *start]},
        "model": _bpe(
            vocabulary,
            vocabulary.merges if vocabulary.merges is not None else _merges_by_score(vocabulary),
            unk_token=vocabulary.tokens[unknowns[0]] if unknowns else None,
            fuse_unk=True,
            byte_fallback=True,
        ),
    }


def _merges_by_score(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """All pairs of tokens that are a token together, that of the highest score first.

    SentencePiece merges the neighbors of the highest score, wherever they are; so BPE does with these merges.
    """
    if vocabulary.scores is None:
        raise UserError("the vocabulary has neither tokenizer.ggml.scores nor merges; copy the file again, or convert the model again")
    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    pairs = []
    for number, token in enumerate(vocabulary.tokens):
        cuts = ((token[:at], token[at:]) for at in range(1, len(token)))
        pairs += [(-vocabulary.scores[number], number, ids[left], ids[right]) for left, right in cuts if left in ids and right in ids]
    return [(vocabulary.tokens[left], vocabulary.tokens[right]) for _, _, left, right in sorted(pairs)]


def _template(file: GgufFile, vocabulary: Vocabulary, ends: Mapping[str, bool]) -> dict[str, Any] | None:
    """What puts the tokens at the ends of a text, where the vocabulary says that there are some."""
    ids = {name: token_id(file, f"{name}_token_id") for name, there in ends.items() if there}
    tokens = {name: vocabulary.tokens[number] for name, number in ids.items() if number is not None}
    if not tokens:
        return None

    def text(name: str, type_id: int) -> list[dict[str, Any]]:
        parts = [("bos", None), ("", name), ("eos", None)]
        return [
            {"Sequence": {"id": sequence, "type_id": type_id}} if sequence else {"SpecialToken": {"id": tokens[end], "type_id": type_id}}
            for end, sequence in parts
            if sequence or end in tokens
        ]

    return {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": [*text("A", 0), *text("B", 1)],
        "special_tokens": {token: {"id": token, "ids": [ids[name]], "tokens": [token]} for name, token in tokens.items()},
    }


def _config(file: GgufFile, vocabulary: Vocabulary, ends: Mapping[str, bool]) -> dict[str, Any]:
    ids = {name: token_id(file, key) for name, key in _SPECIAL.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **{f"add_{name}_token": there for name, there in ends.items()},
        **{name: vocabulary.tokens[number] for name, number in ids.items() if number is not None},
    }


def _check(data: bytes) -> None:
    """Raises UserError for what the tokenizers library refuses, such as a merge of what is no token."""
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises plain Exception
        raise UserError(
            f"the vocabulary makes no tokenizer ({str(error)[:200]}); copy the file again, or convert the model again"
        ) from None
