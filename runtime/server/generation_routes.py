"""The routes of language models: completions and chat completions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from llmos.runtime.engine import QueueFullError
from llmos.runtime.engine.generate import SamplingParams
from llmos.runtime.errors import InputError
from llmos.runtime.llm.request import TextRequest
from llmos.runtime.server.core.content import read_document
from llmos.runtime.server.core.endpoint import INLINE_CHARS, deadline
from llmos.runtime.server.core.errors import HttpError
from llmos.runtime.server.core.http import EventStream, Exchange, Reply
from llmos.runtime.server.core.response_cache import CacheKey
from llmos.runtime.server.core.served import ServedLanguageModel
from llmos.runtime.server.core.state import ServerState
from llmos.runtime.server.openai.chat import ChatForm, parse_chat
from llmos.runtime.server.openai.completions import CompletionForm, parse_completion
from llmos.runtime.server.openai.embeddings import model_name
from llmos.runtime.server.openai.form import Form
from llmos.runtime.server.openai.generation import Answer, Generation
from llmos.runtime.server.openai.repeatable import fields_of_answer, is_deterministic, recorded
from llmos.runtime.server.openai.sampling import StreamOptions, as_bad_request
from llmos.runtime.server.openai.structured import form_fields

_Submit = Callable[[], TextRequest]


class GenerationRoutes:
    """The handlers that run a language model."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._settings = state.settings
        self._cache = state.responses

    def _models(self) -> dict[str, Any]:
        """Return the limits of the prompts that each language model takes."""
        models = self._state.models.values()
        return {served.name: served.text.limits for served in models if isinstance(served, ServedLanguageModel)}

    async def completions(self, exchange: Exchange) -> Reply | EventStream:
        """POST /v1/completions"""
        deadline_s = deadline(exchange, self._settings.generation_timeout_s)
        document, served, size = await self._begin(exchange, "completions", deadline_s)
        key = self._key(exchange, "completions", document, served, size)
        if (kept := await self._cache.get(key, served.metrics)) is not None:
            return kept
        _require_room(served)
        parse = partial(parse_completion, document, served.text)
        call = parse() if size is None else await self._state.lanes.run(parse, deadline_s, large=True)
        params = self._limited(call.params)
        key = key if params is call.params else None  # what is shorter for now is not kept
        form_field = next(iter(form_fields(document)), "")
        is_short = sum(map(len, call.prompts)) <= INLINE_CHARS
        requests: list[TextRequest] = []
        try:
            for prompt in call.prompts:
                work = partial(served.text.submit, prompt, params, **self._who(exchange, deadline_s))
                submit = partial(_submit, work, "prompt", form_field, served)
                compiles = served.text.must_compile(params)
                if is_short and not compiles:
                    requests.append(submit())
                else:
                    requests.append(await self._state.lanes.run(submit, deadline_s, large=size is not None or compiles))
                self._admit_input(exchange, requests[-1])
        except BaseException:
            for request in requests:
                request.cancel()
            raise
        return self._keep(key, await self._answer(exchange, requests, CompletionForm(call, served.text), call.stream, deadline_s))

    async def chat(self, exchange: Exchange) -> Reply | EventStream:
        """POST /v1/chat/completions"""
        deadline_s = deadline(exchange, self._settings.generation_timeout_s)
        document, served, size = await self._begin(exchange, "chat", deadline_s)
        key = self._key(exchange, "chat", document, served, size)
        if (kept := await self._cache.get(key, served.metrics)) is not None:
            return kept
        _require_room(served)
        call = parse_chat(document, served.text, self._settings.tool_parser)
        who = self._who(exchange, deadline_s)
        options: dict[str, Any] = {} if call.tools is None else {"tools": call.tools.tools, "prefix": call.tools.prefix}
        params = self._limited(call.params)
        key = key if params is call.params else None  # what is shorter for now is not kept
        form_field = "tools" if call.tools is not None and call.tools.grammar is not None else next(iter(form_fields(document)), "")
        submit = partial(served.text.submit_chat, call.messages, params, variables=call.variables, **options, **who)
        # The template runs in a process of its own, which is waited for; so is one that checks a new grammar.
        large = size is not None or served.text.must_compile(params)
        request = await self._state.lanes.run(partial(_submit, submit, "messages", form_field, served), deadline_s, large=large)
        self._admit_input(exchange, request)
        form = ChatForm(call, served.text, exchange.info.request_id)
        return self._keep(key, await self._answer(exchange, [request], form, call.stream, deadline_s))

    async def _begin(self, exchange: Exchange, kind: str, deadline_s: float) -> tuple[dict[str, Any], ServedLanguageModel, int | None]:
        """Return the request, the model that it names, and the size of the request if it is large."""
        document, size = await read_document(exchange, self._state, kind, self._models, deadline_s)
        return document, self._state.take_language_model(exchange.info, model_name(document)), size

    def _key(
        self, exchange: Exchange, route: str, document: Mapping[str, Any], served: ServedLanguageModel, size: int | None
    ) -> CacheKey | None:
        """Return the key of a small request whose answer is always the same; None for another, or where nothing is kept."""
        health = self._state.health
        if health is not None and health.limits.max_tokens is not None:  # an answer that is cut short for now
            return None
        if size is not None or not self._cache.is_on or not is_deterministic(document, served.text):
            return None
        settings = (self._settings.tool_parser, str(served.engine.num_blocks))  # the second bounds the longest answer
        return self._cache.key(exchange.info.principal, served.identity, served.name, route, *settings, *fields_of_answer(document))

    def _limited(self, params: SamplingParams) -> SamplingParams:
        """Return what a request asks for, as far as the health rules let it."""
        health = self._state.health
        most = None if health is None else health.limits.max_tokens
        if most is None or (params.max_tokens is not None and params.max_tokens <= most):
            return params
        return replace(params, max_tokens=most, min_tokens=min(params.min_tokens, most))

    def _admit_input(self, exchange: Exchange, request: TextRequest) -> None:
        """Cancel a request whose prompt is too long for now. Raises HttpError 503."""
        if self._state.health is None:
            return
        try:
            self._state.health.admit_input(exchange.info, request.num_prompt_tokens)
        except HttpError:
            request.cancel()
            raise

    def _keep(self, key: CacheKey | None, answer: Reply | EventStream) -> Reply | EventStream:
        """Keep a whole answer, or the events of one when the last of them is there."""
        if key is None:
            return answer
        if isinstance(answer, Reply):
            self._cache.put(key, answer)
            return answer
        return recorded(answer, self._cache.max_answer_bytes, partial(self._cache.put, key))

    async def _answer(
        self, exchange: Exchange, requests: Sequence[TextRequest], form: Form, options: StreamOptions, deadline_s: float
    ) -> Reply | EventStream:
        info = exchange.info
        info.num_items = len(requests)
        generation = Generation(requests, exchange.receive)
        answer = Answer(generation, form, info, self._state.lanes, deadline_s)
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

    def _who(self, exchange: Exchange, deadline_s: float) -> dict[str, Any]:
        """Return whose request it is, for prefixes and shares, and the time that is left for it."""
        return {"principal": exchange.info.principal, "weight": exchange.info.weight, "timeout_s": exchange.left_s(deadline_s)}


def _require_room(served: ServedLanguageModel) -> None:
    """Refuse a request where the queue is full, before templates and tokenizers take the time of those that are served."""
    try:
        served.engine.require_room()
    except QueueFullError:
        served.metrics.rejected.inc()
        raise


def _submit(submit: _Submit, param: str, form_field: str, served: ServedLanguageModel) -> TextRequest:
    """Submit a prompt. Raises HttpError 400 that names the wrong parameter: by default `param`, and for a form `form_field`."""
    try:
        return submit()
    except InputError as error:
        raise as_bad_request(error, param, form_field) from error
    except QueueFullError:
        served.metrics.rejected.inc()
        raise
