"""Structured outputs through the openai client: parsed objects, streams, and the same bits as in this process."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

from llmos.runtime.engine.generate.null import NullStepModel, null_spec
from llmos.runtime.llm import LLMOS

from ..llm.conftest import CONFIG, TEMPLATE, _tokenizer  # noqa: TID252
from .harness import Server
from .language_model import BEHIND, NEVER, SLOW

USER: list[Any] = [{"role": "user", "content": "hello"}]


class Pet(BaseModel):
    kind: Literal["cat", "dog"]
    age: int = Field(ge=0, le=30)


class Person(BaseModel):
    name: str = Field(max_length=8)
    pets: list[Pet] = Field(max_length=2)


@pytest.fixture
def client(served: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://{served.address}/v1", api_key=served.key, max_retries=0) as found:
        yield found


@pytest.fixture(scope="module")
def reference() -> Iterator[LLMOS]:
    """The same model in this process."""
    tokenizer = _tokenizer()
    assets = {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": CONFIG, "chat_template.jinja": TEMPLATE}
    with LLMOS.of(NullStepModel(null_spec(vocab_size=tokenizer.get_vocab_size(), max_length=512)), assets.get) as model:
        yield model


def test_parsed_answers_are_objects(client: openai.OpenAI) -> None:
    found = [
        client.chat.completions.parse(model="null", messages=USER, response_format=Person, seed=seed).choices[0].message.parsed
        for seed in range(4)
    ]
    assert all(isinstance(person, Person) for person in found)
    assert len({str(person) for person in found}) == 4


def test_a_stream_is_parsed_at_its_end(client: openai.OpenAI) -> None:
    whole = client.chat.completions.parse(model="null", messages=USER, response_format=Person, seed=1).choices[0].message
    with client.chat.completions.stream(model="null", messages=USER, response_format=Person, seed=1) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == whole.parsed
    assert "".join(event.delta for event in events if event.type == "content.delta") == whole.content


def test_every_format_on_both_routes(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    number = {"name": "b", "schema": {"type": "integer", "minimum": 0, "maximum": 9, "not": {"const": 3}}}
    common: dict[str, Any] = {"model": "null", "max_tokens": 200, "seed": 4}
    for fields, wanted in [
        ({"response_format": form}, schema),
        ({"response_format": {"type": "json_schema", "json_schema": number}}, {"type": "integer"}),
        ({"structured_outputs": {"json": schema}}, schema),
        ({"guided_json": json.dumps(schema)}, schema),
        ({"guided_choice": ["1", "22"]}, {"enum": [1, 22]}),
        ({"structured_outputs": {"choice": ["333", "444"]}}, {"enum": [333, 444]}),
        ({"guided_regex": "[1-3]{4}"}, {"type": "integer", "minimum": 1111, "maximum": 3333}),
        ({"guided_grammar": 'start: "[" /[1-9]/ "]"'}, {"type": "array"}),
        ({"response_format": {"type": "json_object"}, "logit_bias": {"92": 40}}, {"type": "object"}),
    ]:
        chat = client.chat.completions.create(messages=USER, extra_body=fields, **common).choices[0]
        text = client.completions.create(prompt="hello", extra_body=fields, **common).choices[0]
        for found, reason in ((chat.message.content, chat.finish_reason), (text.text, text.finish_reason)):
            jsonschema.validate(json.loads(found or ""), wanted)
            assert reason == "stop"
    plain = client.chat.completions.create(messages=USER, response_format={"type": "text"}, **common)
    assert plain == plain.model_copy(update={"choices": client.chat.completions.create(messages=USER, **common).choices})


def test_guided_and_unguided_clients_at_once_get_what_each_gets_alone(client: openai.OpenAI, reference: LLMOS) -> None:
    forms: list[Any] = [None, {"regex": "[a-d]{2,20}"}, {"choice": ["yes", "no"]}, {"json": Pet.model_json_schema()}]
    params = [{"seed": number, "max_tokens": 40, "n": 1 + number % 2} for number in range(8)]
    expected = [
        [each.text for each in reference.generate("hello", structured_outputs=forms[number % 4], **params[number])] for number in range(8)
    ]

    def call(number: int) -> list[str]:
        form = forms[number % 4]
        extra = {} if form is None else {"structured_outputs": form}
        answer = client.completions.create(model="null", prompt="hello", extra_body=extra, **params[number])  # type: ignore[call-overload]
        return [choice.text for choice in answer.choices]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(call, list(range(8)) * 3)) == expected * 3
    assert all(re.fullmatch("[a-d]{2,20}", text) for text in expected[1] + expected[5])


def test_a_grammar_that_takes_long_holds_up_nobody(served: Server, client: openai.OpenAI) -> None:
    wide = {"type": "object", "properties": {f"k{number}": {"type": "integer"} for number in range(1000)}}
    body = {"model": "null", "prompt": "a", "structured_outputs": {"json": wide}}
    with ThreadPoolExecutor(4) as pool:
        hard = [pool.submit(served.request, "POST", "/v1/completions", body) for _ in range(4)]
        count = 0
        while not all(each.done() for each in hard):
            assert len(client.completions.create(model="null", prompt="a", max_tokens=3, temperature=0).choices[0].text) > 0
            assert client.chat.completions.create(model="null", messages=USER, max_tokens=3, temperature=0).choices[0].message.content
            count += 1
        assert count > 3
        assert {each.result().status for each in hard} == {400}


def test_what_leaves_no_token_is_an_error_of_the_request_alone(served: Server, client: openai.OpenAI) -> None:
    """The grammar asks for the one token that the model never gives there, or every token is one that ends the text."""
    none: dict[str, Any] = {"guided_grammar": f"start: <[{NEVER}]>"}
    cases: list[tuple[dict[str, Any], str]] = [
        (none, "can give none of the tokens"),
        ({**none, "logit_bias": {str(NEVER): 100}, "repetition_penalty": 0.01}, "can give none"),
        ({**none, "temperature": 0, "logprobs": 5, "echo": True}, "can give none"),
        ({"min_tokens": 1, "stop_token_ids": list(range(330))}, "min_tokens"),
        ({"min_tokens": 1, "stop_token_ids": [each for each in range(330) if each != NEVER]}, "min_tokens"),
    ]
    with ThreadPoolExecutor(4) as pool:
        others = [
            pool.submit(
                client.completions.create, model="null", prompt="hello", seed=1, max_tokens=60, extra_body={"guided_regex": "[a-d]{60}"}
            )
            for _ in range(3)
        ]
        for fields, message in cases:
            for n in (1, 3):
                with pytest.raises(openai.BadRequestError, match=message):
                    client.completions.create(model="null", prompt=[BEHIND], max_tokens=3, n=n, extra_body=fields)
        assert len({each.result().choices[0].text for each in others}) == 1
    text = client.completions.create(model="null", prompt=[BEHIND], max_tokens=1, echo=True, logprobs=0).choices[0].logprobs.tokens[0]
    late = {"guided_grammar": f"start: {json.dumps(text)} <[{NEVER}]>"}
    stream = client.completions.create(model="null", prompt="a", stream=True, logit_bias={str(BEHIND): 100}, extra_body=late)
    with stream, pytest.raises(openai.APIError, match="can give none"):
        list(stream)
    assert client.completions.create(model="null", prompt=[BEHIND], max_tokens=3).choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    "fields",
    [
        {"logit_bias": {str(token): -100 for token in range(330)}, "temperature": 0},
        {"repetition_penalty": 100, "presence_penalty": 2, "frequency_penalty": 2},
        {"repetition_penalty": 0.01, "temperature": 1e-320, "top_p": 1e-300, "min_p": 1, "typical_p": 1e-300, "top_k": 1},
        {"temperature": 1e308, "top_k": 1},
    ],
)
def test_a_form_holds_whatever_else_is_asked_for(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    extra = {"guided_regex": "[a-d]{2,20}", **fields}
    assert re.fullmatch("[a-d]{2,20}", client.completions.create(model="null", prompt="hello", extra_body=extra).choices[0].text)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("form", [{"guided_regex": "a{0}"}, {"guided_grammar": 'start: ""'}])
def test_an_answer_that_is_complete_at_once_still_echoes_its_prompt(client: openai.OpenAI, form: dict[str, Any], stream: bool) -> None:
    options: dict[str, Any] = {"model": "null", "prompt": "hello world", "logprobs": 2, "echo": True, "n": 2, "seed": 3, "stream": stream}
    answer = client.completions.create(**options, extra_body=form)
    choices = [choice for event in answer for choice in event.choices] if stream else answer.choices
    for index in range(2):
        mine = [choice for choice in choices if choice.index == index]
        assert "".join(choice.text for choice in mine) == "hello world"
        assert mine[-1].finish_reason == "stop"
        logprobs = mine[0].logprobs
        assert "".join(logprobs.tokens) == "hello world"
        assert logprobs.token_logprobs[0] is None
        assert len(logprobs.token_logprobs) == len(logprobs.tokens) == len(logprobs.top_logprobs)
    for each in (0, -1):
        with pytest.raises(openai.BadRequestError, match="max_tokens: must be an integer from 1"):
            client.completions.create(**options, max_tokens=each, extra_body=form)


def test_a_prompt_with_a_token_that_the_model_never_gives_has_its_logprobs(client: openai.OpenAI) -> None:
    found = client.completions.create(model="null", prompt=[BEHIND, NEVER, 7], logprobs=1, echo=True, max_tokens=1).choices[0].logprobs
    assert found.token_logprobs[1] == -9999
    assert all(each > -99 for each in found.token_logprobs[2:])


def test_a_client_that_leaves_ends_its_guided_generation(served: Server, client: openai.OpenAI) -> None:
    extra = {"guided_regex": "a+"}
    with client.completions.create(model="null", prompt="a", max_tokens=400, stream=True, logit_bias=SLOW, extra_body=extra) as stream:
        assert next(iter(stream)).choices[0].text == "a"
    found = client.completions.create(model="null", prompt="a", max_tokens=4, extra_body=extra)
    assert found.choices[0].text.strip("a") == ""
