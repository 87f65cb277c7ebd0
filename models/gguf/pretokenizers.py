"""How byte-level vocabularies split text before merges: the expressions behind `tokenizer.ggml.pre` (llama.cpp's llama-vocab.cpp).

Where llama.cpp spells an expression of a model's own tokenizer.json in another way, it is here as in that file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Pretokenizer:
    """Expressions, each of which splits what the one before left.

    is_composed: whether text is brought into Unicode's form NFC first. takes_whole_words: whether a piece that is a token is not merged
    anew. adds_bos: whether a text begins with the token for that, unless the metadata says.
    """

    expressions: tuple[str, ...]
    is_composed: bool = False
    takes_whole_words: bool = False
    adds_bos: bool = False


_LLAMA3 = Pretokenizer((_WORDS % "{1,3}",), takes_whole_words=True, adds_bos=True)
_LLAMA3_PLAIN = Pretokenizer((_WORDS % "{1,3}",))
_QWEN2 = Pretokenizer((_WORDS % "",), is_composed=True)
_DIGITS = Pretokenizer((r"\p{N}", _GPT2))

PRETOKENIZERS: Mapping[str, Pretokenizer] = MappingProxyType(
    {
        "default": Pretokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
        "deepseek-r1-qwen": _QWEN2,
        "dbrx": _LLAMA3_PLAIN,
        "falcon3": _LLAMA3,
        "gpt-2": Pretokenizer((_GPT2,)),
        "llama-bpe": _LLAMA3,
        "llama-v3": _LLAMA3,
        "llama3": _LLAMA3,
        "megrez": Pretokenizer((_WORDS % "",)),
        "qwen2": _QWEN2,
        "smaug-bpe": _LLAMA3_PLAIN,
        "smollm": _DIGITS,
        "starcoder": _DIGITS,
        "tekken": Pretokenizer((_TEKKEN,), takes_whole_words=True, adds_bos=True),
    }
)
