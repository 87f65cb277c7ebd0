"""The repository extension of the Open Inference Protocol: what models there are, and to load and unload them.

As in Triton's `extension_model_repository`, and a reload that loads also what has not changed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.routing import Route

from llmos.runtime.server.core.body import read_body
from llmos.runtime.server.core.endpoint import Endpoint, deadline
from llmos.runtime.server.core.errors import HttpError
from llmos.runtime.server.core.http import Exchange, Reply
from llmos.runtime.server.core.json import parse_object
from llmos.runtime.server.core.state import ServerState

REPOSITORY = "/v2/repository"
_MODEL = f"{REPOSITORY}/models/{{model}}"
_IGNORED = frozenset({"unload_dependents"})  # there are none


class RepositoryRoutes:
    """The handlers that list and change the models of a server."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._registry = state.registry

    def routes(self) -> list[Route]:
        """Return the routes, as plain ASGI apps."""
        handlers = {
            f"{REPOSITORY}/index": self.index,
            f"{_MODEL}/load": self.load,
            f"{_MODEL}/unload": self.unload,
            f"{_MODEL}/reload": self.reload,
        }
        return [Route(path, Endpoint(path, handler, self._state), methods=["POST"]) for path, handler in handlers.items()]

    async def index(self, exchange: Exchange) -> Reply:
        """POST /v2/repository/index"""
        ready = (await self._document(exchange)).get("ready", False)
        if not isinstance(ready, bool):
            raise HttpError(400, "'ready' must be true or false")
        return Reply.json([state.to_json() for state in await self._registry.index(ready_only=ready)])

    async def load(self, exchange: Exchange) -> Reply:
        """POST /v2/repository/models/{model}/load"""
        return await self._change(exchange, self._registry.load)

    async def reload(self, exchange: Exchange) -> Reply:
        """POST /v2/repository/models/{model}/reload"""
        return await self._change(exchange, lambda name: self._registry.load(name, again=True))

    async def unload(self, exchange: Exchange) -> Reply:
        """POST /v2/repository/models/{model}/unload"""
        return await self._change(exchange, self._registry.unload)

    async def _change(self, exchange: Exchange, change: Callable[[str], Awaitable[None]]) -> Reply:
        check_parameters((await self._document(exchange)).get("parameters"))
        name = exchange.params["model"]
        exchange.info.ask_for(name)
        self._registry.require_control(name)
        await change(name)
        return Reply.json({})

    async def _document(self, exchange: Exchange) -> dict[str, Any]:
        """Return the request's object; its body may be empty."""
        body = await read_body(exchange, self._state, deadline(exchange, self._state.settings.timeout_s))
        content = body.small()
        if content is None:
            raise HttpError(413, "the request's body is too large: it takes a few parameters")
        return parse_object(content) if content else {}


def check_parameters(parameters: object) -> None:
    """Raise HttpError 400 for parameters of a load or unload that would change what is loaded."""
    if parameters is not None and not isinstance(parameters, dict):
        raise HttpError(400, "'parameters' must be an object")
    refused = next((str(key) for key in parameters or () if key not in _IGNORED), None)
    if refused is not None:
        raise HttpError(400, f"the parameter '{refused:.60}' isn't supported: a model is loaded as its artifact is")
