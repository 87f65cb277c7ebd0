"""The state of a running server: its models with their engines, and whether it is draining."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from llmos.runtime.engine import Engine, EngineOptions, Model
from llmos.runtime.errors import UserError
from llmos.runtime.llm.engine import TextEngine
from llmos.runtime.server.core.errors import HttpError
from llmos.runtime.server.core.language import LanguageModel, ServedLanguageModel
from llmos.runtime.server.core.metrics import GenerationMetrics, Metrics, ModelMetrics
from llmos.runtime.server.core.settings import ServerSettings
from llmos.runtime.server.core.work import Lanes
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


AnyModel = Model | LanguageModel
Served = ServedModel | ServedLanguageModel


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

    num_active: HTTP requests in progress, counted by the gateway. held_bytes: of their bodies. ready: whether balancers shall send more.
    draining: whether new requests are refused.
    """

    def __init__(self, models: Sequence[AnyModel], settings: ServerSettings) -> None:
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
        self.held_bytes = 0
        self.ready = True
        self.draining = False
        self.uploads = Uploads()
        self.lanes = Lanes()
        others = [model for model in models if not isinstance(model, LanguageModel)]
        encoders = {model.name: TextEncoder(model) for model in others if is_sentence_encoder(model)}
        self.models: dict[str, Served] = {
            model.name: self._serve_language(model) if isinstance(model, LanguageModel) else self._serve(model, encoders.get(model.name))
            for model in models
        }

    def _serve_language(self, model: LanguageModel) -> ServedLanguageModel:
        observer = GenerationMetrics(self.metrics, model.name)
        settings = self.settings
        options = replace(settings.generation, max_queue=settings.max_queue, timeout_s=settings.generation_timeout_s)
        text = TextEngine(model.step, model.asset, options, observer=observer)
        self.metrics.watch_generation(text.engine)
        return ServedLanguageModel(text, observer)

    def _serve(self, model: Model, text: TextEncoder | None) -> ServedModel:
        observer = ModelMetrics(self.metrics, model.name)
        options = EngineOptions(self.settings.limits, self.settings.max_queue, self.settings.timeout_s)
        engine = Engine(model, options, observer=observer)
        self.metrics.watch(engine)
        return ServedModel(model, engine, observer, text)

    def find_tensor_model(self, name: str, version: str | None = None) -> ServedModel:
        """Return a served model of tensors. Raises HttpError 404, or 400 for a language model."""
        found = self.find(name, version)
        if isinstance(found, ServedLanguageModel):
            message = f"'{name}' is a language model: call it at /v1/completions or /v1/chat/completions"
            raise HttpError(400, message, param="model")
        return found

    def find_language_model(self, name: str) -> ServedLanguageModel:
        """Return a served language model. Raises HttpError 404, or 400 for another model."""
        found = self.find(name)
        if not isinstance(found, ServedLanguageModel):
            route = "/v1/embeddings" if found.text is not None else f"/v2/models/{name}/infer"
            raise HttpError(400, f"'{name}' is no language model: call it at {route}", param="model")
        return found

    def find(self, name: str, version: str | None = None) -> Served:
        """Return a served model. Raises HttpError 404."""
        found = self.models.get(name)
        if found is None:
            message = f"model '{name}' is not served here: there is {', '.join(self.models)}"
            raise HttpError(404, message, param="model", code="model_not_found")
        if version not in (None, VERSION):
            raise HttpError(404, f"model '{name}' has no version '{version}', only '{VERSION}'")
        return found

    def begin_drain(self) -> None:
        """Take no more requests: new ones are rejected, queued ones still run."""
        self.ready = False
        self.draining = True
        self.uploads.end()
        for served in self.models.values():
            served.engine.stop_accepting()

    def is_idle(self) -> bool:
        """Return whether all requests have been answered."""
        return not self.num_active and all(served.engine.is_idle() for served in self.models.values())

    def abort(self) -> None:
        """End the remaining requests with a 503; a running model call can't be interrupted."""
        for served in self.models.values():
            served.engine.abort()

    def close(self) -> None:
        self.lanes.close()
        for served in self.models.values():
            served.engine.close()


def _check(model: AnyModel) -> None:
    if not _NAME.fullmatch(model.name):
        raise UserError(f"'{model.name}' can't be a model's name in a URL: give another with name=path (letters, digits, '.', '_', '-')")
