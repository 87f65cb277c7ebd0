"""Chat templates: what they give, and that no template or message takes the process with it."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest

from llmos.runtime.errors import ArtifactError, InputError
from llmos.runtime.text import template_worker
from llmos.runtime.text.chat import ChatTemplate, check_messages

CHATML = """{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
DOUBLING = "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"
TOO_BIG = "Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000)."
USER = [{"role": "user", "content": "Hi"}]


def rendered(source: str, messages: Any = USER, **options: Any) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(messages, **options)


def refused(source: str, messages: Any = USER) -> str:
    with pytest.raises(InputError) as error:
        rendered(source, messages)
    return str(error.value)


def test_a_template_makes_a_prompt() -> None:
    messages = [{"role": "system", "content": "Be brief."}, *USER]
    system = "<|im_start|>system\nBe brief.<|im_end|>\n"
    user = "<|im_start|>user\nHi<|im_end|>\n"
    assert rendered(CHATML, messages) == f"{system}{user}<|im_start|>assistant\n"
    assert rendered(CHATML, add_generation_prompt=False) == user


def test_what_templates_rely_on() -> None:
    assert rendered("{{ bos_token }}{{ messages[0].content | tojson }}", [{"role": "user", "content": "é<&'\""}]) == '<s>"é<&\'\\""'
    assert rendered("{{ {'b': 1, 'a': [2]} | tojson(indent=1, sort_keys=true) }}") == json.dumps({"a": [2], "b": 1}, indent=1)
    assert (
        rendered("{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}")
        == "013"
    )
    assert rendered("{{ strftime_now('%Y') }}") in (str(datetime.date.today().year), str(datetime.date.today().year + 1))
    assert rendered("a{% generation %}{{ messages[0].content }}{% endgeneration %}b") == "aHib"
    assert rendered("{{ missing is defined }}{{ tools is defined }}{{ missing }}", tools=[]) == "FalseFalse"
    assert rendered("{{ tools[0].name }}{{ thinking }}", tools=[{"name": "f"}], variables={"thinking": True}) == "fTrue"
    assert rendered("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}") == "1"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "the chat template refuses these messages: Roles must alternate"),
        ("a\n{% for %}", "the chat template can't be read: Expected an expression, got 'end of statement block' (line 2)"),
        ("{{ missing.name }}", "the chat template failed: 'missing' is undefined"),
        ("{{ 1 / 0 }}", "the chat template failed: division by zero"),
        ("{{ messages.append(1) }}", "the chat template failed: access to attribute 'append' of 'list' object is unsafe."),
        ("{{ ''.__class__.__mro__ }}", "the chat template failed: access to attribute '__class__' of 'str' object is unsafe."),
        ("{% for i in range(10**9) %}{% endfor %}", f"the chat template failed: {TOO_BIG}"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "the chat template recurses without end"),
        ("{{ 'x' * 10**10 }}", "the chat template needs more than 512 MiB of memory"),
        ("{{ 'x'.ljust(10**10) }}", "the chat template needs more than 512 MiB of memory"),
        ("{{ [1] | batch(10**10, 0) | list }}", "the chat template needs more than 512 MiB of memory"),
        (DOUBLING, "the chat template needs more than 512 MiB of memory"),
        ("{{ 'x' * 20000000 }}", "the chat template gives 20000000 characters, and 16777216 are the limit"),
        ("{{ raise_exception('x' * 1000) }}", f"the chat template refuses these messages: {'x' * 300}..."),
    ],
)
def test_a_template_that_fails_is_one_line(source: str, reason: str) -> None:
    assert refused(source) == reason
    assert rendered("on") == "on"


@pytest.mark.parametrize("source", ["{{ 10**(10**9) }}", "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"])
@pytest.mark.slow  # for the seconds that such a template is given
def test_a_template_without_end_is_stopped(source: str) -> None:
    assert refused(source) == "the chat template was stopped: more than 2 s of processor time"
    assert rendered("on") == "on"


