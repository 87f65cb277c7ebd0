"""OpenAI's completions. https://platform.openai.com/docs/api-reference/completions"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmos.runtime.engine.generate import PromptEvent, SamplingParams
from llmos.runtime.llm.engine import TextEngine
from llmos.runtime.llm.request import TextRequest
from llmos.runtime.native.sampling import SampledRow
from llmos.runtime.server.openai.logprobs import CompletionLogprobs, Sampled
from llmos.runtime.server.openai.sampling import (
    MAX_CHOICES,
    StreamOptions,
    boolean,
    given_fields,
    invalid,
    sampling_params,
    stream_options,
)

_OWN = frozenset({"prompt", "max_tokens", "logprobs", "echo", "best_of"})
_UNSUPPORTED = {
    "suffix": "completions are of what follows a prompt: leave it out",
}
MAX_TOKENS = 1 << 20  # of all prompts of a call
_DEFAULT_MAX_TOKENS = 16  # OpenAI's
_FORMS = "a string, an array of strings, an array of token ids, or an array of arrays of token ids"

Prompt = str | list[int]


@dataclass(frozen=True)
class CompletionCall:
    """A parsed request. echo: whether each text begins with its prompt."""

    prompts: list[Prompt]
    params: SamplingParams
    stream: StreamOptions
    echo: bool


def parse_completion(document: Mapping[str, Any], text: TextEngine) -> CompletionCall:
    """Parse a request's JSON. Raises HttpError 400."""
    fields = given_fields(document, _OWN, _UNSUPPORTED)
    echo = boolean(fields, "echo")
    logprobs = fields.get("logprobs")
    own = {
        "max_tokens": fields.get("max_tokens", _DEFAULT_MAX_TOKENS),
        "logprobs": logprobs,
        "prompt_logprobs": logprobs if echo else None,
    }
    params = sampling_params(fields, text, own)
    if fields.get("best_of", params.n) != params.n:
        raise invalid("'best_of' must be the same as 'n'", "best_of")
    prompts = check_prompts(fields, text.limits)
    return CompletionCall(prompts, params, stream_options(fields), echo)


def check_prompts(fields: Mapping[str, Any], limits: Mapping[str, int]) -> list[Prompt]:
    """Return the prompts. limits: see TextEngine. Raises HttpError 400.

    How many there are, and how long, is looked at before what they hold, which could take a while.
    """
    value, n, max_length = fields.get("prompt"), fields.get("n"), limits["max_tokens"]
    n = n if type(n) is int else 1
    items: Any = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not items:
        raise invalid(f"'prompt' must be {_FORMS}, and can't be empty", "prompt")
    if type(items[0]) is int:
        items = [items]
    if len(items) * n > MAX_CHOICES:
        raise invalid(f"{len(items)} prompts of {n} choices are asked for, at most {MAX_CHOICES} choices are allowed", "prompt")
    longest = max((len(item) for item in items if isinstance(item, list)), default=0)
    if longest >= max_length:
        raise invalid(f"the prompt has {longest} tokens, the context is {max_length}: shorten it, so that one or more can follow", "prompt")
    if sum(len(item) for item in items if isinstance(item, list)) > MAX_TOKENS:
        raise invalid(f"the prompts have more than {MAX_TOKENS} tokens together", "prompt")
    chars = max((len(item) for item in items if isinstance(item, str)), default=0)
    if chars > limits["max_chars"]:
        raise invalid(f"the prompt has {chars} characters, far more than the context of {max_length} tokens: shorten it", "prompt")
    texts = all(isinstance(item, str) for item in items)
    if not texts and not all(isinstance(item, list) and all(type(token) is int for token in item) for item in items):
        raise invalid(f"'prompt' must be {_FORMS}", "prompt")
    return list(items)


@dataclass
class CompletionForm:
    """See Form."""

    call: CompletionCall
    text: TextEngine
    id_prefix: str = "cmpl"
    object: str = "text_completion"
    chunk_object: str = "text_completion"
    _logprobs: dict[int, CompletionLogprobs] = field(default_factory=dict)

    def prompt(self, request: TextRequest, event: PromptEvent | None) -> tuple[str, list[Sampled]]:
        if not self.call.echo:
            return "", []
        rows = () if event is None else event.tokens
        ids = request.prompt_ids
        return self.text.tokenizer.decode(ids), [SampledRow(ids[0], None, ()) if row is None else row for row in rows]

    def first(self, index: int, text: str, tokens: Sequence[Sampled]) -> dict[str, Any] | None:
        return self.chunk(index, text, tokens, None) if self.call.echo else None

    def chunk(self, index: int, text: str, tokens: Sequence[Sampled], reason: str | None) -> dict[str, Any]:
        logprobs = None
        if self.call.params.logprobs is not None:
            logprobs = self._logprobs.setdefault(index, CompletionLogprobs(self.text.tokenizer.token_bytes)).write(tokens)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def whole(self, index: int, text: str, tokens: Sequence[Sampled], reason: str) -> dict[str, Any]:
        return self.chunk(index, text, tokens, reason)
