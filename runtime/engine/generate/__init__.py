"""Text generation at the level of tokens: continuous batching over a paged cache, for one model and many requests at once."""

from llmos.runtime.engine.generate.engine import GenerationEngine
from llmos.runtime.engine.generate.model import ProgramStepModel, StepModel, StepSizes
from llmos.runtime.engine.generate.observer import GenerationObserver, GenerationReport, NullGenerationObserver, StepReport
from llmos.runtime.engine.generate.options import GenerationOptions
from llmos.runtime.engine.generate.params import SamplingParams
from llmos.runtime.engine.generate.request import Event, FinishEvent, GeneratedSequence, GenerationRequest, PromptEvent, TokenEvent
from llmos.runtime.engine.generate.spec import CacheSpec, GenerationSpec
from llmos.runtime.engine.generate.step import Limits

__all__ = [
    "CacheSpec",
    "Event",
    "FinishEvent",
    "GeneratedSequence",
    "GenerationEngine",
    "GenerationObserver",
    "GenerationOptions",
    "GenerationReport",
    "GenerationRequest",
    "GenerationSpec",
    "Limits",
    "NullGenerationObserver",
    "ProgramStepModel",
    "PromptEvent",
    "SamplingParams",
    "StepModel",
    "StepReport",
    "StepSizes",
    "TokenEvent",
]
