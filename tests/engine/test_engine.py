"""The engine on real threads: same answers as alone, bounded queue, deadlines, cancellation, drain, and no leaks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llmos.runtime.artifact.manifest import RowSpec
from llmos.runtime.engine import CancelledError, ClosedError, DeadlineError, Engine, EngineOptions, Limits, QueueFullError
from llmos.runtime.errors import ExecutionError, InputError

from .numpy_models import VOCABULARY, Affine, Encoder, NumpyModel

Array = np.ndarray[Any, Any]
TOLERANCE = 1e-6  # between a text alone and in a padded batch; compiled kernels give equal bits


@contextmanager
def engine_of(model: NumpyModel, **options: Any) -> Iterator[Engine]:
    engine = Engine(model, EngineOptions(**options))
    try:
        yield engine
        wait_for(engine.is_idle)
        engine.check_integrity()
    finally:
        if model.gate is not None:
            model.gate.set()
        engine.close()


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "timed out waiting"
        time.sleep(0.001)


def text(length: int, seed: int = 0) -> dict[str, Array]:
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, (1, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def numbers(rows: int, start: float = 0.0) -> dict[str, Array]:
    return {"x": np.arange(rows * 3, dtype=np.float32).reshape(rows, 3) + np.float32(start)}


def test_one_request_runs_at_once() -> None:
    with engine_of(Affine()) as engine:
        ((y, total),) = engine.submit([numbers(2)]).result(60)
    np.testing.assert_array_equal(y, [[1, 3, 5], [7, 9, 11]])
    np.testing.assert_array_equal(total, [3, 12])


def test_requests_that_arrive_while_a_batch_runs_share_the_next_one() -> None:
    model = Affine(gate=threading.Event())
    with engine_of(model) as engine:
        submitted = [engine.submit([numbers(1, 0)])]
        wait_for(lambda: len(model.batches) == 1)
        submitted += [engine.submit([numbers(rows, rows)]) for rows in (1, 2, 3)]
        assert (engine.num_running, engine.num_waiting) == (1, 3)
        assert model.gate is not None
        model.gate.set()
        results = [request.result(60)[0] for request in submitted]
    assert model.batches == [(1, 3), (6, 3)]
    for rows, result in zip((1, 2, 3), results[1:], strict=True):
        np.testing.assert_array_equal(result[0], 2 * numbers(rows, rows)["x"] + 1)


@pytest.mark.parametrize("rows", [None, RowSpec(reason="output 'y': softmax reduces over batch")])
def test_requests_are_not_joined_without_a_proof_that_their_rows_are_independent(rows: RowSpec | None) -> None:
    model = Affine(gate=threading.Event())
    model.signature = replace(model.signature, rows=rows)
    with engine_of(model) as engine:
        submitted = [engine.submit([numbers(2, start)]) for start in range(4)]
        assert model.gate is not None
        model.gate.set()
        answers = [request.result(5)[0][0] for request in submitted]
    assert model.batches == [(2, 3)] * 4
    for start, answer in enumerate(answers):
        np.testing.assert_array_equal(answer, 2 * numbers(2, start)["x"] + 1)


def test_padded_batches_give_what_each_text_gives_alone() -> None:
    model = Encoder(gate=threading.Event())
    texts = [text(length, length) for length in (3, 17, 5, 64, 16, 4, 1, 33)]
    with engine_of(model, limits=Limits(max_padding=100.0)) as engine:
        submitted = [engine.submit([one]) for one in texts]
        many = engine.submit(texts)
        assert model.gate is not None
        model.gate.set()
        results = [request.result(60)[0][0] for request in submitted]
        together = [outputs[0] for outputs in many.result(60)]
    assert max(shape[0] for shape in model.batches) > 1
    for one, result, again in zip(texts, results, together, strict=True):
        alone = model.compute([one["input_ids"], one["attention_mask"]])[0]
        np.testing.assert_allclose(result, alone, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(again, alone, rtol=0, atol=TOLERANCE)


def test_many_clients_at_once_get_their_own_answers() -> None:
    model = Encoder(delay_s=0.001)
    with engine_of(model) as engine, ThreadPoolExecutor(32) as pool:

        def client(number: int) -> float:
            one = text(1 + number % 60, number)
            result = engine.submit([one]).result(60)[0][0]
            return float(np.abs(result - model.compute([one["input_ids"], one["attention_mask"]])[0]).max())

        assert max(pool.map(client, range(200))) <= TOLERANCE
    assert len(model.batches) < 200


def test_a_full_queue_refuses_with_a_time_to_wait() -> None:
    model = Affine(gate=threading.Event())
    with engine_of(model, max_queue=2) as engine:
        submitted = [engine.submit([numbers(1)]) for _ in range(2)]
        with pytest.raises(QueueFullError, match="queue of 'model' is full") as caught:
            engine.submit([numbers(1)])
        assert caught.value.retry_after_s >= 1
        assert model.gate is not None
        model.gate.set()
        assert all(request.result(60) for request in submitted)
        engine.submit([numbers(1)]).result(60)


def test_a_waiting_request_times_out_without_running() -> None:
    model = Affine(gate=threading.Event())
    with engine_of(model) as engine:
        first = engine.submit([numbers(1)])
        wait_for(lambda: len(model.batches) == 1)
        late = engine.submit([numbers(1)], timeout_s=0.01)
        time.sleep(0.03)
        assert model.gate is not None
        model.gate.set()
        first.result(60)
        with pytest.raises(DeadlineError):
            late.result(60)
    assert len(model.batches) == 1


def test_cancelled_requests_never_run_and_leave_no_trace() -> None:
    model = Affine(gate=threading.Event())
    with engine_of(model) as engine:
        running = engine.submit([numbers(1)])
        wait_for(lambda: len(model.batches) == 1)
        waiting = engine.submit([numbers(1), numbers(1)])
        assert engine.cancel(waiting)
        assert not engine.cancel(waiting)
        assert engine.cancel(running), "a running request can be given up as well"
        for request in (running, waiting):
            with pytest.raises(CancelledError):
                request.result(1)
        assert model.gate is not None
        model.gate.set()
    assert len(model.batches) == 1


def test_one_bad_request_does_not_fail_its_neighbours() -> None:
    model = Encoder(gate=threading.Event())
    bad = {"input_ids": np.full((1, 4), VOCABULARY), "attention_mask": np.ones((1, 4), np.int64)}
    with engine_of(model) as engine:
        engine.submit([text(4)])
        wait_for(lambda: len(model.batches) == 1)
        good, failing = engine.submit([text(4, 1)]), engine.submit([bad])
        assert model.gate is not None
        model.gate.set()
        assert good.result(60)[0][0].shape == (1, 16)
        with pytest.raises(ExecutionError, match="out of range"):
            failing.result(60)
    assert model.batches == [(1, 4), (2, 4), (1, 4), (1, 4)]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "'x' is missing"),
        ({"z": np.zeros((1, 3), np.float32)}, "unknown input 'z'"),
        ({"x": np.zeros((1, 3), np.float64)}, "dtype float64, the model takes float32"),
        ({"x": np.zeros(3, np.float32)}, r"shape \[3\], the model takes \[batch, 3\]"),
        ({"x": np.zeros((1, 4), np.float32)}, r"shape \[1, 4\]"),
        ({"x": np.zeros((0, 3), np.float32)}, "batch = 0, the model takes 1 to 1024"),
    ],
)
def test_wrong_inputs_are_refused_before_they_queue(inputs: dict[str, Array], message: str) -> None:
    with engine_of(Affine()) as engine, pytest.raises(InputError, match=message):
        engine.submit([inputs])


def test_inputs_must_agree_on_symbols() -> None:
    with engine_of(Encoder()) as engine, pytest.raises(InputError, match="tokens = 3, but another input has tokens = 4"):
        engine.submit([{**text(4), "attention_mask": np.ones((1, 3), np.int64)}])


def test_drain_finishes_what_is_queued_and_refuses_more() -> None:
    model = Affine(delay_s=0.02)
    with engine_of(model, limits=Limits(max_rows=1)) as engine:
        submitted = [engine.submit([numbers(1)]) for _ in range(4)]
        assert engine.drain(60)
        assert all(request.future.done() for request in submitted)
        with pytest.raises(ClosedError):
            engine.submit([numbers(1)])


def test_drain_says_when_time_runs_out_and_close_ends_the_rest() -> None:
    model = Affine(gate=threading.Event())
    with engine_of(model) as engine:
        request = engine.submit([numbers(1)])
        assert not engine.drain(0.02)
        closer = threading.Thread(target=engine.close)
        closer.start()
        with pytest.raises(ClosedError):
            request.result(60)
        assert model.gate is not None
        model.gate.set()
        closer.join(60)
        assert not closer.is_alive()


def test_a_delay_gathers_requests() -> None:
    model = Affine()
    with engine_of(model, limits=Limits(max_rows=4, max_delay_s=60.0)) as engine:
        submitted = [engine.submit([numbers(1)]) for _ in range(4)]
        for request in submitted:
            request.result(60)
    assert model.batches == [(4, 3)]


def test_no_row_limit_above_the_models_own_range() -> None:
    model = Affine(gate=threading.Event())
    model.signature.symbols["batch"] = (1, 2)  # type: ignore[index]
    try:
        with engine_of(model, limits=Limits(max_rows=8)) as engine:
            submitted = [engine.submit([numbers(1)]) for _ in range(6)]
            assert model.gate is not None
            model.gate.set()
            for request in submitted:
                request.result(60)
    finally:
        model.signature.symbols["batch"] = (1, 1024)  # type: ignore[index]
    assert max(shape[0] for shape in model.batches) == 2


def test_a_large_call_runs_in_parts_and_gives_what_it_gives_whole() -> None:
    model = Affine()
    with engine_of(model, limits=Limits(max_rows=8)) as engine:
        found = engine.submit([numbers(50), numbers(3), numbers(8, 5.0)]).result(60)
    assert max(rows for rows, _ in model.batches) <= 8
    for outputs, inputs in zip(found, (numbers(50), numbers(3), numbers(8, 5.0)), strict=True):
        for got, expected in zip(outputs, Affine().compute([inputs["x"]]), strict=True):
            np.testing.assert_array_equal(got, expected)


def test_a_small_request_does_not_wait_for_all_of_a_large_one() -> None:
    model = Affine(delay_s=0.01)
    with engine_of(model, limits=Limits(max_rows=1)) as engine:
        engine.submit([numbers(4)]).result(60)  # now its pace is known
        large = engine.submit([numbers(1) for _ in range(100)])
        wait_for(lambda: large.pending_items < 90)
        engine.submit([numbers(1)]).result(60)
        assert large.pending_items > 0
        assert len(large.result(60)) == 100


def test_a_large_call_ends_at_its_deadline_between_parts() -> None:
    model = Affine(delay_s=0.02)
    with engine_of(model, limits=Limits(max_rows=1)) as engine:
        with pytest.raises(DeadlineError):
            engine.submit([numbers(200)], timeout_s=0.1).result(60)
        wait_for(engine.is_idle)
    assert len(model.batches) < 50


def test_the_time_to_wait_is_that_of_the_work_that_waits() -> None:
    model = Affine(delay_s=0.05)
    with engine_of(model, limits=Limits(max_rows=1), max_queue=1) as engine:
        engine.submit([numbers(4)]).result(60)
        waiting = engine.submit([numbers(100)])
        with pytest.raises(QueueFullError) as caught:
            engine.submit([numbers(1)])
        assert 2.5 < caught.value.retry_after_s < 50
        engine.cancel(waiting)


def test_what_could_not_be_answered_in_time_is_refused_at_once() -> None:
    model = Affine(delay_s=0.02)
    with engine_of(model, limits=Limits(max_rows=1)) as engine:
        engine.submit([numbers(4)]).result(60)
        waiting = [engine.submit([numbers(1)]) for _ in range(40)]
        with pytest.raises(QueueFullError, match="too busy to answer within"):
            engine.submit([numbers(1)], timeout_s=0.1)
        engine.submit([numbers(1)], timeout_s=60).result(60)
        assert all(request.result(60) for request in waiting)


def test_what_would_wait_too_long_is_refused_and_an_idle_model_takes_anything() -> None:
    model = Affine(delay_s=0.02)
    with engine_of(model, limits=Limits(max_rows=1), max_wait_s=0.2) as engine:
        engine.submit([numbers(4)]).result(60)
        waiting, refused = [], 0
        for _ in range(60):
            try:
                engine.require_room()
                waiting.append(engine.submit([numbers(1)]))
            except QueueFullError:
                refused += 1
        assert 3 <= len(waiting) <= 25
        assert refused + len(waiting) == 60
        assert all(request.result(60) for request in waiting)
        wait_for(engine.is_idle)
        engine.submit([numbers(40)]).result(60)  # longer than that by itself


def test_room_is_what_submit_asks_for() -> None:
    model = Affine(gate=threading.Event())
    with engine_of(model, max_queue=1) as engine:
        engine.require_room()
        waiting = engine.submit([numbers(1)])
        with pytest.raises(QueueFullError):
            engine.require_room()
        model.gate.set()
        assert waiting.result(60)
        wait_for(engine.is_idle)
        engine.require_room()
        engine.stop_accepting()
        with pytest.raises(ClosedError):
            engine.require_room()


def test_keys_get_their_shares_of_a_busy_model() -> None:
    model = Affine(gate=threading.Event())
    with engine_of(model, limits=Limits(max_rows=1)) as engine:
        held = engine.submit([numbers(1)])
        order: list[str] = []

        def submit(who: str, weight: float) -> list[Any]:
            requests = [engine.submit([numbers(1)], principal=who, weight=weight) for _ in range(30)]
            for request in requests:
                request.future.add_done_callback(lambda _: order.append(who))
            return requests

        requests = [*submit("first", 1), *submit("double", 2)]
        assert model.gate is not None
        model.gate.set()
        for request in (held, *requests):
            request.result(60)
        wait_for(lambda: len(order) == 60)
    assert 18 <= order[:30].count("double") <= 22, order
