"""Calls of tools through the openai client: forced and chosen, whole and streamed, and conversations that hold them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from pydantic import BaseModel

from .harness import Server, language_server
from .language_model import FAILS_AT

TEMPLATE = """\
{%- if tools %}You may call: {% for tool in tools %}{{ tool.function.name }} {{ tool.function.parameters | tojson }}
{% endfor %}as {{ SIGN }}{% endif -%}
{%- for m in messages %}{{ m.role }}: {{ m.content or '' }}
{%- for call in m.tool_calls or [] %}{{ call.function.name }}({{ call.function.arguments.city }}){% endfor %}
{% endfor -%}
assistant: """
SIGNS = {"hermes": "<tool_call>", "mistral": "[TOOL_CALLS]", "llama3": '"parameters"'}
USER: list[Any] = [{"role": "user", "content": "hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Bonn"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS: list[Any] = [WEATHER, NOW]
CALLS = {
    "hermes": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>\n<tool_call>{"name": "now"}</tool_call>',
    "mistral": '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Rome"}}, {"name": "now", "arguments": {}}]',
    "llama3": '{"name": "get_weather", "parameters": {"city": "Rome"}}; {"name": "now", "parameters": {}}',
}


def template(form: str) -> str:
    return TEMPLATE.replace("{{ SIGN }}", "{{ '" + SIGNS[form] + "' }}")


@pytest.fixture(
    scope="module", params=["hermes", pytest.param("mistral", marks=pytest.mark.slow), pytest.param("llama3", marks=pytest.mark.slow)]
)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def tool_server(form: str) -> Iterator[Server]:
    with language_server(template=template(form)) as running:
        yield running


@pytest.fixture
def client(tool_server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://{tool_server.address}/v1", api_key="none", max_retries=0) as found:
        yield found


def check_call(call: Any) -> None:
    assert call.type == "function"
    arguments = json.loads(call.function.arguments)
    if call.function.name == "now":
        assert arguments == {}
    else:
        assert call.function.name == "get_weather"
        assert arguments["city"] in ("Rome", "Bonn") and 1 <= arguments["days"] <= 9


def accumulated(client: openai.OpenAI, **fields: Any) -> Any:
    """The message that the client makes of a stream."""
    state = ChatCompletionStreamState()
    for chunk in client.chat.completions.create(stream=True, **fields):
        state.handle_chunk(chunk)
    return state.current_completion_snapshot.choices[0]


def without_ids(choice: Any) -> Any:
    calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or []]
    return choice.message.content or "", calls, choice.finish_reason


def test_calls_that_must_come(client: openai.OpenAI, form: str) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice, parallel in (("required", True), ("required", False), (named, True)):
        fields: dict[str, Any] = {"model": "null", "messages": USER, "tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": parallel}
        fields["logit_bias"] = {"0": 4}  # of the end token
        for seed in range(2):
            answer = client.chat.completions.create(seed=seed, **fields).choices[0]
            assert (answer.finish_reason, answer.message.content) == ("tool_calls", None)
            calls = answer.message.tool_calls
            assert calls and (parallel or len(calls) == 1)
            assert len({call.id for call in calls}) == len(calls)
            assert form != "mistral" or all(len(call.id) == 9 for call in calls)
            for call in calls:
                check_call(call)
                assert choice == "required" or call.function.name == "get_weather"
            assert without_ids(accumulated(client, seed=seed, **fields)) == without_ids(answer)
    several = client.chat.completions.create(n=4, seed=1, **fields).choices
    for found in several:
        check_call(found.message.tool_calls[0])
    assert len({call.id for found in several for call in found.message.tool_calls or []}) >= 4


def test_calls_that_the_model_chooses(client: openai.OpenAI, form: str) -> None:
    """Guided to the text of a call, the model calls; left to itself, this one says something else."""
    fields: dict[str, Any] = {"model": "null", "messages": USER, "tools": TOOLS, "temperature": 0}
    called = {**fields, "extra_body": {"guided_choice": [CALLS[form]]}}
    answer = client.chat.completions.create(**called).choices[0]
    expected = [("get_weather", '{"city": "Rome"}'), ("now", "{}")]
    assert without_ids(answer) == ("", expected, "tool_calls")
    assert without_ids(accumulated(client, **called)) == ("", expected, "tool_calls")
    one = client.chat.completions.create(parallel_tool_calls=False, **called).choices[0]
    assert without_ids(one) == ("", expected[:1], "tool_calls")
    text = client.chat.completions.create(max_tokens=12, **fields).choices[0]
    assert (text.message.tool_calls, text.finish_reason) == (None, "length")
    assert text.message.content
    assert without_ids(accumulated(client, max_tokens=12, **fields)) == without_ids(text)
    none = client.chat.completions.create(tool_choice="none", **called).choices[0]
    assert without_ids(none) == (CALLS[form], [], "stop")


def test_a_call_that_is_cut_is_as_long_as_it_is(client: openai.OpenAI, form: str) -> None:
    fields: dict[str, Any] = {"model": "null", "messages": USER, "tools": [WEATHER], "tool_choice": "required", "seed": 2, "max_tokens": 42}
    answer = client.chat.completions.create(**fields).choices[0]
    assert answer.finish_reason == "length"
    assert without_ids(accumulated(client, **fields)) == without_ids(answer)


def test_the_template_gets_tools_calls_and_results(client: openai.OpenAI) -> None:
    call = {"id": "call00001", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
    messages: list[Any] = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call00001", "content": "sunny"},
    ]
    usage = [
        client.chat.completions.create(model="null", messages=messages[:count], max_tokens=1, tools=tools, temperature=0).usage
        for count, tools in ((1, openai.NOT_GIVEN), (3, openai.NOT_GIVEN), (3, TOOLS))
    ]
    counts = [each.prompt_tokens for each in usage if each is not None]
    assert counts == sorted(set(counts))
    assert counts[1] - counts[0] >= len("get_weather(Rome)tool: sunny") / 6, "the call and its result are in the prompt"


class Weather(BaseModel):
    city: Literal["Rome", "Bonn"]


def test_parsed_calls_are_objects(client: openai.OpenAI) -> None:
    tool = openai.pydantic_function_tool(Weather, name="get_weather")
    answer = client.chat.completions.parse(model="null", messages=USER, tools=[tool], tool_choice="required", seed=1)
    calls = answer.choices[0].message.tool_calls
    assert calls and all(isinstance(call.function.parsed_arguments, Weather) for call in calls)
    with client.chat.completions.stream(model="null", messages=USER, tools=[tool], tool_choice="required", seed=1) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
    assert [event.arguments for event in done] == [call.function.arguments for call in calls]


UNUSABLE: list[Any] = [{"type": "function", "function": {"name": "a", "strict": True, "parameters": {"type": "foo"}}}]
BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": 3}, "'tools' must be a list", "tools"),
    ({"tools": [WEATHER] * 129}, "at most 128", "tools"),
    ({"tools": [WEATHER, WEATHER]}, "two tools are named", "tools"),
    ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "'tools[0]' must be", "tools"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "letters, digits", "tools"),
    ({"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]}, "JSON schema", "tools"),
    ({"tools": [{"type": "function", "function": {"name": "a", "strict": "yes"}}]}, "strict", "tools"),
    ({"tools": [{"type": "function", "function": {"name": "a", "description": 3}}]}, "description", "tools"),
    ({"tools": TOOLS, "tool_choice": "maybe"}, "'tool_choice' must be", "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "'tool_choice' must be", "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "not among the tools", "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto"}}}, "'allowed_tools'", "tool_choice"),
    ({"tools": TOOLS, "parallel_tool_calls": 1}, "true or false", "parallel_tool_calls"),
    ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "exclude each other", "response_format"),
    ({"tools": UNUSABLE, "tool_choice": "required"}, "Invalid type", "tools"),
    ({"tools": UNUSABLE, "tool_choice": "required", "response_format": {"type": "text"}}, "Invalid type", "tools"),
    ({"tools": UNUSABLE, "tool_choice": "required", "response_format": {"type": "json_object"}}, "Invalid type", "tools"),
    ({"tools": TOOLS, "tool_choice": "required", "guided_regex": "a"}, "must call exclude", "guided_regex"),
    ({"tools": TOOLS, "tool_choice": "required", "structured_outputs": {"regex": "a"}}, "must call exclude", "structured_outputs"),
    ({"tools": TOOLS, "guided_regex": "(", "response_format": {"type": "text"}}, "can't be used", "guided_regex"),
    ({"messages": [*USER, {"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "{"}}]}]}, "no JSON", "messages"),
    ({"messages": [*USER, {"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "3"}}]}]}, "object", "messages"),
    ({"messages": [*USER, {"role": "assistant", "tool_calls": [3]}]}, "tool_calls[0]", "messages"),
    ({"messages": [*USER, {"role": "assistant", "tool_calls": "a"}]}, "list of calls", "messages"),
]


def test_what_is_wrong(tool_server: Server, form: str) -> None:
    if form != "hermes":
        pytest.skip("says the same whatever the format")
    for fields, message, param in BAD:
        answer = tool_server.request("POST", "/v1/chat/completions", {"model": "null", "messages": USER, **fields})
        error = answer.json()["error"]
        assert answer.status == 400 and message in error["message"], error
        assert (error["type"], error["param"]) == ("invalid_request_error", param)


@pytest.mark.parametrize("response_format", [{"type": "text"}, {"type": "json_object"}])
def test_calls_that_must_come_need_no_other_format(client: openai.OpenAI, response_format: Any) -> None:
    answer = client.chat.completions.create(
        model="null", messages=USER, tools=[NOW], tool_choice="required", response_format=response_format, seed=1
    )
    check_call(answer.choices[0].message.tool_calls[0])  # type: ignore[index]


@pytest.mark.parametrize(("form", "special"), [("hermes", ["<tool_call>", "</tool_call>"]), ("llama3", ["<|python_tag|>"])])
def test_calls_of_strict_tools_that_the_model_chooses_fit_their_schemas(form: str, special: list[str]) -> None:
    """The model, which says anything, is led to begin a call, or a text."""
    with (
        language_server(template=template(form), special=special) as server,
        openai.OpenAI(base_url=f"http://{server.address}/v1", api_key="none", max_retries=0) as client,
    ):
        fields: dict[str, Any] = {"model": "null", "messages": USER, "parallel_tool_calls": False, "max_tokens": 300}
        calls, texts = {"330": 100, "0": 5, str(FAILS_AT): -100}, {"330": -100, str(FAILS_AT): -100, "91": -100}
        for seed in range(3):
            answer = client.chat.completions.create(seed=seed, tools=TOOLS, logit_bias=calls, **fields).choices[0]
            check_call(answer.message.tool_calls[0])  # type: ignore[index]
            assert without_ids(accumulated(client, seed=seed, tools=TOOLS, logit_bias=calls, **fields)) == without_ids(answer)
            answer = client.chat.completions.create(seed=seed, tools=TOOLS, logit_bias=texts, **fields).choices[0]
            assert answer.message.content and not answer.message.tool_calls
        loose = {**WEATHER, "function": {**WEATHER["function"], "strict": False}}
        answer = client.chat.completions.create(seed=1, tools=[loose], logit_bias=calls, **{**fields, "max_tokens": 40}).choices[0]
        assert not answer.message.tool_calls, "nothing says how it goes on behind the beginning of a call"
        with pytest.raises(openai.BadRequestError, match="tools") as caught:
            client.chat.completions.create(
                tools=[{**NOW, "function": {**NOW["function"], "strict": True, "parameters": {"not": {}}}}], **fields
            )
        assert caught.value.param == "tools"


def test_allowed_tools_are_those_that_are_called(client: openai.OpenAI) -> None:
    allowed: Any = {"mode": "required", "tools": [{"type": "function", "function": {"name": "now"}}]}
    answer = client.chat.completions.create(
        model="null", messages=USER, tools=TOOLS, tool_choice={"type": "allowed_tools", "allowed_tools": allowed}, seed=1
    )
    assert {call.function.name for call in answer.choices[0].message.tool_calls or []} == {"now"}  # type: ignore[union-attr]


def test_the_format_may_be_named() -> None:
    with language_server(template=template("hermes"), tool_parser="mistral") as server:
        body = {"model": "null", "messages": USER, "tools": TOOLS, "guided_choice": [CALLS["mistral"]]}
        message = server.request("POST", "/v1/chat/completions", body).json()["choices"][0]["message"]
        assert [call["function"]["name"] for call in message["tool_calls"]] == ["get_weather", "now"]
