"""Text of tokens as they are generated, a character at a time or more, never a part of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.decoders import DecodeStream

_INCOMPLETE = "\ufffd"  # what bytes that are no whole character decode to
_MAX_BYTES = 4  # of a character, and so its tokens
_MAX_PENDING = 16  # tokens; so many are no character
_CONTEXT = 16  # tokens at the end of the prompt that the first generated ones are decoded behind


class TextStream:
    """The text of one sequence. What `push` and at last `finish` return, joined, is the text of all tokens behind that of the prompt.

    The tokens of a character are held back until it is whole; those at the end, or that never make one, become U+FFFD. An id that the
    tokenizer lacks has no text, as special tokens have none unless skip_special_tokens is False. prompt: its ids, or the last of them: they
    decide whether the text begins with a space, and may end within a character that generated tokens complete.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = (), *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skips = skip_special_tokens
        self._pending: list[int] = []  # read, without text so far
        recent, whole = self._recent([int(token) for token in prompt[-2 * _CONTEXT :]])
        # Text that a prompt's last tokens have now is the prompt's; a character that they only begin will be ours.
        self._known = self._decode(recent)[len(self._decode(whole)) :]
        begun, self._context = recent[len(whole) :], whole
        self._stream = self._new_stream()
        for token in begun:
            self.push(token)

    def push(self, token: int) -> str:
        """Return the text that one more token completes; often "" for part of a character, or for a special token."""
        try:
            text = self._stream.step(self._tokenizer, token)
        except Exception:  # a plain one: this token changes the text of those before, which were no characters
            text = self._flush()
            self._context = []
            self._stream = self._new_stream()
            return text + self.push(token)
        self._pending.append(token)
        if text:
            self._context, self._pending = self._pending, []
            return self._new_text(text)
        return self._flush() if len(self._pending) >= _MAX_PENDING else ""

    def finish(self) -> str:
        """Return the text that was held back: incomplete characters, as U+FFFD."""
        return self._flush()

    def _flush(self) -> str:
        before = self._decode(self._context)
        text = self._decode([*self._context, *self._pending])[len(before) :]
        if text:
            # Behind bytes that are no character there is nothing to be decoded behind.
            self._context = [] if text.endswith(_INCOMPLETE) else self._pending
        self._pending = []
        self._stream = self._new_stream()
        return self._new_text(text)

    def _new_text(self, text: str) -> str:
        known, self._known = self._known, ""
        return text[len(known) :] if text.startswith(known) else text.removeprefix(known.rstrip(_INCOMPLETE))

    def _recent(self, prompt: list[int]) -> tuple[list[int], list[int]]:
        """Return the last tokens of a prompt, from the beginning of a character on, and those of them up to the end of one."""
        for count in range(_CONTEXT, _CONTEXT + _MAX_BYTES):
            recent = prompt[-count:]
            whole = self._without_incomplete(recent)
            if whole and not self._decode(whole).startswith(_INCOMPLETE):
                return recent, whole
        return [], []

    def _without_incomplete(self, ids: list[int]) -> list[int]:
        """Return ids without the last ones, if those make no whole character."""
        for count in range(len(ids), max(0, len(ids) - _MAX_BYTES), -1):
            if not self._decode(ids[:count]).endswith(_INCOMPLETE):
                return ids[:count]
        return []

    def _new_stream(self) -> DecodeStream:
        from tokenizers.decoders import DecodeStream

        return DecodeStream(ids=self._context, skip_special_tokens=self._skips)

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=self._skips) if ids else ""
        return text
