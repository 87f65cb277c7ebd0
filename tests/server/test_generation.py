"""/v1/completions and /v1/chat/completions through the openai client."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from llmos.runtime.engine.generate.null import NullStepModel, null_spec
from llmos.runtime.llm import LLMOS, Completion

from ..llm.conftest import CONFIG, TEMPLATE, _tokenizer  # noqa: TID252
from .harness import Answer, Server
from .language_model import FAILS_AT

PROMPT = "the quick brown"
USER: list[Any] = [{"role": "user", "content": "hello"}]
GREEDY: dict[str, Any] = {"model": "null", "temperature": 0, "max_tokens": 20}


def schema_format(schema: dict[str, Any], name: str = "answer", **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema, **more}}


@pytest.fixture
def client(served: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://{served.address}/v1", api_key=served.key, max_retries=0) as found:
        yield found


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return _tokenizer()


@pytest.fixture(scope="module")
def reference(tokenizer: Any) -> Iterator[LLMOS]:
    """The same model in this process."""
    assets = {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": CONFIG, "chat_template.jinja": TEMPLATE}
    with LLMOS.of(NullStepModel(null_spec(vocab_size=tokenizer.get_vocab_size(), max_length=512)), assets.get) as model:
        yield model


def post(server: Server, route: str, **fields: Any) -> Answer:
    body = {"model": "null", **fields}
    return server.request("POST", f"/v1/{route}", {key: value for key, value in body.items() if value is not None})


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["null", "encoder"]
    assert client.models.retrieve("null").id == "null"


def test_completions_in_every_form_of_prompt(client: openai.OpenAI, reference: LLMOS, tokenizer: Any) -> None:
    texts = [PROMPT, "Paris is", "日本"]
    ids = [tokenizer.encode(text).ids for text in texts]
    expected = [reference.generate_text(text, temperature=0, max_tokens=20) for text in texts]
    for prompt, wanted, counted in [(texts[0], expected[:1], ids[:1]), (texts, expected, ids), (ids[1], expected[1:2], ids[1:2])]:
        answer = client.completions.create(prompt=prompt, **GREEDY)
        assert [choice.text for choice in answer.choices] == wanted
        assert [choice.index for choice in answer.choices] == list(range(len(wanted)))
        assert {choice.finish_reason for choice in answer.choices} == {"length"}
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == sum(map(len, counted))
        assert answer.usage.completion_tokens == 20 * len(wanted)
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert [choice.text for choice in client.completions.create(prompt=ids, **GREEDY).choices] == expected
    assert answer.id.startswith("cmpl-") and answer.object == "text_completion" and answer.model == "null"
    default = client.completions.create(model="null", prompt=PROMPT, temperature=0).usage
    assert default is not None and default.completion_tokens == 16


def test_a_streamed_completion_is_the_whole_one(client: openai.OpenAI) -> None:
    prompts, sampled = [PROMPT, "Paris is"], {"model": "null", "max_tokens": 20, "n": 2, "seed": 5}
    whole = client.completions.create(prompt=prompts, **sampled)
    texts, reasons = [""] * 4, [""] * 4
    chunks = list(client.completions.create(prompt=prompts, stream=True, stream_options={"include_usage": True}, **sampled))
    for chunk in chunks[:-1]:
        assert chunk.usage is None
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        reasons[choice.index] = choice.finish_reason or ""
    assert texts == [choice.text for choice in whole.choices]
    assert len(set(texts)) == 4
    assert reasons == ["length"] * 4
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_chat(client: openai.OpenAI, reference: LLMOS) -> None:
    expected = reference.chat(USER, temperature=0, max_tokens=20)
    answer = client.chat.completions.create(messages=USER, **GREEDY)
    assert answer.object == "chat.completion"
    message = answer.choices[0].message
    assert (message.role, message.content, answer.choices[0].finish_reason) == ("assistant", expected, "length")
    chunks = list(client.chat.completions.create(messages=USER, stream=True, stream_options={"include_usage": True}, **GREEDY))
    assert chunks[0].object == "chat.completion.chunk"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:-1])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == expected
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage is not None and answer.usage is not None
    assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens == 20
    newer = client.chat.completions.create(model="null", messages=USER, temperature=0, max_completion_tokens=7)
    assert newer.usage is not None and newer.usage.completion_tokens == 7
    parts: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    assert client.chat.completions.create(messages=parts, **GREEDY).choices[0].message.content == expected


def test_chat_templates_get_what_they_are_given(client: openai.OpenAI, reference: LLMOS) -> None:
    given = {"add_generation_prompt": False}
    answer = client.chat.completions.create(messages=USER, extra_body={"chat_template_kwargs": given}, **GREEDY)
    assert answer.choices[0].message.content
    assert answer.usage is not None and answer.usage.prompt_tokens == len(reference.submit_chat(USER, max_tokens=1).prompt_ids)


def test_parameters_reach_the_sampler(client: openai.OpenAI, reference: LLMOS) -> None:
    (whole,) = reference.generate(PROMPT, temperature=0, max_tokens=100)
    stop = whole.text[20:23]
    answer = client.completions.create(model="null", prompt=PROMPT, temperature=0, max_tokens=100, stop=[stop])
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (whole.text[: whole.text.index(stop)], "stop")
    given = {"temperature": 1.3, "top_p": 0.9, "presence_penalty": 0.5, "frequency_penalty": -0.5, "seed": 11, "max_tokens": 30}
    more = {"top_k": 40, "min_p": 0.001, "repetition_penalty": 1.1, "min_tokens": 3}
    sampled = client.completions.create(model="null", prompt=PROMPT, extra_body=more, **given)
    assert sampled.choices[0].text == reference.generate_text(PROMPT, **given, **more)
    token = whole.token_ids[3]
    ended = client.completions.create(prompt=PROMPT, extra_body={"stop_token_ids": [token]}, **GREEDY)
    assert (ended.choices[0].finish_reason, ended.usage and ended.usage.completion_tokens) == ("stop", whole.token_ids.index(token) + 1)
    biased = client.completions.create(prompt=PROMPT, logit_bias={"65": 100}, **GREEDY)
    assert len(set(biased.choices[0].text)) == 1


def test_logprobs_of_completions(client: openai.OpenAI, reference: LLMOS, tokenizer: Any) -> None:
    (expected,) = reference.generate("日本 the quick", temperature=0, max_tokens=20, logprobs=3, prompt_logprobs=3)
    answer = client.completions.create(prompt="日本 the quick", logprobs=3, **GREEDY).choices[0]
    found = answer.logprobs
    assert found is not None and found.tokens and found.top_logprobs and found.text_offset
    assert found.token_logprobs == [event.logprob for event in expected.tokens]
    for number, event in enumerate(expected.tokens):
        named = found.top_logprobs[number]
        assert sorted(named.values(), reverse=True)[:3] == [logprob for _, logprob in event.top]
        assert named[found.tokens[number]] == event.logprob
        if not found.tokens[number].startswith("bytes:"):
            start = found.text_offset[number]
            assert answer.text[start : start + len(found.tokens[number])] == found.tokens[number]
    echoed = client.completions.create(prompt="日本 the quick", logprobs=3, echo=True, **GREEDY).choices[0]
    num_prompt = len(tokenizer.encode("日本 the quick").ids)
    assert echoed.text == "日本 the quick" + answer.text
    assert echoed.logprobs is not None and echoed.logprobs.token_logprobs is not None
    assert echoed.logprobs.token_logprobs[0] is None
    assert len(echoed.logprobs.token_logprobs) == num_prompt + 20
    assert echoed.logprobs.token_logprobs[num_prompt:] == found.token_logprobs
    pieces = list(client.completions.create(prompt="日本 the quick", logprobs=3, echo=True, stream=True, **GREEDY))
    assert "".join(piece.choices[0].text for piece in pieces) == echoed.text
    offsets = [offset for piece in pieces for offset in (piece.choices[0].logprobs and piece.choices[0].logprobs.text_offset) or []]
    assert offsets == echoed.logprobs.text_offset


def test_many_logprobs_are_the_same_as_few(client: openai.OpenAI) -> None:
    """They are written beside the event loop, choice by choice; the answer to a short prompt isn't."""
    options: dict[str, Any] = {
        "model": "null",
        "max_tokens": 3,
        "n": 4,
        "logprobs": 20,
        "echo": True,
        "seed": 3,
        "logit_bias": {str(FAILS_AT): -100},
    }
    for prompt in (list(range(1, 200)), [1]):
        whole = client.completions.create(prompt=prompt, **options).choices
        parts = [chunk.choices[0] for chunk in client.completions.create(prompt=prompt, stream=True, **options)]
        for index, choice in enumerate(whole):
            mine = [part.logprobs for part in parts if part.index == index and part.logprobs is not None]
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                assert [each for part in mine for each in getattr(part, name)] == getattr(choice.logprobs, name)
            assert len(choice.logprobs.tokens) == len(prompt) + 3
            assert all(len(top) in (20, 21) for top in choice.logprobs.top_logprobs[1:])


