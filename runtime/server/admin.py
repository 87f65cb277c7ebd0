"""The app of the admin port: what changes a running server, apart from what its clients may do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Response
from starlette.routing import Route

from llmos.runtime.server.core.body import read_body
from llmos.runtime.server.core.endpoint import Endpoint, deadline
from llmos.runtime.server.core.errors import HttpError
from llmos.runtime.server.core.gateway import Gateway
from llmos.runtime.server.core.health.monitor import HealthMonitor
from llmos.runtime.server.core.http import Exchange, Reply
from llmos.runtime.server.core.json import parse_object
from llmos.runtime.server.core.state import ServerState
from llmos.runtime.server.framework import add_error_handlers
from llmos.runtime.server.probes import add_probes
from llmos.runtime.server.repository_routes import RepositoryRoutes

_MAX_SCORE = 1e9


def create_admin_app(state: ServerState, drain: Callable[[], None]) -> FastAPI:
    """Create the app. drain: begins what a SIGTERM begins."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.router.routes.extend(RepositoryRoutes(state).routes())

    add_probes(app, state)

    @app.post("/drain")
    async def begin_drain(response: Response) -> dict[str, bool]:
        response.status_code = 202
        if state.ready:
            drain()
        return {"draining": True}

    if state.health is not None:
        _add_health_matrix(app, state, state.health)
    add_error_handlers(app)
    app.add_middleware(Gateway, state=state, admin=True)
    return app


def _add_health_matrix(app: FastAPI, state: ServerState, health: HealthMonitor) -> None:
    @app.get("/v2/health/matrix")
    async def matrix() -> dict[str, Any]:
        return health.report()

    async def score(exchange: Exchange) -> Reply:
        """POST /v2/health/scores"""
        content = (await read_body(exchange, state, deadline(exchange, state.settings.timeout_s))).small()
        if content is None:
            raise HttpError(413, "the request's body is too large: it takes a model and a score")
        document = parse_object(content)
        model, value = document.get("model"), document.get("score")
        if not isinstance(model, str) or isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_SCORE:
            raise HttpError(400, f"give a 'model' and its 'score', a number from 0 to {_MAX_SCORE:g}, higher being better")
        health.add_score(model, float(value))
        return Reply.json({})

    app.router.routes.append(Route("/v2/health/scores", Endpoint("/v2/health/scores", score, state), methods=["POST"]))