def test_limits_are_those_of_the_process() -> None:
    """The worker itself limits nothing while it is imported: tests call it."""
    request = {"template": "{{ 'x' * 40 }}", "variables": {}}
    assert template_worker.render(json.dumps(request).encode()) == b"x" * 40


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "messages: there is none; a chat begins with a message of the user"),
        ("Hi", 'messages: must be a list of {"role": ..., "content": ...}'),
        ({"role": "user"}, 'messages: must be a list of {"role": ..., "content": ...}'),
        (None, 'messages: must be a list of {"role": ..., "content": ...}'),
        (["Hi"], """messages[0]: must be {"role": ..., "content": ...}, not 'Hi'"""),
        ([*USER, {"content": "Hi"}], "messages[1]: its role must be a string such as user, not None"),
        ([{"role": "user"}], "messages[0]: has no content"),
        ([{"role": "user", "content": 5}], "messages[0]: its content must be a string or a list of texts, not 5"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            """messages[0]: the parts of its content must be {"type": "text", "text": ...}, not 'image_url'""",
        ),
        ([{"role": "user", "content": "\ud800"}], "messages: a text holds half of a surrogate pair, which is no character"),
        ([{**USER[0], "extra": {1, 2}}], "messages: hold what JSON can't (Object of type set is not JSON serializable)"),
    ],
)
def test_malformed_messages(messages: Any, reason: str) -> None:
    assert refused("{{ messages }}", messages) == reason


def test_contents() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    found = check_messages([{"role": "user", "content": parts}, call])
    assert found == [{"role": "user", "content": "a\nb"}, call]


def test_where_templates_come_from() -> None:
    config = {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>"},
        "chat_template": "A",
        "extra_special_tokens": {"image_token": "<i>"},
        "x_token": 3,
    }
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "image_token": "<i>"}

    def of(template: bytes | None, **changes: Any) -> ChatTemplate | None:
        return ChatTemplate.of(template, json.dumps({**config, **changes}).encode())

    assert of(None) == ChatTemplate("A", tokens)
    assert of(b"B") == ChatTemplate("B", tokens)
    named = [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]
    assert of(None, chat_template=named) == ChatTemplate("D", tokens)
    assert of(None, chat_template=None) is None
    assert ChatTemplate.of(None, None) is None
    assert ChatTemplate.of(b"B", None) == ChatTemplate("B", {})


@pytest.mark.parametrize(("template", "config"), [(b"\xff", None), (None, b"{"), (None, b"[]")])
def test_malformed_files(template: bytes | None, config: bytes | None) -> None:
    with pytest.raises(ArtifactError, match=r"^its (chat_template.jinja|tokenizer_config.json) is no "):
        ChatTemplate.of(template, config)


TEMPLATES = {
    "chatml": CHATML,
    "alternating": """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
    {%- if message.role == 'user' %}{{ '[INST] ' + message.content.strip() + ' [/INST]' }}
    {%- else %}{% generation %}{{ ' ' ~ message.content | trim }}{% endgeneration %}{{ eos_token }}{% endif %}
{%- endfor %}""",
    "headers": """{%- set ns = namespace(system='') %}
{%- for m in messages if m.role == 'system' %}{% set ns.system = ns.system + m['content'] %}{% endfor %}
{{- bos_token + ns.system }}
{%- for m in messages | rejectattr('role', 'equalto', 'system') %}
    {%- if loop.index > 5 %}{% break %}{% endif %}
    {{- '<|' + m.role + '|>\n' + (m | tojson(indent=2)) + '\n' }}
{%- endfor %}
{%- if tools is not none and tools %}{{ tools | map(attribute='name') | join(', ') }}{% endif %}""",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_give_what_they_give_in_transformers(name: str) -> None:
    chat_template_utils = pytest.importorskip("transformers.utils.chat_template_utils")
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    answers = [{"role": "assistant", "content": " Hé <b>  "}, {"role": "user", "content": "Bye\n"}]
    for messages in (USER, [*USER, *answers], [*USER, *answers, *answers]):
        for generation in (True, False):
            tools = [{"name": "f"}, {"name": "g"}]
            options = {"add_generation_prompt": generation, "tools": tools}
            (expected,), _ = chat_template_utils.render_jinja_template([messages], chat_template=TEMPLATES[name], **options, **tokens)
            assert ChatTemplate(TEMPLATES[name], tokens).render(messages, **options) == expected
