"""The hot routes: infer and embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import orjson

from llmos.runtime.engine.model import Array
from llmos.runtime.engine.request import Outputs
from llmos.runtime.server.core.body import Body, hold, read_body
from llmos.runtime.server.core.content import read_document
from llmos.runtime.server.core.dispatch import INLINE_INPUTS, require_room, run_model
from llmos.runtime.server.core.endpoint import INLINE_CHARS, deadline
from llmos.runtime.server.core.http import Exchange, Reply
from llmos.runtime.server.core.json import INLINE_BYTES, PIECE_VALUES
from llmos.runtime.server.core.response_cache import CacheKey
from llmos.runtime.server.core.served import ServedModel
from llmos.runtime.server.core.state import ServerState
from llmos.runtime.server.inference.infer import HEADER_LENGTH, InferRequest, infer_reply, parse_infer
from llmos.runtime.server.openai.embeddings import EmbeddingRequest, embedding_reply, model_name, parse_embedding
from llmos.runtime.text.tokenizer import TextEncoder

_PIECE_CHARS = 64 << 10  # that are tokenized at once


class HotRoutes:
    """The handlers that run a model."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._settings = state.settings
        self._cache = state.responses

    def _encoders(self) -> dict[str, Any]:
        """Return the limits of the texts that each sentence encoder takes."""
        embedders = [served.embedder for served in self._state.models.values()]
        return {each.name: each.text.limits for each in embedders if each is not None and each.text is not None}

    async def infer(self, exchange: Exchange) -> Reply:
        """POST /v2/models/{model}[/versions/{version}]/infer"""
        deadline_s = deadline(exchange, self._settings.timeout_s)
        await self._state.registry.on_demand(exchange.params["model"], deadline_s)
        served = self._state.take_tensor_model(exchange.info, exchange.params["model"], exchange.params.get("version"))
        body = await read_body(exchange, self._state, deadline_s)
        small = body.small()
        key = None if small is None else self._key(exchange, served, "infer", exchange.header(HEADER_LENGTH) or "", small)
        if (kept := await self._cache.get(key, served.metrics)) is not None:
            return kept
        require_room(served)
        request = await self._parse_infer(exchange, served, body, small, deadline_s)
        if request.timeout_s is not None:
            deadline_s = min(deadline_s, exchange.info.start_s + request.timeout_s)
        (arrays,) = await self._run(served, [request.inputs], deadline_s, exchange)
        num_values = sum(arrays[index].size for index, _ in request.outputs)
        write = partial(infer_reply, request, served.name, str(served.version), served.model.signature, arrays)
        reply = write() if num_values <= PIECE_VALUES else await self._state.lanes.run(write, deadline_s, large=True)
        return self._keep(key, reply)

    def _key(self, exchange: Exchange, served: ServedModel, *parts: str | bytes) -> CacheKey | None:
        """Return the key of a request in the cache of responses; None if there is no cache."""
        return self._cache.key(exchange.info.principal, served.identity, served.name, str(served.version), *parts)

    def _keep(self, key: CacheKey | None, reply: Reply) -> Reply:
        self._cache.put(key, reply)
        return reply

    async def _parse_infer(
        self, exchange: Exchange, served: ServedModel, body: Body, small: bytes | None, deadline_s: float
    ) -> InferRequest:
        header_length = exchange.header(HEADER_LENGTH)
        signature = served.model.signature
        if small is not None:
            return parse_infer(small, header_length, signature)
        lanes = self._state.lanes
        if not body.encoding and header_length is not None and _is_small(header_length):
            return await lanes.run(lambda: parse_infer(body.joined(), header_length, signature), deadline_s, large=True)
        task = {"kind": "infer", "header_length": header_length, "encoding": body.encoding, "max_bytes": self._settings.max_body_bytes}
        num_json, reduced = await lanes.reduce(task, body.pieces, deadline_s)
        hold(exchange.info, self._state, len(reduced))
        return await lanes.run(lambda: parse_infer(reduced, str(num_json), signature), deadline_s, large=True)

    async def embeddings(self, exchange: Exchange) -> Reply:
        """POST /v1/embeddings"""
        deadline_s = deadline(exchange, self._settings.timeout_s)
        document, size = await read_document(exchange, self._state, "embeddings", self._encoders, deadline_s)
        served = self._state.take_embedder(exchange.info, model_name(document))
        encoder = served.text
        assert encoder is not None
        key = None if size is not None else self._key(exchange, served, "embeddings", orjson.dumps(document, option=orjson.OPT_SORT_KEYS))
        if (kept := await self._cache.get(key, served.metrics)) is not None:
            return kept
        require_room(served)
        parse = partial(parse_embedding, document, encoder, matryoshka=bool(served.model.metadata.get("matryoshka")))
        lanes = self._state.lanes
        request = parse() if size is None else await lanes.run(parse, deadline_s, large=True)
        tokens = await self._tokens(request, encoder, deadline_s)
        num_tokens = sum(map(len, tokens))
        if self._state.health is not None:
            self._state.health.admit_input(exchange.info, max(map(len, tokens)))
        make = partial(_inputs, encoder, tokens)
        inputs = make() if len(tokens) <= INLINE_INPUTS else await lanes.run(make, deadline_s, large=True)
        results = await self._run(served, inputs, deadline_s, exchange)
        served.metrics.prompt_tokens.inc(num_tokens)
        exchange.info.num_prompt_tokens = num_tokens
        rows = [outputs[0] for outputs in results]
        write = partial(embedding_reply, request, served.name, rows, num_tokens)
        reply = write() if len(rows) * encoder.width <= PIECE_VALUES else await lanes.run(write, deadline_s, large=True)
        return self._keep(key, reply)

    async def _tokens(self, request: EmbeddingRequest, encoder: TextEncoder, deadline_s: float) -> list[list[int]]:
        """Return the tokens of a request; many texts are tokenized some at a time, so that other requests come in between."""
        if request.tokens is not None:
            return request.tokens
        texts = request.texts or []
        if request.num_chars <= INLINE_CHARS:
            return encoder.encode(texts)
        tokens: list[list[int]] = []
        large = request.num_chars > _PIECE_CHARS
        for piece in _pieces(texts):
            tokens += await self._state.lanes.run(partial(encoder.encode, piece), deadline_s, large=large)
        return tokens

    async def _run(
        self, served: ServedModel, inputs: Sequence[Mapping[str, Array]], deadline_s: float, exchange: Exchange
    ) -> list[Outputs]:
        return await run_model(served, self._state.lanes, exchange.info, inputs, deadline_s, exchange.receive)


def _is_small(header_length: str) -> bool:
    return header_length.isdecimal() and len(header_length) <= 5 and int(header_length) <= INLINE_BYTES


def _pieces(texts: Sequence[str]) -> list[list[str]]:
    """Return texts in lists of up to _PIECE_CHARS characters, or of one."""
    pieces: list[list[str]] = [[]]
    room = _PIECE_CHARS
    for text in texts:
        if len(text) > room and pieces[-1]:
            pieces.append([])
            room = _PIECE_CHARS
        pieces[-1].append(text)
        room -= len(text)
    return pieces


def _inputs(encoder: TextEncoder, tokens: Sequence[Sequence[int]]) -> list[dict[str, Array]]:
    return [encoder.inputs(ids) for ids in tokens]
