"""Parsing of the parameters that OpenAI's completions and chat completions share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmos.runtime.engine.generate import SamplingParams
from llmos.runtime.errors import InputError
from llmos.runtime.llm.engine import TextEngine
from llmos.runtime.server.core.errors import HttpError
from llmos.runtime.server.openai.structured import FIELDS, as_field_error, structured_outputs

# Those of OpenAI, and vLLM's names for the others.
_SAMPLING = (
    "n", "seed", "stop", "temperature", "top_p", "presence_penalty", "frequency_penalty", "logit_bias",
    "top_k", "min_p", "typical_p", "repetition_penalty", "min_tokens", "stop_token_ids", "ignore_eos",
)  # fmt: skip
# Say something about the client, and change no answer.
IGNORED = ("user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "store")
_COMMON = frozenset({"model", "stream", "stream_options", *_SAMPLING, *IGNORED, *FIELDS})
_STREAM_OPTIONS = frozenset({"include_usage", "include_obfuscation"})
_MAX_STOP = 16
MAX_CHOICES = 128


@dataclass(frozen=True)
class StreamOptions:
    """stream: whether the answer is sent as it comes. include_usage: whether the last event of a stream says the usage."""

    stream: bool
    include_usage: bool


def invalid(message: str, param: str) -> HttpError:
    """Return the error for a wrong parameter."""
    return HttpError(400, message, param=param)


def given_fields(document: Mapping[str, Any], own: frozenset[str], unsupported: Mapping[str, str]) -> dict[str, Any]:
    """Return the parameters of a request that are not null. own: those of the route. unsupported: what to say of those not served.

    Raises HttpError 400 for a parameter that is unknown or not served.
    """
    for name, value in document.items():
        if name in unsupported and value not in (None, []):
            raise HttpError(400, f"'{name}': {unsupported[name]}", param=name, code="unsupported_parameter")
        if name not in _COMMON and name not in own and name not in unsupported:
            raise HttpError(400, f"there is no parameter '{name:.80}'", param=name[:80], code="unknown_parameter")
    return {name: value for name, value in document.items() if value is not None and name not in unsupported}


def boolean(fields: Mapping[str, Any], name: str) -> bool:
    """Return a parameter that is true or false, by default false. Raises HttpError 400."""
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise invalid(f"'{name}' must be true or false", name)
    return value


def stream_options(fields: Mapping[str, Any]) -> StreamOptions:
    """Parse `stream` and `stream_options`. Raises HttpError 400."""
    stream, options = boolean(fields, "stream"), fields.get("stream_options")
    if options is None:
        return StreamOptions(stream, False)
    if not isinstance(options, dict) or not options.keys() <= _STREAM_OPTIONS:
        raise invalid("'stream_options' must be an object with 'include_usage'", "stream_options")
    if not stream:
        raise invalid("'stream_options' is only for 'stream': true", "stream_options")
    return StreamOptions(stream, boolean({name: value for name, value in options.items() if value is not None}, "include_usage"))


def sampling_params(fields: Mapping[str, Any], text: TextEngine, own: Mapping[str, Any]) -> SamplingParams:
    """Return how to sample. own: parameters that the route has read itself, by the names of SamplingParams. Raises HttpError 400."""
    given = {name: fields[name] for name in _SAMPLING if name in fields}
    if "logit_bias" in given:
        given["logit_bias"] = _biases(given["logit_bias"])
    if isinstance(given.get("stop"), list) and len(given["stop"]) > _MAX_STOP:
        raise invalid(f"'stop' must hold at most {_MAX_STOP} strings", "stop")
    form = structured_outputs(fields)
    try:
        return text.params({**given, **({} if form is None else {"structured_outputs": form}), **own})
    except InputError as error:
        raise as_bad_request(error, None) from error


def as_bad_request(error: InputError, default: str | None, form_field: str = "structured_outputs") -> HttpError:
    """Return a 400 that names the parameter which the message begins with, or `default`. form_field: that the form of the texts is from."""
    name = str(error).partition(":")[0]
    if name == "structured_outputs":
        return as_field_error(error, form_field)
    return HttpError(400, str(error), param=name if name in _COMMON or name in ("max_tokens", "logprobs", "messages", "tools") else default)


def _biases(value: object) -> object:
    """Return biases by token id; JSON's keys are strings. What is no bias is left to SamplingParams."""
    if not isinstance(value, dict):
        raise invalid("'logit_bias' must map token ids to numbers", "logit_bias")
    return {int(name) if name.isascii() and name.isdecimal() and len(name) < 12 else name: bias for name, bias in value.items()}
