"""The form of the answers of a route, which `generation.py` fills."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from llmos.runtime.engine.generate import PromptEvent
from llmos.runtime.llm.request import TextRequest
from llmos.runtime.server.openai.logprobs import Sampled


class Form(Protocol):
    """How a route writes its choices. id_prefix: of an answer's id. object, chunk_object: the kinds of whole answers and of events."""

    id_prefix: str
    object: str
    chunk_object: str

    def prompt(self, request: TextRequest, event: PromptEvent | None) -> tuple[str, list[Sampled]]:
        """Return what of the prompt stands before each choice."""
        ...

    def first(self, index: int, text: str, tokens: Sequence[Sampled]) -> dict[str, Any] | None:
        """Return the choice of its first event, with what of the prompt stands before it; None if it needs none."""
        ...

    def chunk(self, index: int, text: str, tokens: Sequence[Sampled], reason: str | None) -> dict[str, Any] | None:
        """Return a choice of an event; None if there is nothing to say yet."""
        ...

    def whole(self, index: int, text: str, tokens: Sequence[Sampled], reason: str) -> dict[str, Any]:
        """Return a choice of a whole answer."""
        ...
