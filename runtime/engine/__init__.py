"""Dynamic batching: a pure policy, and one worker thread for each model that applies it."""

from llmos.runtime.engine.batching.engine import Engine, EngineOptions
from llmos.runtime.engine.batching.policy import Decision, Limits, next_batch
from llmos.runtime.engine.errors import CancelledError, ClosedError, DeadlineError, IntegrityError, QueueFullError, StateLostError
from llmos.runtime.engine.model import Batching, Model, ProgramModel, Signature, load_model
from llmos.runtime.engine.request import QueuedRequest, Request

__all__ = [
    "Batching",
    "CancelledError",
    "ClosedError",
    "DeadlineError",
    "Decision",
    "Engine",
    "EngineOptions",
    "IntegrityError",
    "Limits",
    "Model",
    "ProgramModel",
    "QueueFullError",
    "QueuedRequest",
    "Request",
    "Signature",
    "StateLostError",
    "load_model",
    "next_batch",
]
