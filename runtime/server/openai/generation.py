"""Running generations for one HTTP request, and writing their answer, whole or as it comes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import orjson

from llmos.runtime.engine import CancelledError
from llmos.runtime.engine.generate import PromptEvent
from llmos.runtime.llm.request import TextDelta, TextEnd, TextEvent, TextRequest
from llmos.runtime.server.core.errors import as_http_error, error_object
from llmos.runtime.server.core.http import EventStream, Receive, Reply, RequestInfo
from llmos.runtime.server.core.work import Lanes
from llmos.runtime.server.openai.form import Form
from llmos.runtime.server.openai.logprobs import Sampled

_MOST_TRACED = 8  # prompts of a call whose parts a trace shows
_LOG = logging.getLogger("llmos.server")
_INLINE_ENTRIES = 500  # log probabilities that are written on the event loop, in some 2 ms
_Tagged = tuple[int, TextEvent]
_Written = TypeVar("_Written")


class Generation:
    """The requests of one HTTP request, one for each prompt. They are canceled when the client disconnects, and by `close`.

    Choices are numbered prompt by prompt.
    """

    def __init__(self, requests: Sequence[TextRequest], receive: Receive) -> None:
        self.requests = requests
        self._tasks = [asyncio.create_task(self._watch(receive))]

    def choice(self, request: int, sequence: int) -> int:
        """Return the number of a choice."""
        return request * self.requests[0].params.n + sequence

    def close(self) -> None:
        """Cancel what has not ended."""
        for task in self._tasks:
            task.cancel()
        for request in self.requests:
            request.cancel()

    async def events(self) -> AsyncGenerator[_Tagged, None]:
        """Yield the events of all requests as they come, with the request's index.

        Raises the error that ended one of them, and CancelledError if the client went away.
        """
        if len(self.requests) == 1:
            async for event in self.requests[0]:
                yield 0, _checked(event)
            return
        arrived: asyncio.Queue[_Tagged | Exception | None] = asyncio.Queue()
        self._tasks += [asyncio.create_task(_forward(index, request, arrived)) for index, request in enumerate(self.requests)]
        num_open = len(self.requests)
        while num_open:
            found = await arrived.get()
            if found is None:
                num_open -= 1
            elif isinstance(found, Exception):
                raise found
            else:
                yield found[0], _checked(found[1])

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        for request in self.requests:
            request.cancel()


async def _forward(index: int, request: TextRequest, arrived: asyncio.Queue[_Tagged | Exception | None]) -> None:
    try:
        async for event in request:
            arrived.put_nowait((index, event))
        arrived.put_nowait(None)
    except Exception as error:  # for who waits
        arrived.put_nowait(error)


def _checked(event: TextEvent) -> TextEvent:
    if isinstance(event, TextEnd):
        if event.error is not None:
            raise event.error
        if event.finish_reason == "abort":
            raise CancelledError("the client went away")
    return event


@dataclass
class _Choice:
    """A choice of a whole answer, as far as it has come."""

    texts: list[str] = field(default_factory=list)
    tokens: list[Sampled] = field(default_factory=list)
    reason: str = ""


@dataclass
class Usage:
    """Tokens of an answer. cached: of each prompt, that needed no computing."""

    num_prompt: int
    num_generated: int = 0
    cached: dict[int, int] = field(default_factory=dict)

    def add(self, request: int, end: TextEnd) -> None:
        self.num_generated += end.num_generated_tokens
        if end.index == 0:  # the others share its prompt
            self.cached[request] = end.num_cached_tokens

    def as_json(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.num_prompt,
            "completion_tokens": self.num_generated,
            "total_tokens": self.num_prompt + self.num_generated,
            "prompt_tokens_details": {"cached_tokens": sum(self.cached.values())},
        }


class Answer:
    """Writes the answer of a generation in the form of a route.

    info: of the HTTP request, which counts the tokens. lanes, deadline_s (of time.perf_counter): where and until when much is written.
    """

    def __init__(self, generation: Generation, form: Form, info: RequestInfo, lanes: Lanes, deadline_s: float) -> None:
        self._generation = generation
        self._form = form
        self._info = info
        self._lanes = lanes
        self._deadline_s = deadline_s
        num_logprobs = generation.requests[0].params.logprobs
        self._entries = 0 if num_logprobs is None else 1 + num_logprobs  # that are written of a token
        self._head = {"id": f"{form.id_prefix}-{info.request_id}", "created": int(time.time()), "model": str(info.model)}
        self._usage = Usage(sum(request.num_prompt_tokens for request in generation.requests))
        info.num_tokens += self._usage.num_prompt
        self._prompts: dict[int, tuple[str, list[Sampled]]] = {}
        self._prompt_events: dict[int, PromptEvent] = {}

    async def whole(self) -> Reply:
        """Return the whole answer. Raises the error that ended the generation."""
        try:
            return await self._whole()
        finally:
            self._note_phases()

    async def _whole(self) -> Reply:
        choices: dict[int, _Choice] = {}
        async for index, event in self._generation.events():
            if isinstance(event, PromptEvent):
                self._prompt_events[index] = event
                continue
            number = self._generation.choice(index, event.index)
            if number not in choices:
                text, tokens = self._prompt(index)
                choices[number] = _Choice([text], list(tokens))
            choice = choices[number]
            if isinstance(event, TextDelta):
                self._info.num_tokens += len(event.tokens)
                choice.texts.append(event.text)
                choice.tokens += event.tokens
            else:
                choice.reason = event.finish_reason
                self._usage.add(index, event)
        num_tokens = sum(len(each.tokens) for each in choices.values())
        pieces = [orjson.dumps({**self._head, "object": self._form.object})[:-1] + b',"choices":[']
        for number, choice in sorted(choices.items()):
            pieces += [await self._written(partial(self._whole_choice, number, choice), num_tokens), b","]
        pieces[-1] = b'],"usage":' + orjson.dumps(self._usage.as_json()) + b"}"
        return Reply.of_pieces(pieces)

    def _whole_choice(self, number: int, choice: _Choice) -> bytes:
        return orjson.dumps(self._form.whole(number, "".join(choice.texts), choice.tokens, choice.reason))

    async def _written(self, write: Callable[[], _Written], num_tokens: int) -> _Written:
        """Write a part of an answer, beside the event loop where the log probabilities of these tokens would hold it for long."""
        if num_tokens * self._entries <= _INLINE_ENTRIES:
            return write()
        return await self._lanes.run(write, self._deadline_s, large=True)

    async def stream(self, *, include_usage: bool) -> EventStream:
        """Return the answer as events, once the first is there. Raises an error that comes before it."""
        chunks = self._chunks(include_usage=include_usage)
        try:
            first = await anext(chunks)
        except Exception:
            self._note_phases()
            raise
        return EventStream(self._with_errors(first, chunks), self._close)

    def _close(self) -> None:
        self._generation.close()
        self._note_phases()

    def _note_phases(self) -> None:
        """Say when what was done for the request, where somebody wants it. The engine's clock is that of time.perf_counter, on Linux."""
        info, end_s = self._info, time.perf_counter()
        info.num_prompt_tokens, info.num_output_tokens = self._usage.num_prompt, self._usage.num_generated
        if info.phases is None:
            return
        for request in self._generation.requests[:_MOST_TRACED]:
            arrival_s, step_s, token_s = request.times_s
            info.add_phase("queue", arrival_s, step_s or end_s)
            if step_s is None:
                continue
            info.add_phase("prefill", step_s, token_s or end_s)
            if token_s is not None:
                info.first_token_s = min(token_s, info.first_token_s or token_s)
                info.add_phase("decode", token_s, end_s)
                # Between steps, so that it has no one place: it stands at the end, as long as it took in all.
                info.add_phase("detokenize", end_s - request.text_s, end_s)

    async def _with_errors(self, first: bytes, chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """Yield all events; an error ends them with one of its own, without [DONE]."""
        try:
            yield first
            async for chunk in chunks:
                yield chunk
        except Exception as error:
            known = as_http_error(error)
            if known.status == 499:  # nobody reads any more
                return
            if known.status == 500:
                _LOG.exception("stream %s failed", self._head["id"])
            yield orjson.dumps(error_object(known))
        finally:
            await chunks.aclose()

    async def _chunks(self, *, include_usage: bool) -> AsyncGenerator[bytes, None]:
        begun: set[int] = set()
        usage = {"usage": None} if include_usage else {}
        async for index, event in self._generation.events():
            if isinstance(event, PromptEvent):
                self._prompt_events[index] = event
                continue
            number = self._generation.choice(index, event.index)
            if number not in begun:
                begun.add(number)
                text, tokens = self._prompt(index)
                first = await self._written(partial(self._first_chunk, number, text, tokens, usage), len(tokens))
                if first is not None:
                    yield first
            if isinstance(event, TextEnd):
                self._usage.add(index, event)
                last = self._form.chunk(number, "", (), event.finish_reason)
                assert last is not None, "an end is always said"
                yield self._chunk([last], usage)
                continue
            self._info.num_tokens += len(event.tokens)
            if event.text or self._generation.requests[0].params.logprobs is not None:
                more = self._form.chunk(number, event.text, event.tokens, None)
                if more is not None:
                    yield self._chunk([more], usage)
        if include_usage:
            yield self._chunk([], {"usage": self._usage.as_json()})
        yield b"[DONE]"

    def _first_chunk(self, number: int, text: str, tokens: Sequence[Sampled], usage: dict[str, Any]) -> bytes | None:
        first = self._form.first(number, text, tokens)
        return None if first is None else self._chunk([first], usage)

    def _prompt(self, index: int) -> tuple[str, list[Sampled]]:
        """Return what of a prompt stands before its choices."""
        if index not in self._prompts:
            self._prompts[index] = self._form.prompt(self._generation.requests[index], self._prompt_events.get(index))
        return self._prompts[index]

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any]) -> bytes:
        chunk = {**self._head, "object": self._form.chunk_object, "choices": choices, **usage}
        return orjson.dumps(chunk)
