"""What a client saw of one request."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import orjson

from llmos.runtime.bench.client import Response

REJECTED = 429


@dataclass(frozen=True)
class Sample:
    """Times are seconds of one clock.

    due_s: when the request was to be sent; all latencies count from it, so that a client or a server that is late hides nothing. sent_s:
    when it was. first_s: the first token of a stream; None for others. gaps_s: between the events of a stream that hold text. status:
    0 for no answer. error: in a word or line; "" for none. num_output_tokens: as the server counts, or events with text.
    """

    due_s: float
    sent_s: float
    end_s: float
    status: int
    error: str = ""
    first_s: float | None = None
    gaps_s: tuple[float, ...] = ()
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0

    @property
    def ok(self) -> bool:
        return self.status == 200 and not self.error

    @property
    def e2e_s(self) -> float:
        """Return the time from when it was due to the last byte."""
        return self.end_s - self.due_s

    @property
    def ttft_s(self) -> float | None:
        """Return the time to the first token (TTFT)."""
        return None if self.first_s is None else self.first_s - self.due_s

    @property
    def tpot_s(self) -> float | None:
        """Return the time per output token (TPOT) behind the first; None for fewer than two tokens."""
        if self.first_s is None or self.num_output_tokens < 2:
            return None
        return (self.end_s - self.first_s) / (self.num_output_tokens - 1)


def sample_of(response: Response, due_s: float) -> Sample:
    """Read an answer, once its times don't matter any more."""
    if response.status != 200:
        return Sample(due_s, response.sent_s, response.end_s, response.status, error=f"status {response.status}")
    if not response.streams:
        prompt, output = _usage(_parsed(response.body) if response.body[:1] == b"{" else {})
        return Sample(due_s, response.sent_s, response.end_s, 200, num_prompt_tokens=prompt, num_output_tokens=output)
    return _of_stream(response, due_s)


def _of_stream(response: Response, due_s: float) -> Sample:
    times_s: list[float] = []
    prompt, output, error = 0, 0, ""
    for at_s, data in response.events:
        event = _parsed(data)
        if event.get("error"):
            error = "error in the stream"
        if event.get("usage"):
            prompt, output = _usage(event)
        if any(_text(choice) for choice in event.get("choices") or ()):
            times_s.append(at_s)
    if not error and (not response.events or response.events[-1][1] != b"[DONE]"):
        error = "the stream has no end"
    gaps_s = tuple(later - earlier for earlier, later in pairwise(times_s))
    return Sample(
        due_s,
        response.sent_s,
        response.end_s,
        200,
        error=error,
        first_s=times_s[0] if times_s else None,
        gaps_s=gaps_s,
        num_prompt_tokens=prompt,
        num_output_tokens=output or len(times_s),
    )


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _usage(document: dict[str, Any]) -> tuple[int, int]:
    usage = document.get("usage") or {}
    return int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)


def _text(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    return bool(choice.get("text") or delta.get("content") or delta.get("tool_calls") or delta.get("reasoning_content"))
