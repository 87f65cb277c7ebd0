"""One client's generation: the events that the engine gives it, and ways to read them."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from llmos.runtime.engine.generate.params import SamplingParams
from llmos.runtime.engine.generate.sampler import SampledRow
from llmos.runtime.engine.generate.sequence import ABORT, STOP
from llmos.runtime.engine.model import Array


@dataclass(frozen=True, slots=True)
class PromptEvent:
    """The prompt's tokens with their log probabilities given those before, None for the first; where prompt_logprobs asks for them."""

    tokens: tuple[SampledRow | None, ...]


@dataclass(slots=True)  # not frozen, which would make each several times as expensive
class TokenEvent:
    """A generated token of sequence `index`; logprob and top (likeliest first) as far as `logprobs` asks for them."""

    index: int
    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class FinishEvent:
    """The end of sequence `index`; the request ends with that of its last sequence.

    finish_reason: stop (a stop token, which is in `stop_token` and has no TokenEvent of its own), length (max_tokens, or the end of the
    context), abort (canceled, or out of time, where `error` is a DeadlineError) or error. num_cached_tokens: of the prompt, which were not
    computed. num_generated_tokens: with the stop token.
    """

    index: int
    finish_reason: str
    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int
    stop_token: int | None = None
    error: Exception | None = None


Event = PromptEvent | TokenEvent | FinishEvent


@dataclass
class GeneratedSequence:
    """One whole sequence: its tokens, as TokenEvents, and its end."""

    tokens: list[TokenEvent] = field(default_factory=list)
    finish: FinishEvent | None = None

    @property
    def token_ids(self) -> list[int]:
        """Return the ids of the tokens, without a stop token."""
        return [event.token for event in self.tokens]


class GenerationRequest:
    """A submitted generation. One consumer reads its events, in a thread or on an event loop; each is delivered once.

    principal, weight: whose it is, and of its share. order_s: when it counts as having arrived (`fairness.py`).
    first_step_s, first_token_s, last_token_s and open_indices belong to the engine, under its lock.
    """

    def __init__(
        self,
        prompt: Array,
        params: SamplingParams,
        arrival_s: float,
        deadline_s: float,
        cancel: Callable[[GenerationRequest, int | None, str], bool],
        principal: str = "",
        weight: float = 1.0,
    ) -> None:
        self.prompt = prompt
        self.params = params
        self.arrival_s = arrival_s
        self.order_s = arrival_s
        self.principal = principal
        self.weight = weight
        self.deadline_s = deadline_s
        self.first_step_s: float | None = None
        self.first_token_s: float | None = None
        self.last_token_s = [0.0] * params.n
        self.open_indices = set(range(params.n))
        self.num_delivered = [0] * params.n  # tokens, without a stop token
        self.prompt_rows: list[SampledRow] = []
        self.listener: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._cancel = cancel
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.put: Callable[[Event], None] = self._events.put  # for the engine; a consumer on an event loop has to be woken as well
        self._num_unread = params.n  # sequences whose FinishEvent was not read yet

    def __iter__(self) -> Iterator[Event]:
        """Yield the events as they come; ends behind the last FinishEvent."""
        while self._num_unread:
            yield self._read(self._events.get())

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield the events as they come, on the running event loop; ends behind the last FinishEvent."""
        arrived = asyncio.Event()
        self.listener = (asyncio.get_running_loop(), arrived)
        try:
            while self._num_unread:
                arrived.clear()  # before looking, so that what comes from now on is not missed
                try:
                    event = self._events.get_nowait()
                except queue.Empty:
                    await arrived.wait()
                    continue
                yield self._read(event)
        finally:
            self.listener = None

    def __enter__(self) -> GenerationRequest:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.cancel()

    def cancel(self, index: int | None = None) -> bool:
        """End one sequence, or all, with the reason "abort"; within a step it takes no more computing. Return False if it had ended."""
        return self._cancel(self, index, ABORT)

    def stop(self, index: int) -> bool:
        """As `cancel`, with the reason "stop": for who reads the tokens, its text is complete."""
        return self._cancel(self, index, STOP)

    def next_event(self, timeout_s: float | None = None) -> Event:
        """Wait for the next event. Raises TimeoutError."""
        try:
            return self._read(self._events.get(timeout=timeout_s))
        except queue.Empty as error:
            raise TimeoutError(f"no event in {timeout_s} s") from error

    def result(self) -> list[GeneratedSequence]:
        """Wait for all sequences, by index. Raises the error that ended one of them."""
        sequences = [GeneratedSequence() for _ in range(self.params.n)]
        for event in self:
            if isinstance(event, TokenEvent):
                sequences[event.index].tokens.append(event)
            elif isinstance(event, FinishEvent):
                if event.error is not None:
                    raise event.error
                sequences[event.index].finish = event
        return sequences

    def _read(self, event: Event) -> Event:
        self._num_unread -= isinstance(event, FinishEvent)
        return event


def wake(requests: Iterable[GenerationRequest]) -> None:
    """Wake those of the requests' consumers that wait on an event loop, with one call a loop."""
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Event]] = {}
    for request in requests:
        listener = request.listener
        if listener is not None:
            loops.setdefault(listener[0], []).append(listener[1])
    for loop, events in loops.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed, and its consumers with it
            loop.call_soon_threadsafe(_set_all, events)


def _set_all(events: list[asyncio.Event]) -> None:
    for event in events:
        event.set()