def test_logprobs_of_chats(client: openai.OpenAI, reference: LLMOS) -> None:
    with reference.submit_chat(USER, temperature=0, max_tokens=20, logprobs=2) as request:
        expected: Completion = request.result()[0]
    answer = client.chat.completions.create(messages=USER, logprobs=True, top_logprobs=2, **GREEDY).choices[0]
    assert answer.logprobs is not None and answer.logprobs.content is not None
    assert [each.logprob for each in answer.logprobs.content] == [event.logprob for event in expected.tokens]
    assert [[top.logprob for top in each.top_logprobs] for each in answer.logprobs.content] == [
        [logprob for _, logprob in event.top] for event in expected.tokens
    ]
    data = b"".join(bytes(each.bytes or []) for each in answer.logprobs.content)
    assert data.decode(errors="replace").replace("�", "") == expected.text.replace("�", "")
    streamed = client.chat.completions.create(messages=USER, logprobs=True, stream=True, **GREEDY)
    contents = [each for chunk in streamed if chunk.choices[0].logprobs for each in chunk.choices[0].logprobs.content or []]
    assert [each.logprob for each in contents] == [event.logprob for event in expected.tokens]
    assert all(each.top_logprobs == [] for each in contents)


def test_usage_says_what_was_cached(client: openai.OpenAI) -> None:
    prompt = list(range(200, 299))
    cached: list[int | None] = []
    for _ in range(2):
        usage = client.completions.create(prompt=prompt, **GREEDY).usage
        assert usage is not None and usage.prompt_tokens_details is not None
        cached.append(usage.prompt_tokens_details.cached_tokens)
    assert cached == [0, 96]


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        ({"temperature": -1}, "temperature: must be", "temperature"),
        ({"temperature": "hot"}, "temperature: must be", "temperature"),
        ({"top_p": 0}, "top_p: must be", "top_p"),
        ({"n": 0}, "n: must be", "n"),
        ({"n": 129}, "n: must be", "n"),
        ({"seed": 0.5}, "seed: must be", "seed"),
        ({"stop": 3}, "stop: must be", "stop"),
        ({"stop": ["a"] * 17}, "at most 16", "stop"),
        ({"logit_bias": [1]}, "must map", "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias: must", "logit_bias"),
        ({"logit_bias": {"400": 1}}, "out of range", "logit_bias"),
        ({"max_tokens": 0}, "max_tokens: must be", "max_tokens"),
        ({"stream": "yes"}, "true or false", "stream"),
        ({"stream_options": {"include_usage": True}}, "only for 'stream'", "stream_options"),
        ({"stream": True, "stream_options": {"usage": True}}, "include_usage", "stream_options"),
        ({"temprature": 1}, "no parameter 'temprature'", "temprature"),
        ({"response_format": {"type": "xml"}}, "'response_format' must be", "response_format"),
        ({"response_format": "text"}, "'response_format' must be", "response_format"),
        ({"response_format": {"type": "json_schema"}}, "'json_schema'", "response_format.json_schema"),
        ({"response_format": schema_format({"type": "object"}, name="")}, "'name'", "response_format.json_schema.name"),
        ({"response_format": schema_format({"type": "object"}, strict=1)}, "'strict'", "response_format.json_schema.strict"),
        (
            {"response_format": schema_format({"type": "foo"})},
            "grammar can't be used: Invalid type",
            "response_format",
        ),
        ({"response_format": schema_format({"not": {}}, strict=True)}, "Unimplemented keys", "response_format"),
        ({"guided_regex": "(a"}, "guided_regex: the grammar can't be used", "guided_regex"),
        ({"guided_choice": "a"}, "guided_choice: its choice must be", "guided_choice"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "one of", "structured_outputs"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "both given", "guided_choice"),
        ({"guided_regex": "a", "min_tokens": 3}, "min_tokens: can't be given", "min_tokens"),
        ({"model": 3}, "'model'", "model"),
        ({"model": "encoder"}, "no language model", "model"),
    ],
)
def test_what_is_wrong_on_both_routes(served: Server, fields: dict[str, Any], message: str, param: str | None) -> None:
    for route, prompt in (("completions", {"prompt": "a"}), ("chat/completions", {"messages": USER})):
        answer = post(served, route, **{**prompt, **fields})
        assert answer.status == 400, answer
        error = answer.json()["error"]
        assert message in error["message"]
        assert (error["type"], error["param"]) == ("invalid_request_error", param)


