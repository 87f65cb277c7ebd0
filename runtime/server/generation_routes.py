"""The routes of language models: completions and chat completions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from llmos.runtime.engine import DeadlineError, QueueFullError
from llmos.runtime.errors import InputError
from llmos.runtime.llm.request import TextRequest
from llmos.runtime.server.core.body import read_body
from llmos.runtime.server.core.endpoint import INLINE_BYTES, INLINE_CHARS, maybe_in_thread, request_timeout
from llmos.runtime.server.core.http import EventStream, Exchange, Reply
from llmos.runtime.server.core.language import ServedLanguageModel
from llmos.runtime.server.core.state import ServerState
from llmos.runtime.server.inference.infer import parse_object
from llmos.runtime.server.openai.chat import ChatForm, parse_chat
from llmos.runtime.server.openai.completions import CompletionForm, parse_completion
from llmos.runtime.server.openai.embeddings import model_name
from llmos.runtime.server.openai.form import Form
from llmos.runtime.server.openai.generation import Answer, Generation
from llmos.runtime.server.openai.sampling import StreamOptions, as_bad_request

_Submit = Callable[[], TextRequest]


class GenerationRoutes:
    """The handlers that run a language model."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._settings = state.settings

    async def completions(self, exchange: Exchange) -> Reply | EventStream:
        """POST /v1/completions"""
        document, served, size = await self._begin(exchange)
        call = await maybe_in_thread(size, INLINE_BYTES, partial(parse_completion, document, served.text))
        who = self._who(exchange)
        requests: list[TextRequest] = []
        try:
            for prompt in call.prompts:
                submit = partial(served.text.submit, prompt, call.params, **who)
                requests.append(await maybe_in_thread(size, INLINE_CHARS, partial(_submit, submit, "prompt", served)))
        except Exception:
            for request in requests:
                request.cancel()
            raise
        return await _answer(exchange, requests, CompletionForm(call, served.text), call.stream)

    async def chat(self, exchange: Exchange) -> Reply | EventStream:
        """POST /v1/chat/completions"""
        document, served, size = await self._begin(exchange)
        call = await maybe_in_thread(size, INLINE_BYTES, partial(parse_chat, document, served.text))
        submit = partial(served.text.submit_chat, call.messages, call.params, variables=call.variables, **self._who(exchange))
        # The template runs in a process of its own, which is waited for.
        request = await asyncio.to_thread(_submit, submit, "messages", served)
        return await _answer(exchange, [request], ChatForm(call, served.text), call.stream)

    async def _begin(self, exchange: Exchange) -> tuple[dict[str, Any], ServedLanguageModel, int]:
        """Return the request, the model that it names, and the size of the body in bytes."""
        body = await read_body(exchange, self._settings.max_body_bytes, self._settings.timeout_s)
        document = await maybe_in_thread(len(body), INLINE_BYTES, partial(parse_object, body))
        served = self._state.find_language_model(model_name(document))
        exchange.info.model = served.name
        return document, served, len(body)

    def _who(self, exchange: Exchange) -> dict[str, Any]:
        """Return whose prefixes a request shares, and the time that is left for it."""
        spent_s = time.perf_counter() - exchange.info.start_s
        timeout_s = request_timeout(exchange, self._settings.generation_timeout_s) - spent_s
        if timeout_s <= 0:
            raise DeadlineError("the request timed out")
        return {"principal": exchange.info.principal, "timeout_s": timeout_s}


def _submit(submit: _Submit, param: str, served: ServedLanguageModel) -> TextRequest:
    """Submit a prompt. Raises HttpError 400 that names the wrong parameter, by default `param`."""
    try:
        return submit()
    except InputError as error:
        raise as_bad_request(error, param) from error
    except QueueFullError:
        served.metrics.rejected.inc()
        raise


async def _answer(exchange: Exchange, requests: Sequence[TextRequest], form: Form, options: StreamOptions) -> Reply | EventStream:
    info = exchange.info
    info.num_items = len(requests)
    generation = Generation(requests, exchange.receive)
    answer = Answer(generation, form, str(info.model), info.request_id)
    streams = False
    try:
        if not options.stream:
            return await answer.whole()
        stream = await answer.stream(include_usage=options.include_usage)
        streams = True
        return stream
    finally:
        if not streams:
            generation.close()
