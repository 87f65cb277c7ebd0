"""OpenAI's chat completions. https://platform.openai.com/docs/api-reference/chat"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmos.runtime.engine.generate import PromptEvent, SamplingParams
from llmos.runtime.llm.engine import Messages, TextEngine
from llmos.runtime.llm.request import TextRequest
from llmos.runtime.server.openai.logprobs import Sampled, chat_logprobs
from llmos.runtime.server.openai.sampling import StreamOptions, boolean, given_fields, invalid, sampling_params, stream_options
from llmos.runtime.server.openai.tools import CallWriter, ToolUse, parse_tools

_OWN = frozenset(
    {
        "messages", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "chat_template_kwargs", "tools", "tool_choice",
        "parallel_tool_calls",
    }
)  # fmt: skip
_OLD = "this is the older form of tools, which is not served: give 'tools'"
_UNSUPPORTED = {"functions": _OLD, "function_call": _OLD}


@dataclass(frozen=True)
class ChatCall:
    """A parsed request. variables: what else the chat template reads (`chat_template_kwargs`, as vLLM calls it). tools: None for none."""

    messages: Messages
    params: SamplingParams
    stream: StreamOptions
    variables: dict[str, Any]
    tools: ToolUse | None = None


def parse_chat(document: Mapping[str, Any], text: TextEngine, tool_parser: str = "") -> ChatCall:
    """Parse a request's JSON; the messages are checked where the prompt is made of them. tool_parser: see `parse_tools`.

    Raises HttpError 400.
    """
    fields = given_fields(document, _OWN, _UNSUPPORTED)
    variables = fields.get("chat_template_kwargs", {})
    if not isinstance(variables, dict):
        raise invalid("'chat_template_kwargs' must be an object", "chat_template_kwargs")
    if "messages" not in fields:
        raise invalid("'messages' must be a list of messages", "messages")
    tools = parse_tools(fields, text, tool_parser)
    own: dict[str, Any] = {"max_tokens": _max_tokens(fields), "logprobs": _num_logprobs(fields)}
    if tools is not None and tools.grammar is not None:
        own["structured_outputs"] = tools.grammar
    params = sampling_params(fields, text, own)
    return ChatCall(fields["messages"], params, stream_options(fields), variables, tools)


def _max_tokens(fields: Mapping[str, Any]) -> Any:
    """Return max_completion_tokens, or its older name, max_tokens."""
    new, old = fields.get("max_completion_tokens"), fields.get("max_tokens")
    if new is not None and old is not None and new != old:
        raise invalid("'max_completion_tokens' and 'max_tokens' differ: give one of them", "max_completion_tokens")
    return old if new is None else new


def _num_logprobs(fields: Mapping[str, Any]) -> Any:
    """Return how many log probabilities a token has beside its own; None: not even that."""
    top = fields.get("top_logprobs")
    if not boolean(fields, "logprobs"):
        if top is not None:
            raise invalid("'top_logprobs' is only for 'logprobs': true", "top_logprobs")
        return None
    if top is not None and (type(top) is not int or not 0 <= top <= 20):
        raise invalid("'top_logprobs' must be an integer from 0 to 20", "top_logprobs")
    return top or 0


@dataclass
class ChatForm:
    """See Form. request_id: what the ids of calls follow from."""

    call: ChatCall
    text: TextEngine
    request_id: str = ""
    id_prefix: str = "chatcmpl"
    object: str = "chat.completion"
    chunk_object: str = "chat.completion.chunk"
    _writers: dict[int, CallWriter] = field(default_factory=dict)

    def prompt(self, request: TextRequest, event: PromptEvent | None) -> tuple[str, list[Sampled]]:
        return "", []

    def first(self, index: int, text: str, tokens: Sequence[Sampled]) -> dict[str, Any] | None:
        delta = {"role": "assistant", "content": text if self.call.tools is None else None}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def chunk(self, index: int, text: str, tokens: Sequence[Sampled], reason: str | None) -> dict[str, Any] | None:
        delta: dict[str, Any] = {"content": text} if reason is None else {}
        logprobs = self._logprobs(tokens) if tokens else None
        writer = self._writer(index)
        if writer is not None:
            delta = writer.delta(text, ends=reason is not None)
            if not delta and reason is None and logprobs is None:
                return None
            reason = _reason(writer, reason)
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def whole(self, index: int, text: str, tokens: Sequence[Sampled], reason: str) -> dict[str, Any]:
        writer = self._writer(index)
        written = {"content": text} if writer is None else writer.message(text)
        message = {"role": "assistant", "refusal": None, **written}
        found = reason if writer is None else _reason(writer, reason)
        return {"index": index, "message": message, "logprobs": self._logprobs(tokens), "finish_reason": found}

    def _writer(self, index: int) -> CallWriter | None:
        """Return what finds calls in a choice; None where there can be none."""
        if self.call.tools is None:
            return None
        if index not in self._writers:
            self._writers[index] = CallWriter(self.call.tools, f"{self.request_id} {index}")
        return self._writers[index]

    def _logprobs(self, tokens: Sequence[Sampled]) -> dict[str, Any] | None:
        return None if self.call.params.logprobs is None else chat_logprobs(tokens, self.text.tokenizer.token_bytes)


def _reason(writer: CallWriter, reason: str | None) -> str | None:
    """Return why a choice ended: one that made calls did so for them."""
    return "tool_calls" if reason == "stop" and writer.has_calls else reason
