"""Perplexity of made-up steps: what is counted, and what a step is given."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llmos.runtime.artifact.fields import Fields
from llmos.runtime.artifact.perplexity import Perplexity, StepShape
from llmos.runtime.artifact.recorded import RecordedArray
from llmos.runtime.errors import ArtifactError

SHAPE = StepShape(16, 20, [((2, 384), "bfloat16"), ((2, 416), "int8")])


def test_a_model_that_knows_nothing_has_the_size_of_its_vocabulary() -> None:
    calls = []

    def step(inputs: list[np.ndarray]) -> np.ndarray:
        calls.append(inputs)
        return np.full((len(inputs[0]), 7), 3.0, np.float32)

    assert SHAPE.perplexity(step, np.arange(41) % 7) == pytest.approx(7)
    assert [len(inputs[0]) for inputs in calls] == [20, 20]  # a window of one token counts nothing
    tokens, positions, slots, requests, tables, rows, *caches = calls[1]
    assert tokens.tolist() == [each % 7 for each in range(20, 40)]
    assert positions.tolist() == slots.tolist() == rows.tolist() == list(range(20))
    assert requests.tolist() == [0] * 20 and tables.tolist() == [[0, 1]]
    assert [(cache.shape, cache.dtype) for cache in caches] == [((2, 2, 384), np.uint16), ((2, 2, 416), np.int8)]


def test_a_row_counts_for_the_token_behind_it() -> None:
    tokens = np.array([1, 2, 0], np.int32)

    def step(_: list[np.ndarray]) -> np.ndarray:
        return np.log(np.array([[0.1, 0.1, 0.8], [0.4, 0.3, 0.3], [0, 1, 0]], np.float32) + 1e-30)

    assert SHAPE.perplexity(step, tokens) == pytest.approx(math.exp(-(math.log(0.8) + math.log(0.4)) / 2))


def test_the_part_of_a_report() -> None:
    made = Perplexity(RecordedArray.of("tokens", "int32", np.arange(5, dtype=np.int32)), 12.5, {"x86-64-v3": 12.75})
    assert Perplexity.parse(Fields("perplexity", made.to_json())) == made
    assert made.summary() == "perplexity 12.75 on 5 tokens (12.5 for the reference)"
    wrong = Perplexity(RecordedArray.of("tokens", "int64", np.arange(5)), 12.5, {})
    with pytest.raises(ArtifactError, match=r"perplexity\.tokens: expected int32"):
        Perplexity.parse(Fields("perplexity", wrong.to_json()))
