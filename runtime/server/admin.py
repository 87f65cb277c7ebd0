"""The app of the admin port: what changes a running server, apart from what its clients may do."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST

from llmos.runtime.server.core.gateway import Gateway
from llmos.runtime.server.core.state import ServerState
from llmos.runtime.server.framework import add_error_handlers
from llmos.runtime.server.repository_routes import RepositoryRoutes


def create_admin_app(state: ServerState, drain: Callable[[], None]) -> FastAPI:
    """Create the app. drain: begins what a SIGTERM begins."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.router.routes.extend(RepositoryRoutes(state).routes())

    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready")
    async def ready(response: Response) -> dict[str, bool]:
        response.status_code = 200 if state.ready else 503
        return {"ready": state.ready}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(state.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @app.post("/drain")
    async def begin_drain(response: Response) -> dict[str, bool]:
        response.status_code = 202
        if state.ready:
            drain()
        return {"draining": True}

    add_error_handlers(app)
    app.add_middleware(Gateway, state=state, admin=True)
    return app
