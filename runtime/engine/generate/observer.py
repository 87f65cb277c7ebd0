"""Callbacks of the generation engine for metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol


class StepReport(NamedTuple):  # as fast to make as a tuple
    """One step. num_preempted: sequences that lost their blocks. run_s: of model and sampler; step_s: of planning and delivery too.

    inter_token_s: for each token delivered that was not the first of its sequence, the time since the one before.
    """

    num_tokens: int
    num_decodes: int
    num_running: int
    num_waiting: int
    num_preempted: int
    num_free_blocks: int
    num_blocks: int
    run_s: float
    step_s: float
    inter_token_s: tuple[float, ...] = ()


@dataclass(frozen=True)
class GenerationReport:
    """One ended request. reason: stop, length, abort, timeout or error.

    queue_s: until its first step, None if it had none. ttft_s: time to first token, None if there was none. num_cached_tokens: of the
    prompt, that needed no computing. num_generated_tokens: of all its sequences.
    """

    reason: str
    e2e_s: float
    ttft_s: float | None
    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int
    queue_s: float | None = None


class GenerationObserver(Protocol):
    """Called from the engine's threads; must be quick and must not raise."""

    def on_step(self, report: StepReport) -> None:
        """Take note of a step."""
        ...

    def on_generation(self, report: GenerationReport) -> None:
        """Take note of an ended request."""
        ...


class NullGenerationObserver:
    """An observer that does nothing."""

    def on_step(self, report: StepReport) -> None:
        """Ignore a step."""

    def on_generation(self, report: GenerationReport) -> None:
        """Ignore a request."""
