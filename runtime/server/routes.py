"""The hot routes: infer and embeddings."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from llmos.runtime.engine import QueueFullError
from llmos.runtime.engine.model import Array
from llmos.runtime.engine.request import Outputs
from llmos.runtime.server.core.body import read_body
from llmos.runtime.server.core.dispatch import run_on_engine
from llmos.runtime.server.core.errors import HttpError, as_http_error, error_reply
from llmos.runtime.server.core.http import Exchange, Handler, Receive, Reply, Scope, Send
from llmos.runtime.server.core.state import VERSION, ServedModel, ServerState
from llmos.runtime.server.inference.infer import HEADER_LENGTH, infer_reply, parse_infer, parse_object
from llmos.runtime.server.openai.embeddings import EmbeddingRequest, embedding_reply, model_name, parse_embedding

_LOG = logging.getLogger("llmos.server")
_Result = TypeVar("_Result")

# Above this size, parsing would block the event loop for several ms, so it runs in a thread.
_INLINE_BYTES = 256 << 10
_INLINE_CHARS = 4096
_TIMEOUT_HEADER = b"x-request-timeout"


class Endpoint:
    """A POST handler as an ASGI app, which converts exceptions to the protocol's errors."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive)
        try:
            reply = await self._handler(exchange)
        except Exception as error:
            known = as_http_error(error)
            if known.status == 500:
                _LOG.exception("request %s failed", exchange.info.request_id)
            reply = error_reply(known, scope["path"])
        await reply.send(send)


class HotRoutes:
    """The handlers that run a model."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._settings = state.settings

    async def infer(self, exchange: Exchange) -> Reply:
        """POST /v2/models/{model}[/versions/{version}]/infer"""
        served = self._state.find(exchange.params["model"], exchange.params.get("version"))
        exchange.info.model = served.name
        signature = served.model.signature
        body = await self._body(exchange)
        request = await _maybe_in_thread(len(body), _INLINE_BYTES, lambda: parse_infer(body, exchange.header(HEADER_LENGTH), signature))
        timeout_s = min(self._timeout(exchange), request.timeout_s or math.inf)
        (arrays,) = await self._run(served, [request.inputs], timeout_s, exchange)
        num_values = sum(arrays[index].size for index, binary in request.outputs if not binary)
        return await _maybe_in_thread(num_values * 8, _INLINE_BYTES, lambda: infer_reply(request, served.name, VERSION, signature, arrays))

    async def embeddings(self, exchange: Exchange) -> Reply:
        """POST /v1/embeddings"""
        body = await self._body(exchange)
        document = await _maybe_in_thread(len(body), _INLINE_BYTES, partial(parse_object, body))
        served = self._state.find(model_name(document))
        exchange.info.model = served.name
        encoder = served.text
        if encoder is None:
            raise HttpError(400, f"'{served.name}' is no text embedding model: call it at /v2/models/{served.name}/infer", param="model")
        request = parse_embedding(document, encoder, matryoshka=bool(served.model.metadata.get("matryoshka")))
        tokens = await self._tokens(request, served)
        num_tokens = sum(map(len, tokens))
        inputs = [encoder.inputs(ids) for ids in tokens]
        results = await self._run(served, inputs, self._timeout(exchange), exchange)
        served.metrics.prompt_tokens.inc(num_tokens)
        rows = [outputs[0] for outputs in results]
        num_values = len(rows) * encoder.width
        return await _maybe_in_thread(num_values * 8, _INLINE_BYTES, lambda: embedding_reply(request, served.name, rows, num_tokens))

    async def _tokens(self, request: EmbeddingRequest, served: ServedModel) -> list[list[int]]:
        if request.tokens is not None:
            return request.tokens
        assert served.text is not None
        return await _maybe_in_thread(request.num_chars, _INLINE_CHARS, partial(served.text.encode, request.texts or []))

    async def _body(self, exchange: Exchange) -> bytes:
        return await read_body(exchange, self._settings.max_body_bytes, self._settings.timeout_s)

    def _timeout(self, exchange: Exchange) -> float:
        """Return the timeout in seconds: the server's, or a shorter one from the client's header."""
        value = exchange.header(_TIMEOUT_HEADER)
        if value is None:
            return self._settings.timeout_s
        try:
            asked_s = float(value)
        except ValueError:
            asked_s = math.nan
        if not asked_s > 0:
            raise HttpError(400, "X-Request-Timeout must be a number of seconds above 0")
        return min(asked_s, self._settings.timeout_s)

    async def _run(self, served: ServedModel, inputs: Sequence[Mapping[str, Array]], timeout_s: float, exchange: Exchange) -> list[Outputs]:
        exchange.info.num_items = len(inputs)
        try:
            return await run_on_engine(served.engine, inputs, timeout_s, exchange.receive)
        except QueueFullError:
            served.metrics.rejected.inc()
            raise


async def _maybe_in_thread(size: int, limit: int, work: Callable[[], _Result]) -> _Result:
    """Run small work inline and large work in a thread."""
    return work() if size <= limit else await asyncio.to_thread(work)
