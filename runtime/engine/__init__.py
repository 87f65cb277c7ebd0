"""Dynamic batching: a pure policy, and one worker thread per model that carries it out."""

from llmos.runtime.engine.engine import Engine, EngineOptions
from llmos.runtime.engine.errors import CancelledError, ClosedError, DeadlineError, IntegrityError, QueueFullError
from llmos.runtime.engine.job import Job
from llmos.runtime.engine.model import Batching, Model, ProgramModel, Signature, load_model
from llmos.runtime.engine.policy import Decision, Limits, Pending, next_batch

__all__ = [
    "Batching",
    "CancelledError",
    "ClosedError",
    "DeadlineError",
    "Decision",
    "Engine",
    "EngineOptions",
    "IntegrityError",
    "Job",
    "Limits",
    "Model",
    "Pending",
    "ProgramModel",
    "QueueFullError",
    "Signature",
    "load_model",
    "next_batch",
]
