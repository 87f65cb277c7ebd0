"""Chat: messages, and the template of a model that makes a prompt of them."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmos.runtime.children import Children
from llmos.runtime.errors import ArtifactError, InputError

TEMPLATE = "chat_template.jinja"
CONFIG = "tokenizer_config.json"
LIMIT_S = 2  # of processor time: a template takes a millisecond

_CHILDREN = Children("llmos.runtime.text.template_worker")
_FREE = threading.BoundedSemaphore(max(2, os.cpu_count() or 1))  # so many processes at most


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template. variables: what it finds beside the messages: the special tokens by name, such as `bos_token`."""

    source: str
    variables: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, template: bytes | None, config: bytes | None) -> ChatTemplate | None:
        """Read chat_template.jinja and tokenizer_config.json, as far as there are any; None if neither has a template.

        Raises ArtifactError if one of them is malformed.
        """
        settings = _json_object(config)
        source = _decoded(template) if template is not None else _template_in(settings.get("chat_template"))
        return None if source is None else cls(source, _special_tokens(settings))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt of a chat.

        messages: as `check_messages` takes them. tools: that the model may call. add_generation_prompt: whether the prompt ends with the
        beginning of an answer. variables: what else the template reads. The template runs in a process of its own, with limits. Raises
        InputError if messages are malformed, or the template refuses them, fails, or takes too long or too much memory.
        """
        found = {
            **self.variables,
            **(variables or {}),
            "messages": check_messages(messages),
            "add_generation_prompt": add_generation_prompt,
        }
        if tools:
            found["tools"] = tools
        request = _as_json({"template": self.source, "variables": found})
        with _FREE:
            answer = _CHILDREN.ask(request, LIMIT_S)
        if answer.failed:
            raise InputError(answer.said)
        if answer.fault:
            raise InputError(f"the chat template was stopped: {answer.fault}")
        return answer.output.decode()


def check_messages(messages: object) -> list[dict[str, Any]]:
    """Return the messages with their contents as text; None where a message has none. Raises InputError that names the malformed one.

    A message is a mapping with a "role" and a "content": a string, or a list of {"type": "text", "text": ...}, whose texts become lines.
    Other keys (name, tool_call_id, ...) stay as they are. A message with tool_calls needs no content; the arguments of its calls become
    objects, which templates expect, where they are JSON as in OpenAI's form.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise InputError('messages: must be a list of {"role": ..., "content": ...}')
    if not messages:
        raise InputError("messages: there is none; a chat begins with a message of the user")
    return [_message(f"messages[{index}]", message) for index, message in enumerate(messages)]


def _message(place: str, message: object) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not all(isinstance(key, str) for key in message):
        raise InputError(f'{place}: must be {{"role": ..., "content": ...}}, not {message!r:.80}')
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise InputError(f"{place}: its role must be a string such as user, not {role!r:.80}")
    if message.get("content") is None and not message.get("tool_calls"):
        raise InputError(f"{place}: has no content")
    calls = message.get("tool_calls")
    called = {"tool_calls": _tool_calls(f"{place}.tool_calls", calls)} if calls else {}
    return {**message, **called, "content": _content(place, message.get("content"))}


def _tool_calls(place: str, calls: object) -> list[dict[str, Any]]:
    if not isinstance(calls, list | tuple):
        raise InputError(f"{place}: must be a list of calls, not {calls!r:.80}")
    return [_tool_call(f"{place}[{index}]", call) for index, call in enumerate(calls)]


def _tool_call(place: str, call: object) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InputError(f'{place}: must be {{"type": "function", "function": {{"name": ..., "arguments": ...}}}}, not {call!r:.80}')
    arguments = function.get("arguments", "{}")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place}: its arguments are no JSON ({error})") from None
    if not isinstance(arguments, Mapping):
        raise InputError(f"{place}: its arguments must be a JSON object, not {arguments!r:.80}")
    return {**call, "function": {**function, "arguments": arguments}}


def _content(place: str, content: object) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise InputError(f"{place}: its content must be a string or a list of texts, not {content!r:.80}")
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            found = part.get("type") if isinstance(part, Mapping) else part
            raise InputError(f'{place}: the parts of its content must be {{"type": "text", "text": ...}}, not {found!r:.80}')
    return "\n".join(part["text"] for part in content)


def _as_json(value: object) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise InputError("messages: a text holds half of a surrogate pair, which is no character") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"messages: hold what JSON can't ({error})") from error


def _json_object(data: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(data) if data is not None else {}
    except ValueError as error:
        raise ArtifactError(f"its {CONFIG} is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise ArtifactError(f"its {CONFIG} is no JSON object")
    return found


def _decoded(template: bytes) -> str:
    try:
        return template.decode()
    except UnicodeDecodeError as error:
        raise ArtifactError(f"its {TEMPLATE} is no text ({error})") from error


def _template_in(found: object) -> str | None:
    """Return the template of a config: a string, or of a list of named ones the default."""
    if isinstance(found, list):
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the tokens of a config that templates refer to; each is a string, or an object with its content."""
    extra = settings.get("extra_special_tokens")
    listed = {**settings, **(extra if isinstance(extra, dict) else {})}
    tokens = {}
    for name, value in listed.items():
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(content, str):
            tokens[name] = content
    return tokens
