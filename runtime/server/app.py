"""The app: routes, their order, and the lifespan."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response
from starlette.routing import Route

from llmos.runtime.server.console import console
from llmos.runtime.server.core.endpoint import Endpoint
from llmos.runtime.server.core.follower import Follower
from llmos.runtime.server.core.gateway import Gateway
from llmos.runtime.server.core.language import AnyModel, LanguageModel, load_served
from llmos.runtime.server.core.loader import LoadModel
from llmos.runtime.server.core.repository import Repository
from llmos.runtime.server.core.served import ServedLanguageModel
from llmos.runtime.server.core.settings import ServerSettings
from llmos.runtime.server.core.state import ServerState
from llmos.runtime.server.framework import add_error_handlers, as_response
from llmos.runtime.server.generation_routes import GenerationRoutes
from llmos.runtime.server.inference.metadata import model_metadata, server_metadata
from llmos.runtime.server.inference.tensors import require_datatypes
from llmos.runtime.server.openapi import document, page
from llmos.runtime.server.probes import add_probes
from llmos.runtime.server.repository_routes import RepositoryRoutes
from llmos.runtime.server.routes import HotRoutes

_MODEL = "/v2/models/{model}"
_MODEL_VERSION = "/v2/models/{model}/versions/{version}"


def create_app(
    models: Sequence[AnyModel],
    settings: ServerSettings | None = None,
    repository: Repository | None = None,
    load_model: LoadModel = load_served,
) -> FastAPI:
    """Create an app that serves models, and those of a repository. Its `state.server` is the ServerState; the end of its lifespan closes
    the engines. load_model: loads an artifact as a model of a name.

    Raises UserError for no models, equal names, a name that isn't valid in a URL, or a dtype that the protocol lacks.
    """

    def checked(path: Path, name: str) -> AnyModel:
        return _checked(load_model(path, name))

    state = ServerState(list(map(_checked, models)), settings or ServerSettings(), repository, checked)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(Follower(state.registry).run())]
        if state.health is not None:
            tasks.append(asyncio.create_task(state.health.run()))
        yield
        for task in tasks:
            task.cancel()
        state.close()

    app = FastAPI(lifespan=lifespan, openapi_url=None, redirect_slashes=False)
    app.state.server = state
    _add_hot_routes(app, state)
    if state.settings.repository_api:
        app.router.routes.extend(RepositoryRoutes(state).routes())
    add_probes(app, state)
    _add_metadata(app, state)
    _add_openai_models(app, state)
    _add_documentation(app, state)
    add_error_handlers(app)
    app.add_middleware(Gateway, state=state)
    return app


def _checked(model: AnyModel) -> AnyModel:
    if not isinstance(model, LanguageModel):
        require_datatypes(model)
    return model


def _add_hot_routes(app: FastAPI, state: ServerState) -> None:
    """Add the hot routes first in the router, so that they match first, as plain ASGI apps, which avoids FastAPI's overhead."""
    routes, generation = HotRoutes(state), GenerationRoutes(state)
    hot = {
        f"{_MODEL}/infer": routes.infer,
        "/v1/embeddings": routes.embeddings,
        "/v1/completions": generation.completions,
        "/v1/chat/completions": generation.chat,
        f"{_MODEL_VERSION}/infer": routes.infer,
    }
    app.router.routes[:0] = [Route(path, Endpoint(path, handler, state), methods=["POST"]) for path, handler in hot.items()]


def _add_metadata(app: FastAPI, state: ServerState) -> None:
    @app.get("/v2")
    async def server() -> dict[str, Any]:
        return server_metadata(state)

    async def found(model: str, version: str | None = None) -> dict[str, Any]:
        await state.registry.on_demand(model, time.perf_counter() + state.settings.timeout_s)
        return model_metadata(state, model, version)

    @app.get(_MODEL)
    async def metadata(model: str) -> dict[str, Any]:
        return await found(model)

    @app.get(_MODEL_VERSION)
    async def version_metadata(model: str, version: str) -> dict[str, Any]:
        return await found(model, version)

    @app.get(f"{_MODEL}/ready")
    async def ready(response: Response, model: str) -> dict[str, Any]:
        return await _ready(response, model, None)

    @app.get(f"{_MODEL_VERSION}/ready")
    async def version_ready(response: Response, model: str, version: str) -> dict[str, Any]:
        return await _ready(response, model, version)

    async def _ready(response: Response, model: str, version: str | None) -> dict[str, Any]:
        is_ready = await state.registry.is_ready(model, version) and state.ready
        response.status_code = 200 if is_ready else 503
        return {"name": model, "ready": is_ready}


def _add_openai_models(app: FastAPI, state: ServerState) -> None:
    def card(name: str) -> dict[str, Any]:
        served = state.models.get(name)  # None for one that is loaded when a request needs it
        length = {"max_model_len": served.text.spec.max_length} if isinstance(served, ServedLanguageModel) else {}  # vLLM's name
        return {"id": name, "object": "model", "created": 0, "owned_by": "llmos", **length}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        names = dict.fromkeys([*state.models, *await asyncio.to_thread(state.registry.repository.dynamic_names)])
        return {"object": "list", "data": list(map(card, names))}

    @app.get("/v1/models/{model}")
    async def model(model: str) -> dict[str, Any]:
        await state.registry.is_ready(model)
        return card(model)


def _add_documentation(app: FastAPI, state: ServerState) -> None:
    found = document(keys=bool(state.settings.api_keys), root_path=state.settings.root_path, repository=state.settings.repository_api)

    @app.get("/openapi.json")
    async def openapi() -> dict[str, Any]:
        return found

    @app.get("/")
    async def page_of_server() -> Response:
        return as_response(console())

    @app.get("/docs")
    async def docs() -> Response:
        return Response(page(found), media_type="text/html")
