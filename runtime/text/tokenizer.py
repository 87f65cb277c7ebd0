"""Tokenization of texts, with the artifact's tokenizer: for a sentence encoder, and for a language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from llmos.runtime.engine.model import SENTENCE_EMBEDDING, Array, Model, storage_dtype
from llmos.runtime.errors import ArtifactError, InputError, UserError
from llmos.runtime.text.detokenizer import TextStream
from llmos.runtime.text.token_bytes import TokenBytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"
_CHARS_PER_TOKEN = 32  # of a text that is cut before it is tokenized: five times those of English
_SHORT_CHARS = 4096  # more are tokenized as a batch of one, which leaves the interpreter to other threads


class TextEncoder:
    """Tokenizes for one model; safe to use from several threads.

    max_tokens: texts are truncated to it (the metadata's max_length, within the range of the compiled model). limits: it, the
    vocabulary_size, and max_chars, to which a text is cut before it is tokenized. width: size of an embedding.
    """

    def __init__(self, model: Model) -> None:
        self._specs = model.signature.inputs
        tokens = _token_symbol(model)
        _, most = model.signature.symbols.get(tokens, (1, 512))
        self.max_tokens = min(int(model.metadata.get("max_length") or most), most)
        width = model.signature.outputs[0].shape[-1]
        if not isinstance(width, int):
            raise ArtifactError(f"'{model.name}': the size of its embeddings is not fixed, so it can't be served as a sentence encoder")
        self.width = width
        self._tokenizer = load_tokenizer(model.name, model.asset(TOKENIZER))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.max_tokens)
        vocabulary_size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        max_chars = self.max_tokens * _CHARS_PER_TOKEN
        self.limits = {"max_tokens": self.max_tokens, "vocabulary_size": vocabulary_size, "max_chars": max_chars}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return at most max_tokens token ids for each text, special tokens included."""
        texts = [text[: self.limits["max_chars"]] for text in texts]
        if len(texts) == 1 and len(texts[0]) <= _SHORT_CHARS:
            return [self._tokenizer.encode(texts[0]).ids]
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]

    def inputs(self, ids: Sequence[int]) -> dict[str, Array]:
        """Return the model's inputs for one text, each [1, tokens]."""
        values = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        zeros = [0] * len(ids)
        return {spec.name: np.array([values.get(spec.name, zeros)], dtype=storage_dtype(spec)) for spec in self._specs}


def is_sentence_encoder(model: Model) -> bool:
    """Whether a model is declared as a sentence encoder and has a tokenizer."""
    return model.metadata.get("task") == SENTENCE_EMBEDDING and model.asset(TOKENIZER) is not None


def _token_symbol(model: Model) -> str:
    ids = model.signature.input("input_ids")
    if ids is None or len(ids.shape) != 2 or not isinstance(ids.shape[1], str):
        raise UserError(f"'{model.name}' is no sentence encoder: it has no input 'input_ids' of shape [batch, tokens]")
    return ids.shape[1]


def load_tokenizer(name: str, data: bytes | None) -> Tokenizer:
    """Return the tokenizer of a model, of its tokenizer.json. Raises UserError without one, and ArtifactError if it can't be read."""
    if data is None:
        raise UserError(f"'{name}' holds no {TOKENIZER}: compile it from a model directory that has one, or give token ids")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UserError("text needs the tokenizers package: pip install llmos[serve]") from error
    try:
        return Tokenizer.from_str(bytes(data).decode())
    except Exception as error:  # the tokenizers package raises plain Exception
        raise ArtifactError(f"'{name}': its {TOKENIZER} can't be read ({error})") from error


def misfit(vocabulary: Mapping[str, int], vocab_size: int) -> str | None:
    """Say why a tokenizer can't be that of a language model of vocab_size tokens; None if it can. vocabulary: ids of all of its tokens."""
    known = max(vocabulary.values(), default=-1) + 1
    # Models round the size of their tables up, by a few per cent.
    if known <= vocab_size <= 2 * known:
        return None
    return f"it has {known} tokens, and the model has {vocab_size}"


class PromptTokenizer:
    """Tokenizes prompts for a language model, and makes text of its tokens; safe to use from several threads.

    data: tokenizer.json. Raises UserError without one, and ArtifactError if it can't be read or is that of another model.
    """

    def __init__(self, name: str, data: bytes | None, vocab_size: int) -> None:
        self._tokenizer = load_tokenizer(name, data)
        self._data = bytes(data or b"")
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        if reason := misfit(vocabulary, vocab_size):
            raise ArtifactError(f"'{name}': its {TOKENIZER} is that of another model: {reason}")
        self.token_bytes = TokenBytes(self._tokenizer)
        self.special_tokens = [token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special]
        self.longest = max(map(len, vocabulary), default=1)  # characters of a token, or bytes, of which there are more

    def encode(self, text: str, *, add_special_tokens: bool = True, max_tokens: int | None = None) -> list[int]:
        """Return the ids of a prompt. add_special_tokens: as the tokenizer does, such as at the beginning; a chat template does it itself.

        max_tokens: a text that can't have so few tokens is refused before the time is spent to tokenize it; one that just has more is not.
        Raises InputError for such a text, an empty one, or half of a surrogate pair.
        """
        if not text:
            raise InputError("the prompt is empty: give it one character or more")
        if max_tokens is not None and len(text) > max_tokens * self.longest:
            raise InputError(f"the prompt has {len(text)} characters, far more than the context of {max_tokens} tokens: shorten it")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError("the prompt holds half of a surrogate pair, which is no character") from None
        if len(text) <= _SHORT_CHARS:
            encoding = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        else:
            encoding = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0]
        ids: list[int] = encoding.ids
        return ids

    def stream(self, prompt: Sequence[int] = (), *, skip_special_tokens: bool = True) -> TextStream:
        """Return the stream of text behind a prompt."""
        return TextStream(self._tokenizer, prompt, skip_special_tokens=skip_special_tokens)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, without special ones."""
        text: str = self._tokenizer.decode(list(ids))
        return text

    def read(self) -> str:
        """Return the text of tokenizer.json."""
        return self._data.decode()

    def token_id(self, token: str) -> int | None:
        """Return the id of a token, such as "</s>"; None if there is none."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found
