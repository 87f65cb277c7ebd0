"""One client's generation as text: tokens become text, and stop strings end it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmos.runtime.engine.generate import Event, FinishEvent, GenerationRequest, PromptEvent, SamplingParams, TokenEvent
from llmos.runtime.text.detokenizer import TextStream
from llmos.runtime.text.stop import StopStrings

STOP = "stop"


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text of sequence `index`, "" where none is certain yet, and the tokens that came with it, with their logprobs."""

    index: int
    text: str
    tokens: tuple[TokenEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class TextEnd:
    """The end of sequence `index`.

    finish_reason: as of FinishEvent; "stop" also for a stop string. stop: the string or the id of the token that ended it.
    num_generated_tokens: with those of the stop string.
    """

    index: int
    finish_reason: str
    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int
    stop: str | int | None = None
    error: Exception | None = None


TextEvent = PromptEvent | TextDelta | TextEnd


@dataclass(frozen=True)
class Completion:
    """One whole sequence: its text without what ended it, its tokens, and its end."""

    text: str
    tokens: tuple[TokenEvent, ...]
    end: TextEnd

    @property
    def token_ids(self) -> list[int]:
        """Return the ids of the tokens; those of a stop string, which the text lacks, are among them."""
        return [event.token for event in self.tokens]


class TextRequest:
    """A submitted generation. One consumer reads its events, in a thread or on an event loop.

    text_s: the seconds that making text of tokens took. visible: special tokens that are part of the text, which others are not.
    Leaving `with request:` cancels what has not ended.
    """

    def __init__(self, request: GenerationRequest, streams: Iterable[TextStream], visible: Mapping[int, str] | None = None) -> None:
        self._request = request
        self.text_s = 0.0
        params, shown = request.params, visible or {}
        self._sequences = [
            _Sequence(index, stream, StopStrings(params.stop), params.min_tokens, shown) for index, stream in enumerate(streams)
        ]

    @property
    def num_prompt_tokens(self) -> int:
        """Return the number of tokens of the prompt."""
        return len(self._request.prompt)

    @property
    def prompt_ids(self) -> list[int]:
        """Return the tokens of the prompt."""
        ids: list[int] = self._request.prompt.tolist()
        return ids

    @property
    def params(self) -> SamplingParams:
        """Return what it was submitted with."""
        return self._request.params

    def __iter__(self) -> Iterator[TextEvent]:
        """Yield the events as they come; ends behind the last TextEnd."""
        for event in self._request:
            yield from self._events(event)

    async def __aiter__(self) -> AsyncIterator[TextEvent]:
        """Yield the events as they come, on the running event loop; ends behind the last TextEnd."""
        async for event in self._request:
            for found in self._events(event):
                yield found

    def __enter__(self) -> TextRequest:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.cancel()

    def cancel(self) -> None:
        """End all sequences; within a step they take no more computing."""
        self._request.cancel()

    def result(self) -> list[Completion]:
        """Wait for all sequences, by index. Raises the error that ended one of them."""
        collected = _Collected(len(self._sequences))
        for event in self:
            collected.add(event)
        return collected.completions()

    async def aresult(self) -> list[Completion]:
        """As `result`, on the running event loop."""
        collected = _Collected(len(self._sequences))
        async for event in self:
            collected.add(event)
        return collected.completions()

    @property
    def times_s(self) -> tuple[float, float | None, float | None]:
        """Return when it was submitted, when its first step began, and when its first token came, on the engine's clock."""
        return self._request.arrival_s, self._request.first_step_s, self._request.first_token_s

    def _events(self, event: Event) -> list[TextEvent]:
        if isinstance(event, PromptEvent):
            return [event]
        start_s = time.perf_counter()
        found = self._texts(event)
        self.text_s += time.perf_counter() - start_s
        return found

    def _texts(self, event: TokenEvent | FinishEvent) -> list[TextEvent]:
        sequence = self._sequences[event.index]
        if isinstance(event, FinishEvent):
            return sequence.finish(event)
        found = sequence.push(event)
        if sequence.stopped:
            self._request.stop(event.index)
        return found


class _Sequence:
    """The text of one sequence. stopped: a stop string has ended it; tokens that come all the same are dropped."""

    def __init__(self, index: int, stream: TextStream, stop: StopStrings, min_tokens: int, visible: Mapping[int, str]) -> None:
        self._index = index
        self._stream = stream
        self._stop = stop
        self._min_tokens = min_tokens
        self._visible = visible
        self._num_tokens = 0

    @property
    def stopped(self) -> bool:
        return self._stop.found is not None

    def push(self, event: TokenEvent) -> list[TextEvent]:
        if self.stopped:
            return []
        self._num_tokens += 1
        text = self._stream.push(event.token) + self._visible.get(event.token, "")
        if self._num_tokens > self._min_tokens:
            text = self._stop.push(text)
        return [TextDelta(self._index, text, (event,))]

    def finish(self, event: FinishEvent) -> list[TextEvent]:
        found: list[TextEvent] = []
        if not self.stopped:
            text = self._stop.push(self._stream.finish()) + self._stop.finish()
            found += [TextDelta(self._index, text)] if text else []
        counts = (event.num_prompt_tokens, event.num_cached_tokens)
        if self.stopped:
            return [*found, TextEnd(self._index, STOP, *counts, self._num_tokens, self._stop.found)]
        return [*found, TextEnd(self._index, event.finish_reason, *counts, event.num_generated_tokens, event.stop_token, event.error)]


@dataclass
class _Collected:
    """Events of all sequences, on their way to completions."""

    count: int
    texts: dict[int, list[str]] = field(default_factory=dict)
    tokens: dict[int, list[TokenEvent]] = field(default_factory=dict)
    ends: dict[int, TextEnd] = field(default_factory=dict)

    def add(self, event: TextEvent) -> None:
        if isinstance(event, TextDelta):
            self.texts.setdefault(event.index, []).append(event.text)
            self.tokens.setdefault(event.index, []).extend(event.tokens)
        elif isinstance(event, TextEnd):
            if event.error is not None:
                raise event.error
            self.ends[event.index] = event

    def completions(self) -> list[Completion]:
        return [Completion("".join(self.texts.get(i, ())), tuple(self.tokens.get(i, ())), self.ends[i]) for i in range(self.count)]