@pytest.mark.parametrize(
    ("route", "fields", "message", "param"),
    [
        ("completions", {}, "'prompt' must be", "prompt"),
        ("completions", {"prompt": ""}, "the prompt is empty", "prompt"),
        ("completions", {"prompt": ["a", 3]}, "'prompt' must be", "prompt"),
        ("completions", {"prompt": [True]}, "'prompt' must be", "prompt"),
        ("completions", {"prompt": [9999]}, "token id 9999", "prompt"),
        ("completions", {"prompt": [10**30]}, "prompt", "prompt"),
        ("completions", {"prompt": [1] * 512}, "the context is 512", "prompt"),
        ("completions", {"prompt": "a" * (4 << 20)}, "far more than the context", "prompt"),
        ("chat/completions", {"messages": [{"role": "user", "content": "a" * (4 << 20)}]}, "far more than the context", "messages"),
        ("completions", {"prompt": "\ud800"}, "surrogate", None),
        ("completions", {"prompt": ["a"] * 65, "n": 2}, "at most 128", "prompt"),
        ("completions", {"prompt": "a", "logprobs": True}, "logprobs: must be", "logprobs"),
        ("completions", {"prompt": "a", "logprobs": 21}, "logprobs: must be", "logprobs"),
        ("completions", {"prompt": "a", "best_of": 3}, "'best_of'", "best_of"),
        ("completions", {"prompt": "a", "suffix": "b"}, "'suffix'", "suffix"),
        ("chat/completions", {}, "'messages'", "messages"),
        ("chat/completions", {"messages": []}, "messages", "messages"),
        ("chat/completions", {"messages": [{"role": "user"}]}, "messages[0]", "messages"),
        ("chat/completions", {"messages": USER, "tools": [TOOL]}, "knows no tools", "tools"),
        ("chat/completions", {"messages": USER, "functions": [TOOL]}, "older form", "functions"),
        ("chat/completions", {"messages": USER, "tool_choice": "auto"}, "only for 'tools'", "tool_choice"),
        ("chat/completions", {"messages": USER, "top_logprobs": 2}, "'top_logprobs'", "top_logprobs"),
        ("chat/completions", {"messages": USER, "logprobs": True, "top_logprobs": 21}, "0 to 20", "top_logprobs"),
        ("chat/completions", {"messages": USER, "max_tokens": 3, "max_completion_tokens": 4}, "differ", "max_completion_tokens"),
        ("chat/completions", {"messages": USER, "chat_template_kwargs": 3}, "an object", "chat_template_kwargs"),
    ],
)
def test_what_is_wrong_on_one_route(served: Server, route: str, fields: dict[str, Any], message: str, param: str) -> None:
    answer = post(served, route, **fields)
    assert answer.status == 400, answer
    error = answer.json()["error"]
    assert message in error["message"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


def test_what_says_nothing_is_accepted(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        messages=USER, tools=[], response_format={"type": "text"}, user="me", metadata={"a": "b"}, logprobs=None, stop=None, **GREEDY
    )
    assert answer.choices[0].message.content


def test_other_routes_say_where_a_language_model_is(served: Server) -> None:
    assert served.get("/v2/models/null").json()["inputs"] == []
    assert served.get("/v2/models/null/ready").json() == {"name": "null", "ready": True}
    for path, body in (("/v1/embeddings", {"model": "null", "input": "a"}), ("/v2/models/null/infer", {"inputs": []})):
        answer = served.request("POST", path, body)
        assert answer.status == 400
        assert "/v1/chat/completions" in answer.body.decode()
    assert post(served, "completions", model="nothing", prompt="a").status == 404


def test_a_failing_step_is_a_500_in_either_form(served: Server, client: openai.OpenAI) -> None:
    answer = post(served, "completions", prompt=[FAILS_AT], max_tokens=4)
    assert (answer.status, answer.json()["error"]["type"]) == (500, "server_error")
    with pytest.raises(openai.InternalServerError):
        client.completions.create(model="null", prompt=[5, FAILS_AT], stream=True)
    with pytest.raises(openai.InternalServerError):
        client.completions.create(model="null", prompt=[[5], [FAILS_AT]])
    with pytest.raises(openai.APIError, match="fails"):
        list(client.completions.create(prompt=PROMPT, stream=True, logit_bias={str(FAILS_AT): 100}, **GREEDY))


def test_16_clients_at_once_get_what_each_gets_alone(client: openai.OpenAI, reference: LLMOS) -> None:
    prompts = [PROMPT[: 3 + number] for number in range(8)]
    expected = [reference.generate_text(prompt, temperature=0, max_tokens=20) for prompt in prompts]

    def call(number: int) -> bool:
        prompt = prompts[number % 8]
        if number % 2:
            return client.completions.create(prompt=prompt, **GREEDY).choices[0].text == expected[number % 8]
        stream = client.completions.create(prompt=prompt, stream=True, **GREEDY)
        return "".join(chunk.choices[0].text for chunk in stream) == expected[number % 8]

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(call, range(48)))
