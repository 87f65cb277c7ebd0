"""The hot routes: infer and embeddings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

from llmos.runtime.engine import QueueFullError
from llmos.runtime.engine.model import Array
from llmos.runtime.engine.request import Outputs
from llmos.runtime.server.core.body import read_body
from llmos.runtime.server.core.dispatch import run_on_engine
from llmos.runtime.server.core.endpoint import INLINE_BYTES, INLINE_CHARS, maybe_in_thread, request_timeout
from llmos.runtime.server.core.errors import HttpError
from llmos.runtime.server.core.http import Exchange, Reply
from llmos.runtime.server.core.state import VERSION, ServedModel, ServerState
from llmos.runtime.server.inference.infer import HEADER_LENGTH, infer_reply, parse_infer, parse_object
from llmos.runtime.server.openai.embeddings import EmbeddingRequest, embedding_reply, model_name, parse_embedding


class HotRoutes:
    """The handlers that run a model."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._settings = state.settings

    async def infer(self, exchange: Exchange) -> Reply:
        """POST /v2/models/{model}[/versions/{version}]/infer"""
        served = self._state.find_tensor_model(exchange.params["model"], exchange.params.get("version"))
        exchange.info.model = served.name
        signature = served.model.signature
        body = await self._body(exchange)
        request = await maybe_in_thread(len(body), INLINE_BYTES, lambda: parse_infer(body, exchange.header(HEADER_LENGTH), signature))
        timeout_s = min(request_timeout(exchange, self._settings.timeout_s), request.timeout_s or math.inf)
        (arrays,) = await self._run(served, [request.inputs], timeout_s, exchange)
        num_values = sum(arrays[index].size for index, binary in request.outputs if not binary)
        return await maybe_in_thread(num_values * 8, INLINE_BYTES, lambda: infer_reply(request, served.name, VERSION, signature, arrays))

    async def embeddings(self, exchange: Exchange) -> Reply:
        """POST /v1/embeddings"""
        body = await self._body(exchange)
        document = await maybe_in_thread(len(body), INLINE_BYTES, partial(parse_object, body))
        served = self._state.find_tensor_model(model_name(document))
        exchange.info.model = served.name
        encoder = served.text
        if encoder is None:
            raise HttpError(400, f"'{served.name}' is no text embedding model: call it at /v2/models/{served.name}/infer", param="model")
        request = parse_embedding(document, encoder, matryoshka=bool(served.model.metadata.get("matryoshka")))
        tokens = await self._tokens(request, served)
        num_tokens = sum(map(len, tokens))
        inputs = [encoder.inputs(ids) for ids in tokens]
        results = await self._run(served, inputs, request_timeout(exchange, self._settings.timeout_s), exchange)
        served.metrics.prompt_tokens.inc(num_tokens)
        rows = [outputs[0] for outputs in results]
        num_values = len(rows) * encoder.width
        return await maybe_in_thread(num_values * 8, INLINE_BYTES, lambda: embedding_reply(request, served.name, rows, num_tokens))

    async def _tokens(self, request: EmbeddingRequest, served: ServedModel) -> list[list[int]]:
        if request.tokens is not None:
            return request.tokens
        assert served.text is not None
        return await maybe_in_thread(request.num_chars, INLINE_CHARS, partial(served.text.encode, request.texts or []))

    async def _body(self, exchange: Exchange) -> bytes:
        return await read_body(exchange, self._settings.max_body_bytes, self._settings.timeout_s)

    async def _run(self, served: ServedModel, inputs: Sequence[Mapping[str, Array]], timeout_s: float, exchange: Exchange) -> list[Outputs]:
        exchange.info.num_items = len(inputs)
        try:
            return await run_on_engine(served.engine, inputs, timeout_s, exchange.receive)
        except QueueFullError:
            served.metrics.rejected.inc()
            raise
