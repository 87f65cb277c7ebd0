"""Embeddings of texts, by the entry of a model that gives them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmos.runtime.engine import Engine, EngineOptions
from llmos.runtime.engine.model import Array, Model
from llmos.runtime.errors import InputError
from llmos.runtime.text.tokenizer import TextEncoder


class Embedder:
    """Embeds texts for many callers at once, whose texts share batches. Safe to use from any thread.

    model: a sentence encoder, such as `engine.model.embedding_model` gives. Raises UserError without a tokenizer, and ArtifactError if it
    is malformed.
    """

    def __init__(self, model: Model, options: EngineOptions | None = None) -> None:
        self.encoder = TextEncoder(model)
        self.engine = Engine(model, options)

    def embed(self, texts: str | Sequence[str], *, principal: str = "", timeout_s: float | None = None) -> Array:
        """Return the embedding of a text, float32 [width], or those of several, [texts, width]; waits for them.

        A text is cut to the most tokens that the model takes. principal, timeout_s, and what it raises: as of Engine.submit.
        """
        listed = _listed(texts)
        inputs = [self.encoder.inputs(ids) for ids in self.encoder.encode(listed)]
        outputs = self.engine.submit(inputs, timeout_s=timeout_s, principal=principal).result()
        vectors: Array = np.concatenate([vector for vector, *_ in outputs])
        return vectors[0] if isinstance(texts, str) else vectors

    def close(self) -> None:
        """End all calls with ClosedError."""
        self.engine.close()


def _listed(texts: str | Sequence[str]) -> list[str]:
    """Return texts in a list. Raises InputError for what is none, an empty one, or half of a surrogate pair."""
    listed = [texts] if isinstance(texts, str) else texts
    if not isinstance(listed, Sequence) or isinstance(listed, bytes) or not all(isinstance(text, str) for text in listed):
        raise InputError("what is embedded must be a text or a list of texts")
    if not listed or not all(listed):
        raise InputError("what is embedded is empty: give one text of one character or more")
    try:
        "".join(listed).encode()
    except UnicodeEncodeError:
        raise InputError("a text holds half of a surrogate pair, which is no character") from None
    return list(listed)
