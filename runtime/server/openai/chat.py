"""OpenAI's chat completions. https://platform.openai.com/docs/api-reference/chat"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmos.runtime.engine.generate import PromptEvent, SamplingParams
from llmos.runtime.llm.engine import Messages, TextEngine
from llmos.runtime.llm.request import TextRequest
from llmos.runtime.server.openai.logprobs import Sampled, chat_logprobs
from llmos.runtime.server.openai.sampling import StreamOptions, boolean, given_fields, invalid, sampling_params, stream_options

_OWN = frozenset({"messages", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "chat_template_kwargs"})
_TOOLS = "tool calling is not served: leave it out"
_UNSUPPORTED = {"tools": _TOOLS, "tool_choice": _TOOLS, "functions": _TOOLS, "function_call": _TOOLS}


@dataclass(frozen=True)
class ChatCall:
    """A parsed request. variables: what else the chat template reads (`chat_template_kwargs`, as vLLM calls it)."""

    messages: Messages
    params: SamplingParams
    stream: StreamOptions
    variables: dict[str, Any]


def parse_chat(document: Mapping[str, Any], text: TextEngine) -> ChatCall:
    """Parse a request's JSON; the messages are checked where the prompt is made of them. Raises HttpError 400."""
    fields = given_fields(document, _OWN, _UNSUPPORTED)
    variables = fields.get("chat_template_kwargs", {})
    if not isinstance(variables, dict):
        raise invalid("'chat_template_kwargs' must be an object", "chat_template_kwargs")
    if "messages" not in fields:
        raise invalid("'messages' must be a list of messages", "messages")
    params = sampling_params(fields, text, {"max_tokens": _max_tokens(fields), "logprobs": _num_logprobs(fields)})
    return ChatCall(fields["messages"], params, stream_options(fields), variables)


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
    """See Form."""

    call: ChatCall
    text: TextEngine
    id_prefix: str = "chatcmpl"
    object: str = "chat.completion"
    chunk_object: str = "chat.completion.chunk"

    def prompt(self, request: TextRequest, event: PromptEvent | None) -> tuple[str, list[Sampled]]:
        return "", []

    def first(self, index: int, text: str, tokens: Sequence[Sampled]) -> dict[str, Any] | None:
        return {"index": index, "delta": {"role": "assistant", "content": text}, "logprobs": None, "finish_reason": None}

    def chunk(self, index: int, text: str, tokens: Sequence[Sampled], reason: str | None) -> dict[str, Any]:
        delta = {"content": text} if reason is None else {}
        return {"index": index, "delta": delta, "logprobs": self._logprobs(tokens) if tokens else None, "finish_reason": reason}

    def whole(self, index: int, text: str, tokens: Sequence[Sampled], reason: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": self._logprobs(tokens), "finish_reason": reason}

    def _logprobs(self, tokens: Sequence[Sampled]) -> dict[str, Any] | None:
        return None if self.call.params.logprobs is None else chat_logprobs(tokens, self.text.tokenizer.token_bytes)
