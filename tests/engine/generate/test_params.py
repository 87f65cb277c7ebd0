"""Parameters of a request: what is refused, with one line that says what they must be."""

from __future__ import annotations

from typing import Any

import pytest

from llmos.runtime.engine.generate import SamplingParams
from llmos.runtime.errors import InputError


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"temperature": float("nan")}, "temperature: must be a number at least 0, not nan"),
        ({"temperature": -0.1}, "temperature: must be a number at least 0, not -0.1"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": "hot"}, "temperature: must be a number at least 0, not 'hot'"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p: must be a number greater than 0 and at most 1, not 0"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": -1}, "min_p: must be a number at least 0 and at most 1, not -1"),
        ({"typical_p": 0.0}, "typical_p"),
        ({"top_k": -1}, "top_k: must be an integer from 0"),
        ({"top_k": 1.0}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty: must be a number at least 0.01 and at most 100, not 0"),
        ({"presence_penalty": 3}, "presence_penalty: must be a number at least -2 and at most 2, not 3"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty"),
        ({"max_tokens": 0}, "max_tokens: must be an integer from 1"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"min_tokens": 5, "max_tokens": 4}, r"min_tokens: must be at most max_tokens \(4\), not 5"),
        ({"seed": 2**64}, "seed"),
        ({"n": 0}, "n: must be an integer from 1 to 128, not 0"),
        ({"logprobs": 21}, "logprobs: must be an integer from 0 to 20, not 21"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"stop": 5}, "stop: must be a string or a list of strings, not 5"),
        ({"stop": {"a": 1}}, "stop: must be a string or a list of strings"),
        ({"stop": ["a", 5]}, "stop: must be strings of one character or more, not 5"),
        ({"stop": ""}, "stop: must be strings of one character or more, not ''"),
        ({"stop": b"end"}, "stop"),
        ({"stop_token_ids": "12"}, "stop_token_ids: must be a list of token ids, not '12'"),
        ({"stop_token_ids": [1.5]}, "stop_token_ids: must hold token ids, not 1.5"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": 7}, "stop_token_ids"),
        ({"logit_bias": [1, 2]}, "logit_bias: must map token ids to numbers"),
        ({"logit_bias": {"a": 1}}, "logit_bias: must hold token ids, not 'a'"),
        ({"logit_bias": {1: 200}}, "logit_bias: must be a number at least -100 and at most 100, not 200"),
        ({"ignore_eos": 1}, "ignore_eos: must be true or false, not 1"),
        ({"priority": 1.5}, "priority"),
    ],
    ids=str,
)
def test_wrong_parameters_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        SamplingParams(**params)
    assert "\n" not in str(caught.value)


def test_parameters_are_stored_in_one_form() -> None:
    params = SamplingParams(temperature=1, stop="end", stop_token_ids=[3, 4], logit_bias={9: 1, 2: -3.5}, seed=-1)
    assert params.stop == ("end",)
    assert params.stop_token_ids == (3, 4)
    assert list(params.logit_bias.items()) == [(2, -3.5), (9, 1.0)]
    assert params == SamplingParams(stop=["end"], stop_token_ids=(3, 4), logit_bias={2: -3.5, 9: 1.0}, seed=-1)


def test_sequences_of_a_request_have_different_seeds() -> None:
    params = SamplingParams(n=100, seed=2**64 - 1)
    seeds = {params.row_sampling(params.seed or 0, index).seed for index in range(100)}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**64 for seed in seeds)


@pytest.mark.parametrize("params", [{"stop_token_ids": [50]}, {"logit_bias": {50: 1.0}}])
def test_token_ids_must_be_in_the_vocabulary(params: dict[str, Any]) -> None:
    SamplingParams(**params).check_vocabulary(51)
    with pytest.raises(InputError, match="token id 50 is out of range, the model has ids 0 to 49"):
        SamplingParams(**params).check_vocabulary(50)
