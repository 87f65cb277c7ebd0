"""Language models as their users see them: text in, text or embeddings out."""

from llmos.runtime.llm.embedder import Embedder
from llmos.runtime.llm.engine import TextEngine
from llmos.runtime.llm.model import LLMOS
from llmos.runtime.llm.request import Completion, TextDelta, TextEnd, TextEvent, TextRequest

__all__ = ["LLMOS", "Completion", "Embedder", "TextDelta", "TextEnd", "TextEngine", "TextEvent", "TextRequest"]
