"""The bytes of single tokens, as log probabilities name them: a token may be a part of a character, which has no text of its own."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"  # how SentencePiece writes a space


def _byte_level_alphabet() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for (GPT-2's bytes_to_unicode)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {**{chr(byte): byte for byte in plain}, **{chr(256 + index): byte for index, byte in enumerate(others)}}


class TokenBytes:
    """Bytes by token id: those of byte-level and SentencePiece vocabularies, and of other ones the token as it is written."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        decoder = b"" if tokenizer.decoder is None else bytes(tokenizer.decoder.__getstate__())
        self._alphabet = _byte_level_alphabet() if b'"ByteLevel"' in decoder else None
        self._sentence_piece = b'"Metaspace"' in decoder or b'"ByteFallback"' in decoder or _SPACE in decoder.decode(errors="replace")
        self._added = {id: token.content for id, token in tokenizer.get_added_tokens_decoder().items()}

    def __call__(self, token: int) -> bytes:
        """Return the bytes of a token; those of an id that the tokenizer lacks are none."""
        added = self._added.get(token)
        if added is not None:
            return added.encode()
        written: str = self._tokenizer.id_to_token(token) or ""
        if self._alphabet is not None:
            alphabet = self._alphabet
            return b"".join(bytes([alphabet[each]]) if each in alphabet else each.encode() for each in written)
        if not self._sentence_piece:
            return written.encode()
        byte = _BYTE_TOKEN.fullmatch(written)
        return bytes([int(byte[1], 16)]) if byte else written.replace(_SPACE, " ").encode()
