"""The service of the Open Inference Protocol over gRPC: the same models, keys, quotas, limits and checks as over REST."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn
from urllib.parse import unquote

import grpc

from llmos.runtime.server.core.body import DRAIN_S, hold
from llmos.runtime.server.core.dispatch import require_room, run_model
from llmos.runtime.server.core.errors import HttpError, as_http_error
from llmos.runtime.server.core.gateway import ACCESS_LOG, access_line, request_id
from llmos.runtime.server.core.http import Reply, RequestInfo, left_s
from llmos.runtime.server.core.json import INLINE_BYTES, PIECE_VALUES, parse_object
from llmos.runtime.server.core.state import ServerState
from llmos.runtime.server.inference.infer import BinaryData, Tail, read_infer
from llmos.runtime.server.inference.metadata import model_metadata, server_metadata
from llmos.runtime.server.repository_routes import check_parameters
from llmos.runtime.server.rpc.messages import Pieces, bytes_field, document_of, infer_response, parsed, pb2, split

SERVICE, HEALTH = "inference.GRPCInferenceService", "grpc.health.v1.Health"
_SERVING, _NOT_SERVING = b"\x08\x01", b"\x08\x02"  # HealthCheckResponse
_STREAM_ERROR, _STREAM_RESPONSE = 1, 2  # fields of ModelStreamInferResponse
_LOG = logging.getLogger("llmos.server")
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


@dataclass
class Call:
    """One request. deadline_s: of time.perf_counter. code, status: what gRPC and HTTP call its outcome."""

    info: RequestInfo
    deadline_s: float
    code: str = "OK"
    status: int = 200


Method = Callable[[bytes, Call], Awaitable[bytes]]


class Service:
    """The methods, which take and give serialized messages."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._registry = state.registry
        self._log = logging.getLogger(ACCESS_LOG) if state.settings.access_log else None

    def handlers(self) -> list[Any]:
        """Return the handlers of gRPC.

        All read a stream, as which a single message arrives as well, so that a key is looked at before a message is read.
        """
        methods: dict[str, Method] = {
            "ModelReady": self.model_ready,
            "ServerMetadata": self.server_metadata,
            "ModelMetadata": self.model_metadata,
            "ModelInfer": self.model_infer,
        }
        changes: dict[str, Method] = {
            "RepositoryIndex": self.repository_index,
            "RepositoryModelLoad": self.repository_load,
            "RepositoryModelUnload": self.repository_unload,
        }
        found = {name: self._unary(name, method, counts=name == "ModelInfer") for name, method in methods.items()}
        found |= {name: self._unary(name, method, open_to_all=True) for name, method in self._probes().items()}
        if self._state.settings.repository_api:
            found |= {name: self._unary(name, method, admin=True) for name, method in changes.items()}
        found["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream_infer)
        health = {"Check": self._unary("Check", self.health_check, service=HEALTH, open_to_all=True)}
        return [grpc.method_handlers_generic_handler(SERVICE, found), grpc.method_handlers_generic_handler(HEALTH, health)]

    def _probes(self) -> dict[str, Method]:
        async def live(_: bytes, call: Call) -> bytes:
            return bytes(pb2.ServerLiveResponse(live=True).SerializeToString())

        async def ready(_: bytes, call: Call) -> bytes:
            return bytes(pb2.ServerReadyResponse(ready=self._state.ready).SerializeToString())

        return {"ServerLive": live, "ServerReady": ready}

    # The methods.

    async def health_check(self, message: bytes, call: Call) -> bytes:
        """Answer gRPC's own health protocol, which Kubernetes probes speak."""
        return _SERVING if self._state.ready else _NOT_SERVING

    async def model_ready(self, message: bytes, call: Call) -> bytes:
        request = parsed(pb2.ModelReadyRequest, message)
        try:
            ready = self._state.ready and await self._registry.is_ready(request.name, request.version)
        except HttpError:  # there is no such model
            ready = False
        return bytes(pb2.ModelReadyResponse(ready=ready).SerializeToString())

    async def server_metadata(self, message: bytes, call: Call) -> bytes:
        return bytes(pb2.ServerMetadataResponse(**server_metadata(self._state)).SerializeToString())

    async def model_metadata(self, message: bytes, call: Call) -> bytes:
        request = parsed(pb2.ModelMetadataRequest, message)
        await self._registry.on_demand(request.name, call.deadline_s)
        found = model_metadata(self._state, request.name, request.version)
        return bytes(pb2.ModelMetadataResponse(**found).SerializeToString())

    async def model_infer(self, message: bytes, call: Call) -> bytes:
        lanes, info = self._state.lanes, call.info
        large = len(message) > INLINE_BYTES
        if large:
            hold(info, self._state, len(message))
        document, data = await self._document(message, call)
        await self._registry.on_demand(document["model_name"], call.deadline_s)
        served = self._state.take_tensor_model(info, document["model_name"], document["model_version"])
        cache = self._state.responses
        key = None if large else cache.key(info.principal, served.identity, served.name, str(served.version), "grpc", message)
        if (kept := await cache.get(key, served.metrics)) is not None:
            return kept.body
        require_room(served)
        read = partial(read_infer, document, data, served.model.signature)
        request = await lanes.run(read, call.deadline_s, large=True) if large else read()
        if request.timeout_s is not None:
            call.deadline_s = min(call.deadline_s, info.start_s + request.timeout_s)
        (arrays,) = await run_model(served, lanes, info, [request.inputs], call.deadline_s)
        write = partial(infer_response, request, served.name, str(served.version), served.model.signature, arrays)
        small = sum(arrays[index].size for index, _ in request.outputs) <= PIECE_VALUES
        answer = write() if small else await lanes.run(write, call.deadline_s, large=True)
        cache.put(key, Reply(200, answer, b"application/grpc"))
        return answer

    async def _document(self, message: bytes, call: Call) -> tuple[dict[str, Any], BinaryData]:
        """Return a request's document and its binary data, in work that does not depend on what it holds."""
        rest, raw = split(message)
        if len(rest) <= INLINE_BYTES:
            document, pieces = document_of(rest, raw)
            return document, Pieces(pieces)
        if raw:
            raise HttpError(400, f"the request beside its raw_input_contents is larger than {INLINE_BYTES} bytes")
        task = {"kind": "grpc", "encoding": "", "max_bytes": self._state.settings.max_body_bytes}
        num_json, reduced = await self._state.lanes.reduce(task, [rest], call.deadline_s)
        hold(call.info, self._state, len(reduced))
        return parse_object(memoryview(reduced)[:num_json]), Tail(memoryview(reduced)[num_json:])

    async def repository_index(self, message: bytes, call: Call) -> bytes:
        request = parsed(pb2.RepositoryIndexRequest, message)
        states = await self._registry.index(ready_only=request.ready)
        return bytes(pb2.RepositoryIndexResponse(models=[state.to_json() for state in states]).SerializeToString())

    async def repository_load(self, message: bytes, call: Call) -> bytes:
        await self._change(parsed(pb2.RepositoryModelLoadRequest, message), call, self._registry.load)
        return b""

    async def repository_unload(self, message: bytes, call: Call) -> bytes:
        await self._change(parsed(pb2.RepositoryModelUnloadRequest, message), call, self._registry.unload)
        return b""

    async def _change(self, request: Any, call: Call, change: Callable[[str], Awaitable[None]]) -> None:
        check_parameters(dict(request.parameters))
        call.info.ask_for(request.model_name)
        self._registry.require_control(request.model_name)
        await change(request.model_name)

    # What is common to them.

    def _unary(
        self, name: str, method: Method, *, service: str = SERVICE, admin: bool = False, open_to_all: bool = False, counts: bool = False
    ) -> Any:
        path = f"/{service}/{name}"

        async def handle(messages: AsyncIterator[bytes], context: Any) -> bytes:
            call = self._call(context)
            try:
                with self._counted(call, path, context):
                    self._identify(call, context, admin=admin, open_to_all=open_to_all)
                    if counts:
                        self._state.guard.count(call.info)
                    message = await self._message(messages, call)
                    if len(message) > INLINE_BYTES and method != self.model_infer:  # parsing it would hold the event loop
                        raise HttpError(413, f"the request is larger than {INLINE_BYTES} bytes")
                    return await method(message, call)
            except HttpError as error:
                await _abort(context, error)

        return grpc.stream_unary_rpc_method_handler(handle)

    async def _stream_infer(self, messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Answer the requests of a stream one after the other; an error of one is its answer."""
        call, path = self._call(context), f"/{SERVICE}/ModelStreamInfer"
        try:
            self._identify(call, context)
        except HttpError as error:
            with suppress(HttpError), self._counted(call, path, context):
                raise
            await _abort(context, error)
        while (message := await self._next_of_stream(messages, context)) is not None:
            call = self._call(context)
            try:
                with self._counted(call, path, context):
                    self._identify(call, context)
                    self._state.guard.count(call.info)
                    answer = bytes_field(_STREAM_RESPONSE, await self.model_infer(message, call))
            except HttpError as error:
                answer = bytes_field(_STREAM_ERROR, str(error).encode())
            yield b"".join(answer)

    def _call(self, context: Any) -> Call:
        start_s, most_s, remaining_s = time.perf_counter(), self._state.settings.timeout_s, context.time_remaining()
        info = RequestInfo(request_id(_metadata(context).get("x-request-id", b"")), start_s)
        info.phases = None if self._state.telemetry is None else []
        return Call(info, start_s + (most_s if remaining_s is None else min(most_s, remaining_s)))

    def _identify(self, call: Call, context: Any, *, admin: bool = False, open_to_all: bool = False) -> None:
        found = _metadata(context)
        if self._state.health is not None and not open_to_all:
            self._state.health.check(_client(context))
        given = found.get("authorization", b""), found.get("x-api-key", b"")
        self._state.guard.identify(call.info, *given, admin=admin, open_to_all=open_to_all)

    async def _next_of_stream(self, messages: AsyncIterator[bytes], context: Any) -> bytes | None:
        """Return the next message, None at the end. A shutdown ends a stream that says nothing, which could wait for ever."""
        try:
            async with asyncio.timeout(None) as limit:
                with self._state.uploads.shortened(limit, DRAIN_S):
                    return await anext(messages, None)
        except TimeoutError:
            await _abort(context, _shutting_down())

    async def _message(self, messages: AsyncIterator[bytes], call: Call) -> bytes:
        """Read the message of a call. Raises HttpError 408, or 503 if a shutdown has begun meanwhile.

        What of it has arrived is not known before all has.
        """
        try:
            async with asyncio.timeout(left_s(call.deadline_s)) as limit:
                with self._state.uploads.shortened(limit, DRAIN_S):
                    return await anext(messages)
        except StopAsyncIteration:
            raise HttpError(400, "the request has no message") from None
        except TimeoutError:
            if self._state.draining:
                raise _shutting_down() from None
            raise HttpError(408, "the request did not arrive in time") from None

    @contextmanager
    def _counted(self, call: Call, path: str, context: Any) -> Any:
        """Count a request, charge for it, and log it. Errors become HttpErrors."""
        state, info = self._state, call.info
        state.num_active += 1
        try:
            yield
        except asyncio.CancelledError:
            call.code, call.status = grpc.StatusCode.CANCELLED.name, 499
            raise
        except Exception as error:
            known = as_http_error(error)
            if known.status == 500:
                _LOG.exception("request %s failed", info.request_id)
            call.code, call.status = _code(known).name, known.status
            raise known from error
        finally:
            state.num_active -= 1
            state.held_bytes -= info.held_bytes
            info.release()
            state.guard.charge(info)
            state.metrics.grpc.labels(path, call.code).inc()
            if state.health is not None:
                state.health.observe(info, call.status, _client(context))
            if state.telemetry is not None and info.model is not None:
                found = _metadata(context)
                parent, more = (found.get(name, b"").decode("latin-1") for name in ("traceparent", "tracestate"))
                state.telemetry.record(info, f"gRPC {path}", call.status, parent, more)
            if self._log is not None:
                self._log.info(access_line(info, "gRPC", path, _client(context), call.code))


def _shutting_down() -> HttpError:
    return HttpError(503, "the server is shutting down: send the request to another one", code="shutting_down")


async def _abort(context: Any, error: HttpError) -> NoReturn:
    """End a call with an error; what HTTP says in a header is said in the trailing metadata."""
    trailing = tuple((name.decode(), value.decode()) for name, value in error.headers if name == b"retry-after")
    await context.abort(_code(error), str(error), trailing)
    raise AssertionError  # abort has raised


def _code(error: HttpError) -> grpc.StatusCode:
    return _CODES.get(error.status, grpc.StatusCode.UNKNOWN)


def _metadata(context: Any) -> Mapping[str, bytes]:
    found = context.invocation_metadata() or ()
    return {key: value if isinstance(value, bytes) else value.encode("utf-8", "replace") for key, value in found}


def _client(context: Any) -> str:
    """Return the address of the client as HTTP knows it: `ipv6:%5B::1%5D:5000` without its protocol, brackets and port."""
    return unquote(str(context.peer()).partition(":")[2].rpartition(":")[0]).strip("[]")
