"""Grammars of texts as masks of tokens: JSON schemas, regular expressions and Lark, by llguidance.

A grammar comes from a client, so it is first compiled and followed for some steps in a process of its own, with limits of processor time,
memory and stack: native code that runs out of its stack ends the process. Only one that is harmless there is compiled here.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from llmos.runtime.children import Children
from llmos.runtime.engine.generate.structured import StructuredOutputs
from llmos.runtime.engine.model import Array
from llmos.runtime.errors import InputError, UserError
from llmos.runtime.text.grammar_limits import one_line, parser_limits

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

LIMIT_S = 2  # of processor time, in the process of its own: most schemas take some milliseconds
MAX_KEPT_BYTES = 256 << 20  # of compiled grammars, as counted when they were checked
_MIN_BYTES = 64 << 10  # that one of them counts at least: what it adds for a vocabulary of words is not known there
# Endless whitespace is valid JSON, and what a weak model falls into.
_JSON_OPTIONS = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{0,20}"}

_END_TOKEN = "<|llmos-end|>"
_CHILDREN = Children("llmos.runtime.text.grammar_worker")
_FREE = threading.BoundedSemaphore(2)  # so many processes at most


class Grammars:
    """Compiles grammars for one tokenizer, and keeps the last ones. Safe to use from several threads.

    tokenizer: gives the text of tokenizer.json. end_ids: tokens that end a text; without any, a text ends where nothing can follow.
    special: contents of the tokens that a grammar in Lark's form may name as they are.
    """

    def __init__(self, tokenizer: Callable[[], str], vocab_size: int, end_ids: Sequence[int], special: Sequence[str]) -> None:
        self._read = tokenizer
        self._vocab_size = vocab_size
        self._end_ids = list(end_ids)
        self._special = list(special)
        self._lock = threading.Lock()
        self._kept: OrderedDict[StructuredOutputs, CompiledGrammar] = OrderedDict()
        self._num_bytes = 0

    def compile(self, wanted: StructuredOutputs) -> CompiledGrammar:
        """Return a grammar, ready to be followed. Raises InputError for one that is malformed, or takes too much time or memory."""
        with self._lock:
            if wanted in self._kept:
                self._kept.move_to_end(wanted)
                return self._kept[wanted]
        text = _grammar_text(wanted)
        num_bytes = max(_MIN_BYTES, self._check(text))
        made = self._compile(text, num_bytes)
        with self._lock:
            if wanted not in self._kept:
                self._kept[wanted] = made
                self._num_bytes += num_bytes
            while self._num_bytes > MAX_KEPT_BYTES:
                self._num_bytes -= self._kept.popitem(last=False)[1].num_bytes
        return made

    def keeps(self, wanted: StructuredOutputs) -> bool:
        """Return whether a grammar is there already, so that `compile` takes no time."""
        with self._lock:
            return wanted in self._kept

    def _check(self, text: str) -> int:
        """Compile a grammar elsewhere, and return how many bytes it took. Raises InputError."""
        with _FREE:
            answer = _CHILDREN.ask(json.dumps({"grammar": text, "special": self._special}).encode(), LIMIT_S)
        if answer.failed:
            raise _refused(answer.said)
        if answer.fault:
            raise _refused(f"it takes too much time, memory or nesting ({answer.fault})")
        return int(answer.output)

    def _compile(self, text: str, num_bytes: int) -> CompiledGrammar:
        from llguidance import LLMatcher

        tokenizer, hidden_id = self._tokenizer
        matcher = LLMatcher(tokenizer, text, log_level=0, limits=parser_limits())
        if error := matcher.get_error():
            raise _refused(one_line(error))
        return CompiledGrammar(matcher, self._vocab_size, hidden_id, num_bytes)

    def prepare(self) -> None:
        """Make what all grammars share, now rather than with the first one: with 50,000 tokens it holds the interpreter for 0.2 s.

        Does nothing where it can't be made, which `compile` will say.
        """
        with contextlib.suppress(UserError):
            self._tokenizer  # noqa: B018, made once

    @cached_property
    def _tokenizer(self) -> tuple[LLTokenizer, int | None]:
        """Return the tokenizer, and the id of an end token that the model lacks: it is in no mask. Raises UserError."""
        _require_llguidance()
        from llguidance import LLTokenizer

        text, end_ids, hidden_id = self._read(), self._end_ids, None
        if not end_ids:
            text, hidden_id = _with_end_token(text)
            end_ids = [hidden_id]
        try:
            size = self._vocab_size if hidden_id is None else max(self._vocab_size, hidden_id + 1)
            return LLTokenizer(text, n_vocab=size, eos_token=end_ids), hidden_id
        except Exception as error:  # of the library
            raise UserError(f"structured outputs are not possible with this model's tokenizer ({error!s:.200})") from error


@dataclass(frozen=True)
class CompiledGrammar:
    """See Grammar of the engine. hidden_id: a token that the model lacks. num_bytes: that it takes."""

    matcher: LLMatcher
    vocab_size: int
    hidden_id: int | None
    num_bytes: int

    def start(self) -> MatcherGuide:
        """Return the state before the first token."""
        return MatcherGuide(self.matcher.deep_copy(), self.vocab_size, self.hidden_id)


class MatcherGuide:
    """See Guide of the engine."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, hidden_id: int | None) -> None:
        self._matcher = matcher
        num_words = -(-vocab_size // 32)
        self._words: Array = np.empty(num_words if hidden_id is None else max(num_words, hidden_id // 32 + 1), np.uint32)
        self._mask = self._words[:num_words]
        self._hidden_id = hidden_id

    def next_mask(self, token: int | None) -> Array | None:
        """Take a token and return the mask of those that may follow: the same array each time. Raises InputError."""
        matcher, hidden = self._matcher, self._hidden_id
        if token is not None:
            matcher.consume_token(token)
        matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        if matcher.is_error():
            reason = one_line(matcher.get_error())
            reason = "the tokenizer has no token that may follow" if "NoExtension" in reason else reason
            raise InputError(f"structured_outputs: the text can't be continued ({reason})")
        if matcher.is_stopped():
            return None
        if hidden is not None:
            self._words[hidden // 32] &= np.uint32(0xFFFFFFFF ^ (1 << hidden % 32))
        return self._mask


def _with_end_token(text: str) -> tuple[str, int]:
    """Return the text of a tokenizer.json with one token more, and its id."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(text)
    tokenizer.add_special_tokens([_END_TOKEN])
    end_id = tokenizer.token_to_id(_END_TOKEN)
    assert end_id is not None, "it was added"
    return tokenizer.to_str(), end_id


def _grammar_text(wanted: StructuredOutputs) -> str:
    """Return a grammar as llguidance reads it. Raises InputError, and UserError without llguidance."""
    _require_llguidance()
    from llguidance import LLMatcher

    if wanted.kind == "regex":
        return LLMatcher.grammar_from_regex(wanted.source)
    if wanted.kind == "grammar":
        return LLMatcher.grammar_from_lark(wanted.source)
    options: Any = {**_JSON_OPTIONS, "lenient": not wanted.strict}
    try:
        return LLMatcher.grammar_from_json_schema(wanted.source, overrides=options)
    except ValueError as error:
        raise _refused(str(error)) from None


def _refused(reason: str) -> InputError:
    return InputError(f"structured_outputs: the grammar can't be used: {reason}")


def _require_llguidance() -> None:
    try:
        import llguidance  # noqa: F401
    except ImportError:
        raise UserError("structured outputs need the llguidance package: pip install llmos[serve]") from None
