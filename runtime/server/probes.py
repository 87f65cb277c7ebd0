"""The routes by which a server is watched, at its port and the operator's."""

from __future__ import annotations

from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST

from llmos.runtime.server.core.state import ServerState


def add_probes(app: FastAPI, state: ServerState) -> None:
    """Add health and metrics."""

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
