"""The engine on real threads: the same tokens as alone, errors that stay with their request, cancellation, deadlines, drain."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from llmos.runtime.engine.errors import ClosedError, DeadlineError, IntegrityError, QueueFullError
from llmos.runtime.engine.generate import (
    Event,
    FinishEvent,
    GenerationEngine,
    GenerationOptions,
    GenerationReport,
    GenerationRequest,
    Limits,
    PromptEvent,
    SamplingParams,
    StepReport,
    StepSizes,
    TokenEvent,
)
from llmos.runtime.engine.generate.null import NullStepModel, null_spec
from llmos.runtime.errors import ExecutionError, InputError

from .reference import generate

Array = np.ndarray[Any, Any]
GREEDY = SamplingParams(temperature=0, max_tokens=8)


@dataclass
class GatedModel(NullStepModel):
    """Waits for its gate before each step."""

    gate: threading.Event = field(default_factory=threading.Event)

    def __call__(self, arrays: Any) -> Array:
        assert self.gate.wait(60)
        return super().__call__(arrays)


def opened(model: NullStepModel) -> None:
    if isinstance(model, GatedModel):
        model.gate.set()


@contextmanager
def engine_of(model: NullStepModel | None = None, **options: Any) -> Iterator[GenerationEngine]:
    model = model or NullStepModel()
    engine = GenerationEngine(model, GenerationOptions(**{"cache_blocks": 96, **options}))
    try:
        yield engine
        wait_for(engine.is_idle)
        engine.check_integrity()
    finally:
        opened(model)
        engine.close()


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "timed out waiting"
        time.sleep(0.001)


def ids(length: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 61, length).astype(np.int32)


def alone(prompt: Array, params: SamplingParams, count: int, index: int = 0) -> list[tuple[Any, ...]]:
    rows = generate(null_spec(), prompt, params.row_sampling(params.seed or 0, index), count)
    return [(row.token, row.logprob, row.top) for row in rows]


def values(event: Event) -> tuple[Any, ...]:
    assert isinstance(event, TokenEvent)
    return event.token, event.logprob, event.top


def answer(request: GenerationRequest, index: int = 0) -> list[tuple[Any, ...]]:
    return [values(event) for event in request.result()[index].tokens]


def test_a_request_gives_its_tokens_and_its_end() -> None:
    with engine_of() as engine:
        request = engine.submit(ids(7).tolist(), replace(GREEDY, logprobs=2))
        events = list(request)
        assert list(request) == []
    assert [values(event) for event in events[:-1]] == alone(ids(7), replace(GREEDY, logprobs=2), 8)
    assert events[-1] == FinishEvent(0, "length", 7, 0, 8)


def test_tokens_and_logprobs_do_not_depend_on_who_else_is_served() -> None:
    params = [
        SamplingParams(temperature=0.7 * (number % 3), max_tokens=6 + number % 9, seed=number, logprobs=3, frequency_penalty=number % 2)
        for number in range(64)
    ]
    prompts = [np.concatenate([ids(17), ids(1 + number % 30, number)]) for number in range(64)]
    with engine_of(limits=Limits(48, 32, 40), cache_blocks=120) as engine:
        requests = [engine.submit(prompt, each) for prompt, each in zip(prompts, params, strict=True)]
        answers = [answer(request) for request in requests]
    for prompt, each, found in zip(prompts, params, answers, strict=True):
        assert each.max_tokens is not None
        assert found == alone(prompt, each, each.max_tokens)


def test_several_sequences_of_one_prompt() -> None:
    params = SamplingParams(n=5, seed=3, max_tokens=6)
    with engine_of() as engine:
        events = list(engine.submit(ids(18), params))
    for index in range(5):
        mine = [event for event in events if not isinstance(event, PromptEvent) and event.index == index]
        assert [values(event) for event in mine[:-1]] == alone(ids(18), params, 6, index)
        assert mine[-1] == FinishEvent(index, "length", 18, 16 if index else 0, 6)


def test_prompt_logprobs_come_before_the_first_token() -> None:
    with engine_of(limits=Limits(64, 4, 5)) as engine:
        events = list(engine.submit(ids(12), replace(GREEDY, prompt_logprobs=0)))
    assert isinstance(events[0], PromptEvent)
    assert events[0].tokens[0] is None
    assert [row.token for row in events[0].tokens[1:] if row is not None] == ids(12)[1:].tolist()
    assert sum(isinstance(event, TokenEvent) for event in events) == 8


def test_a_stop_token_is_in_the_end_and_is_no_token_event() -> None:
    stop = alone(ids(7), GREEDY, 8)[3][0]
    with engine_of() as engine:
        request = engine.submit(ids(7), replace(GREEDY, stop_token_ids=[stop]))
        events = list(request)
    assert [values(event) for event in events[:-1]] == alone(ids(7), GREEDY, 3)
    assert events[-1] == FinishEvent(0, "stop", 7, 0, 4, stop_token=stop)


def test_an_event_loop_reads_many_requests_at_once() -> None:
    async def read(request: GenerationRequest) -> list[tuple[Any, ...]]:
        return [values(event) async for event in request if isinstance(event, TokenEvent)]

    async def read_all(engine: GenerationEngine) -> list[list[tuple[Any, ...]]]:
        return await asyncio.gather(*(read(engine.submit(ids(5, seed), GREEDY)) for seed in range(20)))

    with engine_of() as engine:
        answers = asyncio.run(asyncio.wait_for(read_all(engine), 60))
    assert answers == [alone(ids(5, seed), GREEDY, 8) for seed in range(20)]


def test_a_request_whose_step_fails_leaves_the_others_as_they_are() -> None:
    model = GatedModel(fails_at=60)
    good = [ids(9, seed) % 60 for seed in range(3)]
    with engine_of(model) as engine:
        requests = [engine.submit(prompt, GREEDY) for prompt in good]
        failing = engine.submit([1, 60, 2], GREEDY)
        model.gate.set()
        with pytest.raises(ExecutionError, match="a token of the step fails"):
            failing.result()
        for prompt, request in zip(good, requests, strict=True):
            found = answer(request)
            assert found == alone(prompt, GREEDY, len(found))


def test_a_row_without_numbers_fails_its_request_alone() -> None:
    model = GatedModel(nan_at=60)
    with engine_of(model) as engine:
        good, bad = engine.submit(ids(9) % 60, replace(GREEDY, logit_bias={60: -100})), engine.submit([1, 60, 2], GREEDY)
        model.gate.set()
        events = list(bad)
        assert len(answer(good)) == 8
    assert isinstance(events[-1], FinishEvent)
    assert (events[-1].finish_reason, str(events[-1].error)) == ("error", "the model computed logits that are NaN or infinite")


def test_a_canceled_request_ends_at_once_and_frees_its_blocks() -> None:
    model = GatedModel()
    with engine_of(model) as engine:
        running, waiting = engine.submit(ids(5), replace(GREEDY, max_tokens=200)), engine.submit(ids(6), replace(GREEDY, n=3))
        assert waiting.cancel(1)
        assert running.cancel()
        assert not running.cancel()
        assert [event.finish_reason for event in running if isinstance(event, FinishEvent)] == ["abort"]
        model.gate.set()
        ends = [event for event in waiting if isinstance(event, FinishEvent)]
    assert sorted((end.index, end.finish_reason) for end in ends) == [(0, "length"), (1, "abort"), (2, "length")]
    assert model.num_steps <= 10


def test_leaving_a_request_cancels_it() -> None:
    with engine_of() as engine, engine.submit(ids(5), replace(GREEDY, max_tokens=200)) as request:
        assert isinstance(request.next_event(60), TokenEvent)


def test_a_deadline_ends_a_request_with_what_it_has() -> None:
    model = GatedModel()
    with engine_of(model) as engine:
        late = engine.submit(ids(5), GREEDY, timeout_s=0.02)
        time.sleep(0.05)
        model.gate.set()
        with pytest.raises(DeadlineError):
            late.result()
        assert len(answer(engine.submit(ids(5), GREEDY))) == 8


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "the prompt is empty"),
        ([1, 61], "the prompt has token id 61, the model has ids 0 to 60"),
        ([-1], "the prompt has token id -1"),
        ([2**70], "token ids"),
        ([1.5], "the prompt must be a list of token ids, not float64"),
        ("text", "the prompt must be a list of token ids"),
        ([[1], [2]], r"not int64 of shape \[2, 1\]"),
        ([[1], [2, 3]], "must be a list of token ids"),
        ([1] * 256, "the prompt has 256 tokens, the context is 256: shorten it"),
        ([True], "not bool"),
    ],
    ids=str,
)
def test_wrong_prompts_are_refused(prompt: Any, message: str) -> None:
    with engine_of() as engine, pytest.raises(InputError, match=message) as caught:
        engine.submit(prompt, GREEDY)
    assert "\n" not in str(caught.value)


def test_a_cache_too_small_for_a_request_refuses_it() -> None:
    with engine_of(cache_blocks=6) as engine:
        message = "20 tokens of prompt and 9 to generate need 7 blocks of cache, there are 6: give the cache more memory, or ask for fewer"
        with pytest.raises(InputError, match=message):
            engine.submit(ids(20), replace(GREEDY, max_tokens=9))
        assert len(answer(engine.submit(ids(20), replace(GREEDY, max_tokens=5)))) == 5
        assert len(answer(engine.submit(ids(20), replace(GREEDY, max_tokens=None)))) == 5, "as many as there is room for"
        with pytest.raises(InputError, match="25 tokens of prompt and 1 to generate"):
            engine.submit(ids(25), replace(GREEDY, max_tokens=None))


def test_a_request_ends_with_the_context() -> None:
    with engine_of() as engine:
        assert len(answer(engine.submit(ids(250), replace(GREEDY, max_tokens=100)))) == 6
        assert len(answer(engine.submit(ids(255), replace(GREEDY, max_tokens=None)))) == 1


def test_a_cache_without_room_is_refused() -> None:
    with pytest.raises(InputError, match="room for no block: one takes 32 bytes"):
        GenerationEngine(NullStepModel(), GenerationOptions(cache_bytes=31))


def test_the_cache_is_sized_from_free_memory_where_nothing_is_said() -> None:
    with engine_of(NullStepModel(null_spec(max_length=64)), cache_blocks=None) as engine:
        assert engine.num_blocks == 64 * 16
    with engine_of(NullStepModel(null_spec(max_length=2**16)), cache_blocks=None, memory_fraction=1e-5) as engine:
        assert 0 < engine.num_blocks < 64 * 2**14


def test_a_full_queue_refuses() -> None:
    model = GatedModel()
    with engine_of(model, max_queue=2) as engine:
        requests = [engine.submit(ids(4), GREEDY) for _ in range(2)]
        with pytest.raises(QueueFullError, match="queue of 'null' is full"):
            engine.submit(ids(4), GREEDY)
        model.gate.set()
        assert all(len(answer(request)) == 8 for request in requests)


def test_drain_finishes_what_is_queued_and_refuses_more() -> None:
    with engine_of() as engine:
        requests = [engine.submit(ids(4, seed), GREEDY) for seed in range(12)]
        assert engine.drain(60)
        assert all(len(answer(request)) == 8 for request in requests)
        with pytest.raises(ClosedError):
            engine.submit(ids(4), GREEDY)


def test_close_ends_what_runs() -> None:
    model = GatedModel()
    engine = GenerationEngine(model, GenerationOptions(cache_blocks=96))
    request = engine.submit(ids(4), GREEDY)
    assert not engine.drain(0.01)
    closer = threading.Thread(target=engine.close)
    closer.start()
    with pytest.raises(ClosedError):
        request.result()
    model.gate.set()
    closer.join(60)
    assert not closer.is_alive()
    assert engine.drain(60), "a closed engine holds nothing"
    engine.check_integrity()


def test_a_fault_of_the_engine_ends_its_requests_and_the_next_ones_run() -> None:
    def broken(*_: Any) -> Any:
        raise AssertionError("a bug")

    with engine_of() as engine:
        engine._scheduler.commit = broken  # type: ignore[method-assign]
        with pytest.raises(IntegrityError, match="the engine failed: AssertionError"):
            engine.submit(ids(4), GREEDY).result()
        assert answer(engine.submit(ids(4), GREEDY)) == alone(ids(4), GREEDY, 8)


def test_limits_are_those_of_the_model() -> None:
    with engine_of(NullStepModel(sizes=StepSizes(max_tokens=9, max_requests=64, max_rows=5))) as engine:
        assert engine.limits == Limits(9, 4, 5)
        requests = [engine.submit(ids(20, seed), GREEDY) for seed in range(8)]
        assert [answer(request) for request in requests] == [alone(ids(20, seed), GREEDY, 8) for seed in range(8)]


def test_an_observer_sees_steps_and_requests() -> None:
    class Observer:
        def __init__(self) -> None:
            self.steps: list[StepReport] = []
            self.ended: list[GenerationReport] = []

        def on_step(self, report: StepReport) -> None:
            self.steps.append(report)

        def on_generation(self, report: GenerationReport) -> None:
            self.ended.append(report)

    observer = Observer()
    engine = GenerationEngine(NullStepModel(), GenerationOptions(cache_blocks=96), observer=observer)
    engine.submit(ids(9), GREEDY).result()
    request = engine.submit(ids(9), replace(GREEDY, n=2))
    request.result()
    stopped = engine.submit(ids(9), replace(GREEDY, max_tokens=200))
    assert stopped.stop(0)
    finish = stopped.result()[0].finish
    assert finish is not None and finish.finish_reason == "stop"
    assert engine.drain(60)
    engine.close()
    assert [(end.reason, end.num_prompt_tokens, end.num_generated_tokens) for end in observer.ended[:2]] == [
        ("length", 9, 8),
        ("length", 9, 16),
    ]
    assert [end.reason for end in observer.ended] == ["length", "length", "stop"]
    assert observer.ended[1].num_cached_tokens == 8
    for end in observer.ended[:2]:
        assert end.queue_s is not None
        assert end.ttft_s is not None
        assert 0 <= end.queue_s <= end.ttft_s <= end.e2e_s
    between = [seconds for step in observer.steps for seconds in step.inter_token_s]
    assert len(between) >= 7 + 2 * 7
    assert all(seconds >= 0 for seconds in between)
    assert observer.steps[0].num_tokens == 9
    assert all(0 <= step.run_s <= step.step_s for step in observer.steps)
