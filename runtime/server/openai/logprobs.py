"""Log probabilities in the forms of OpenAI's completions and chat completions."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

_LEAST = -9999.0  # JSON has no infinities


class Sampled(Protocol):
    """A token with its log probability and the likeliest ones, likeliest first: a TokenEvent, or a SampledRow of the prompt."""

    @property
    def token(self) -> int: ...
    @property
    def logprob(self) -> float | None: ...
    @property
    def top(self) -> tuple[tuple[int, float], ...]: ...


TokenBytes = Callable[[int], bytes]


@dataclass
class CompletionLogprobs:
    """Writes those of one choice of a completion, piece by piece: text_offset counts the characters of its text."""

    token_bytes: TokenBytes
    _offset: int = 0
    _decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    def write(self, tokens: Sequence[Sampled]) -> dict[str, Any]:
        """Return the object `logprobs` of tokens; the chosen token is always among the likeliest, as OpenAI has it."""
        return {
            "tokens": [_name(self.token_bytes(each.token)) for each in tokens],
            "token_logprobs": [_finite(each.logprob) for each in tokens],
            "top_logprobs": [self._top(each) for each in tokens],
            "text_offset": [self._advance(each.token) for each in tokens],
        }

    def _top(self, sampled: Sampled) -> dict[str, float | None] | None:
        if sampled.logprob is None:
            return None
        pairs = [*sampled.top, (sampled.token, sampled.logprob)]
        return {_name(self.token_bytes(token)): _finite(logprob) for token, logprob in pairs}

    def _advance(self, token: int) -> int:
        """Return where a token begins in the text: that of a part of a character at the character."""
        data, start = self.token_bytes(token), self._offset
        self._offset += len(self._decoder.decode(data))
        return max(start, self._offset - len(data.decode(errors="replace")))  # behind what earlier bytes, never completed, became


def chat_logprobs(tokens: Iterable[Sampled], token_bytes: TokenBytes) -> dict[str, Any]:
    """Return the object `logprobs` of a choice of a chat completion."""

    def one(token: int, logprob: float | None) -> dict[str, Any]:
        data = token_bytes(token)
        return {"token": data.decode(errors="replace"), "logprob": _finite(logprob), "bytes": list(data)}

    content = [{**one(each.token, each.logprob), "top_logprobs": [one(*pair) for pair in each.top]} for each in tokens]
    return {"content": content, "refusal": None}


def _name(data: bytes) -> str:
    r"""Return the text of a token; that of a part of a character, which has none, as bytes:\xe6\x97."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(float(logprob), _LEAST)
