"""One version of a model that is served: its engine, its metrics, and its end."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field, replace

import numpy as np

from llmos.runtime.engine import Engine, EngineOptions, Model
from llmos.runtime.engine.generate import (
    GenerationEngine,
    GenerationObserver,
    GenerationReport,
    NullGenerationObserver,
    SamplingParams,
    StepReport,
)
from llmos.runtime.engine.model import storage_dtype
from llmos.runtime.errors import LlmosError
from llmos.runtime.llm.engine import TextEngine
from llmos.runtime.server.core.language import AnyModel, LanguageModel
from llmos.runtime.server.core.metrics import GenerationMetrics, Metrics, ModelMetrics
from llmos.runtime.server.core.settings import ServerSettings
from llmos.runtime.server.core.use import Use
from llmos.runtime.text.tokenizer import TextEncoder, is_sentence_encoder

_WARM_UP_S = 60.0


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A version of a model of tensors. text: for sentence encoders with a tokenizer; None otherwise. identity: that of the artifact,
    which no other has, wherever it is served.
    """

    model: Model
    engine: Engine
    metrics: ModelMetrics
    text: TextEncoder | None
    version: int = 1
    use: Use = field(default_factory=Use)
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def engines(self) -> tuple[Engine]:
        """Return all engines of the version."""
        return (self.engine,)

    @property
    def embedder(self) -> ServedModel | None:
        """Return what embeds texts; None where that is not what the model does."""
        return self if self.text is not None else None


@dataclass(frozen=True, eq=False)
class ServedLanguageModel:
    """A version of a language model. embedder: what embeds texts by the same weights, on an engine of its own; None for a model that only
    generates. identity: see ServedModel.
    """

    model: LanguageModel
    text: TextEngine
    metrics: GenerationMetrics
    embedder: ServedModel | None = None
    version: int = 1
    use: Use = field(default_factory=Use)
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def name(self) -> str:
        return self.text.name

    @property
    def engine(self) -> GenerationEngine:
        return self.text.engine

    @property
    def engines(self) -> tuple[GenerationEngine | Engine, ...]:
        """Return all engines of the version."""
        return (self.engine, *(self.embedder.engines if self.embedder is not None else ()))


Served = ServedModel | ServedLanguageModel


@dataclass(frozen=True)
class Builder:
    """Puts models on engines. Safe to use from any thread."""

    settings: ServerSettings
    metrics: Metrics

    def build(self, model: AnyModel, version: int, *, warm: bool) -> Served:
        """Return a model that is ready to serve. warm: run it once before, as no request of its metrics.

        Raises UserError or ArtifactError if it lacks something, or LlmosError if a language model can't generate.
        """
        if isinstance(model, LanguageModel):
            return self._build_language(model, version, warm)
        text = TextEncoder(model) if is_sentence_encoder(model) else None
        return self._on_engine(model, text, version, Use(), _identity(model), warm)

    def _on_engine(self, model: Model, text: TextEncoder | None, version: int, use: Use, identity: str, warm: bool) -> ServedModel:
        if warm:
            _warm(model)
        observer, settings = ModelMetrics(self.metrics, model.name), self.settings
        options = EngineOptions(settings.limits, settings.max_queue, settings.timeout_s, settings.max_wait_s)
        return ServedModel(model, Engine(model, options, observer=observer), observer, text, version, use, identity)

    def _build_language(self, model: LanguageModel, version: int, warm: bool) -> ServedLanguageModel:
        observer, settings = GenerationMetrics(self.metrics, model.name), self.settings
        options = replace(settings.generation, max_queue=settings.max_queue, timeout_s=settings.generation_timeout_s)
        reports = _LaterReports()
        encoder = TextEncoder(model.embedder) if model.embedder is not None else None
        text = TextEngine(model.step, model.asset, options, observer=reports)
        text.grammars.prepare()
        if warm:
            _warm_language(text)
        reports.observer = observer
        use, identity, embedder = Use(), _identity(model), None
        if model.embedder is not None:
            embedder = self._on_engine(model.embedder, encoder, version, use, identity, warm)
        return ServedLanguageModel(model, text, observer, embedder, version, use, identity)


def _identity(model: AnyModel) -> str:
    """Return what tells a model from all others: the digest of its artifact, or a number for one that has none."""
    return getattr(model, "digest", "") or uuid.uuid4().hex


class _LaterReports:
    """Passes reports on from when it has an observer."""

    def __init__(self) -> None:
        self.observer: GenerationObserver = NullGenerationObserver()

    def on_step(self, report: StepReport) -> None:
        self.observer.on_step(report)

    def on_generation(self, report: GenerationReport) -> None:
        self.observer.on_generation(report)


def _warm(model: Model) -> None:
    """Run a model once, on zeros of its smallest size, so that no request pays for pages that are touched first.

    A model may refuse zeros; requests will tell whether it takes anything else.
    """
    arrays = []
    for spec in model.signature.inputs:
        sizes = [dim if isinstance(dim, int) else model.signature.symbols.get(dim, (1, 1))[0] for dim in spec.shape]
        arrays.append(np.zeros(sizes, storage_dtype(spec)))
    try:
        model(arrays)
    except LlmosError:
        return


def _warm_language(text: TextEngine) -> None:
    """Generate one token, and wait for the end of its step. Raises LlmosError if it fails."""
    try:
        text.engine.submit([0], SamplingParams(max_tokens=1), timeout_s=_WARM_UP_S).result()
        while not text.engine.is_idle():
            time.sleep(0.001)
    except BaseException:
        text.close()
        raise


def release(served: Served) -> None:
    """End a version that no request uses any more, and check that it lost nothing. Raises LlmosError if it did.

    Its threads end here; its memory is free with the last reference to it.
    """
    try:
        for engine in served.engines:
            engine.drain(_WARM_UP_S)
            engine.check_integrity()
    finally:
        for engine in served.engines:
            engine.close()
        served.model.close()
