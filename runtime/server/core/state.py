"""The state of a running server: its models with their engines, and whether it is draining."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass

from llmos.runtime.engine import Engine, EngineOptions, Model
from llmos.runtime.errors import UserError
from llmos.runtime.server.core.errors import HttpError
from llmos.runtime.server.core.metrics import Metrics, ModelMetrics
from llmos.runtime.server.core.settings import ServerSettings
from llmos.runtime.text.tokenizer import TextEncoder, is_sentence_encoder

VERSION = "1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class ServedModel:
    """A model with its engine. text: for sentence encoders with a tokenizer; None otherwise."""

    model: Model
    engine: Engine
    metrics: ModelMetrics
    text: TextEncoder | None

    @property
    def name(self) -> str:
        return self.model.name


class ServerState:
    """The models by name, the metrics, and the server's lifecycle. num_active: HTTP requests in progress, counted by the gateway."""

    def __init__(self, models: Sequence[Model], settings: ServerSettings) -> None:
        if not models:
            raise UserError("there is no model to serve: name at least one artifact")
        for model in models:
            _check(model)
        names = [model.name for model in models]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise UserError(f"two models are named '{repeated}': give one another name with name=path")
        self.settings = settings
        self.metrics = Metrics()
        self.num_active = 0
        self.draining = False
        texts = [TextEncoder(model) if is_sentence_encoder(model) else None for model in models]
        self.models = {model.name: self._serve(model, text) for model, text in zip(models, texts, strict=True)}

    def _serve(self, model: Model, text: TextEncoder | None) -> ServedModel:
        observer = ModelMetrics(self.metrics, model.name)
        options = EngineOptions(self.settings.limits, self.settings.max_queue, self.settings.timeout_s)
        engine = Engine(model, options, observer=observer)
        self.metrics.watch(engine)
        return ServedModel(model, engine, observer, text)

    def find(self, name: str, version: str | None = None) -> ServedModel:
        """Return a served model. Raises HttpError 404."""
        found = self.models.get(name)
        if found is None:
            message = f"model '{name}' is not served here: there is {', '.join(self.models)}"
            raise HttpError(404, message, param="model", code="model_not_found")
        if version not in (None, VERSION):
            raise HttpError(404, f"model '{name}' has no version '{version}', only '{VERSION}'")
        return found

    def begin_drain(self) -> None:
        """Become not ready: new requests are rejected, queued ones still run."""
        self.draining = True
        for served in self.models.values():
            served.engine.stop_accepting()

    async def drained(self, timeout_s: float) -> bool:
        """Wait until all requests have been answered. Return False on timeout."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + timeout_s
        while self.num_active or not all(served.engine.is_idle() for served in self.models.values()):
            if loop.time() >= end_s:
                return False
            await asyncio.sleep(0.01)
        return True

    async def abort(self) -> None:
        """End the remaining requests with a 503 and send the replies; a running model call can't be interrupted."""
        for served in self.models.values():
            served.engine.abort()
        for _ in range(100):
            if not self.num_active:
                return
            await asyncio.sleep(0.01)

    def close(self) -> None:
        for served in self.models.values():
            served.engine.close()


def _check(model: Model) -> None:
    if not _NAME.fullmatch(model.name):
        raise UserError(f"'{model.name}' can't be a model's name in a URL: give another with name=path (letters, digits, '.', '_', '-')")
