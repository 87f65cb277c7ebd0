"""Language models as their users see them: text in, text out."""

from llmos.runtime.llm.engine import TextEngine
from llmos.runtime.llm.model import LLMOS
from llmos.runtime.llm.request import Completion, TextDelta, TextEnd, TextEvent, TextRequest

__all__ = ["LLMOS", "Completion", "TextDelta", "TextEnd", "TextEngine", "TextEvent", "TextRequest"]
