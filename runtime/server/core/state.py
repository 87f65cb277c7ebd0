"""The state of a running server: its models with their engines, and whether it is draining."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llmos.runtime.errors import UserError
from llmos.runtime.server.core.errors import HttpError
from llmos.runtime.server.core.guard import Guard
from llmos.runtime.server.core.health.monitor import HealthMonitor
from llmos.runtime.server.core.http import RequestInfo
from llmos.runtime.server.core.language import AnyModel, load_served
from llmos.runtime.server.core.loader import LoadModel
from llmos.runtime.server.core.metrics import Metrics
from llmos.runtime.server.core.registry import Registry
from llmos.runtime.server.core.repository import Repository
from llmos.runtime.server.core.response_cache import ResponseCache
from llmos.runtime.server.core.served import Builder, Served, ServedLanguageModel, ServedModel
from llmos.runtime.server.core.settings import ServerSettings
from llmos.runtime.server.core.work import Lanes

if TYPE_CHECKING:
    from llmos.runtime.server.core.telemetry import Telemetry


class Uploads:
    """The time limits of bodies that are being received, which a shutdown shortens."""

    def __init__(self) -> None:
        self._limits: dict[asyncio.Timeout, float] = {}
        self._ending = False

    @contextmanager
    def shortened(self, limit: asyncio.Timeout, after_s: float) -> Iterator[None]:
        """Shorten a limit to `after_s` seconds from when a shutdown begins."""
        self._limits[limit] = after_s
        if self._ending:
            self._shorten(limit, after_s)
        try:
            yield
        finally:
            del self._limits[limit]

    def end(self) -> None:
        self._ending = True
        for limit, after_s in self._limits.items():
            self._shorten(limit, after_s)

    @staticmethod
    def _shorten(limit: asyncio.Timeout, after_s: float) -> None:
        end_s = asyncio.get_running_loop().time() + after_s
        when_s = limit.when()
        limit.reschedule(end_s if when_s is None else min(when_s, end_s))


class ServerState:
    """The models by name, the metrics, and the server's lifecycle.

    num_active: HTTP requests in progress, counted by the gateway. held_bytes, answer_bytes: of their bodies, and of answers that are not
    read. ready: whether balancers shall send more. draining: whether new requests are refused.
    """

    def __init__(
        self,
        models: Sequence[AnyModel],
        settings: ServerSettings,
        repository: Repository | None = None,
        load_model: LoadModel = load_served,
    ) -> None:
        repository = repository or Repository()
        if not models and repository.folder is None:
            raise UserError("there is no model to serve: name at least one artifact, or a repository of models")
        self.settings = settings
        self.metrics = Metrics()
        self.num_active = 0
        self.held_bytes = 0
        self.answer_bytes = 0
        self.ready = True
        self.draining = False
        self.uploads = Uploads()
        self.lanes = Lanes()
        self.guard = Guard(settings)
        self.telemetry = _telemetry(settings.otlp_endpoint)
        self.responses = ResponseCache(settings, self.metrics)
        self.registry = Registry(models, repository, Builder(settings, self.metrics), load_model)
        self.registry.load_at_start()
        self.health = None if settings.health is None else HealthMonitor(settings.health, self.registry, self.metrics)

    @property
    def models(self) -> Mapping[str, Served]:
        """Return the models by name, each in its highest version."""
        return self.registry.current()

    def take_tensor_model(self, info: RequestInfo, name: str, version: str | None = None) -> ServedModel:
        """Return a served model of tensors, which the request keeps until it ends. Raises HttpError 404, or 400 for a language model."""
        found = self.registry.find(name, version)
        if isinstance(found, ServedLanguageModel):
            message = f"'{name}' is a language model: call it at /v1/completions or /v1/chat/completions"
            raise HttpError(400, message, param="model")
        info.take(found.name, found.use)
        return found

    def take_embedder(self, info: RequestInfo, name: str) -> ServedModel:
        """Return what embeds texts, a sentence encoder or a part of a language model, which the request keeps until it ends.

        Raises HttpError 404, or 400 for another model.
        """
        found = self.registry.find(name)
        if found.embedder is None:
            if isinstance(found, ServedLanguageModel):
                message = f"'{name}' was compiled without --embeddings: call it at /v1/completions or /v1/chat/completions"
            else:
                message = f"'{name}' is no text embedding model: call it at /v2/models/{name}/infer"
            raise HttpError(400, message, param="model")
        info.take(found.name, found.use)
        return found.embedder

    def take_language_model(self, info: RequestInfo, name: str) -> ServedLanguageModel:
        """Return a served language model, which the request keeps until it ends. Raises HttpError 404, or 400 for another model."""
        found = self.registry.find(name)
        if not isinstance(found, ServedLanguageModel):
            route = "/v1/embeddings" if found.text is not None else f"/v2/models/{name}/infer"
            raise HttpError(400, f"'{name}' is no language model: call it at {route}", param="model")
        info.take(found.name, found.use)
        return found

    def begin_drain(self) -> None:
        """Take no more requests: new ones are rejected, queued ones still run."""
        self.ready = False
        self.draining = True
        self.uploads.end()
        self.registry.stop_accepting()

    def is_idle(self) -> bool:
        """Return whether all requests have been answered."""
        return not self.num_active and self.registry.is_idle()

    def abort(self) -> None:
        """End the remaining requests with a 503; a running model call can't be interrupted."""
        self.registry.abort()

    def close(self) -> None:
        self.lanes.close()
        self.responses.close()
        self.registry.close()
        if self.telemetry is not None:
            self.telemetry.close()


def _telemetry(endpoint: str) -> Telemetry | None:
    """Return what takes note of ended requests, None where nobody wants it. Raises UserError where its packages are missing."""
    if not endpoint:
        return None
    try:
        from llmos.runtime.server.core.telemetry import Telemetry
    except ImportError as error:
        raise UserError(f"telemetry needs packages that are not installed ({error.name}): pip install llmos[otel]") from error
    return Telemetry(endpoint)
