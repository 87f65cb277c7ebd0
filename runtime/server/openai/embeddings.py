"""Parsing and writing of OpenAI's embeddings call. https://platform.openai.com/docs/api-reference/embeddings"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from llmos.runtime.engine.model import Array
from llmos.runtime.server.core.errors import HttpError
from llmos.runtime.server.core.http import Reply
from llmos.runtime.server.core.json import PIECE_VALUES

if TYPE_CHECKING:
    from llmos.runtime.text.tokenizer import TextEncoder

MAX_INPUTS = 2048
_FORMS = "a string, an array of strings, an array of token ids, or an array of arrays of token ids"


@dataclass(frozen=True)
class EmbeddingRequest:
    """Either texts or tokens holds the inputs. dimensions: the embedding size to truncate to; None for the full size."""

    texts: list[str] | None
    tokens: list[list[int]] | None
    base64: bool
    dimensions: int | None

    @property
    def num_chars(self) -> int:
        return sum(map(len, self.texts or ()))


def _invalid(message: str, param: str) -> HttpError:
    return HttpError(400, message, param=param)


def model_name(document: Mapping[str, Any]) -> str:
    """Return the model's name in a request. Raises HttpError 400."""
    name = document.get("model")
    if not isinstance(name, str):
        raise _invalid("'model' must be a string", "model")
    return name


def parse_embedding(document: Mapping[str, Any], encoder: TextEncoder, *, matryoshka: bool) -> EmbeddingRequest:
    """Parse a request's JSON. matryoshka: the model's embeddings may be truncated. Raises HttpError 400."""
    encoding = document.get("encoding_format")
    encoding = "float" if encoding is None else encoding
    if encoding not in ("float", "base64"):
        raise _invalid("'encoding_format' must be 'float' or 'base64'", "encoding_format")
    dimensions = _dimensions(document.get("dimensions"), encoder.width, matryoshka=matryoshka)
    items: Any = check_inputs(document.get("input"), encoder.limits)
    texts, tokens = (items, None) if isinstance(items[0], str) else (None, items)
    return EmbeddingRequest(texts, tokens, encoding == "base64", dimensions)


def check_inputs(value: object, limits: Mapping[str, int]) -> list[str] | list[list[int]]:
    """Return the texts, cut to what the model can take, or the tokens of a request. limits: see TextEncoder. Raises HttpError 400."""
    items: Any = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not items:
        raise _invalid(f"'input' must be {_FORMS}, and can't be empty", "input")
    if type(items[0]) is int:
        items = [items]
    if len(items) > MAX_INPUTS:
        raise _invalid(f"'input' holds {len(items)} inputs, at most {MAX_INPUTS} are allowed in a request", "input")
    if not all(items):
        raise _invalid("'input' holds an empty string or array", "input")
    if all(isinstance(item, str) for item in items):
        texts = [item[: limits["max_chars"]] for item in items]
        _check_unicode(texts)
        return texts
    longest = max((len(item) for item in items if isinstance(item, list)), default=0)
    if longest > limits["max_tokens"]:
        raise _invalid(f"an input has {longest} tokens, the model takes at most {limits['max_tokens']}", "input")
    if all(isinstance(item, list) and all(type(token) is int for token in item) for item in items):
        if any(min(ids) < 0 or max(ids) >= limits["vocabulary_size"] for ids in items):
            raise _invalid(f"a token id is outside the vocabulary of {limits['vocabulary_size']}", "input")
        return list(items)
    raise _invalid(f"'input' must be {_FORMS}", "input")


def _check_unicode(texts: Sequence[str]) -> None:
    """Raise HttpError 400 for an unpaired surrogate, which JSON allows but UTF-8 doesn't."""
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError:
        raise _invalid("'input' holds an incomplete surrogate pair", "input") from None


def _dimensions(value: object, width: int, *, matryoshka: bool) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= width:
        raise _invalid(f"'dimensions' must be an integer from 1 to {width}", "dimensions")
    if value != width and not matryoshka:
        raise _invalid(f"this model's embeddings can't be shortened: leave 'dimensions' out, or ask for {width}", "dimensions")
    return None if value == width else value


def embedding_reply(request: EmbeddingRequest, model: str, rows: Sequence[Array], num_tokens: int) -> Reply:
    """Write the response. rows: one embedding [1, width] for each input, in order."""
    vectors = np.concatenate(rows).astype("<f4", copy=False)
    if request.dimensions is not None:
        vectors = vectors[:, : request.dimensions]
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12, dtype="<f4")
    return Reply.of_pieces(list(_reply_pieces(vectors, model, num_tokens, as_base64=request.base64)))


def _reply_pieces(vectors: Array, model: str, num_tokens: int, *, as_base64: bool) -> Iterator[bytes]:
    """Write the response, some embeddings at a time, so that none of it holds the interpreter for long."""
    if not as_base64 and not bool(np.isfinite(vectors).all()):
        raise HttpError(500, "the model gave values that are not finite, which JSON has no form for", code="model_error")
    yield b'{"object":"list","data":['
    step = max(1, PIECE_VALUES // vectors.shape[1])
    for start in range(0, len(vectors), step):
        rows = vectors[start : start + step]
        values: Iterable[Any] = (
            (base64.b64encode(row.tobytes()).decode("ascii") for row in rows) if as_base64 else np.ascontiguousarray(rows)
        )
        data = [{"object": "embedding", "index": start + index, "embedding": value} for index, value in enumerate(values)]
        piece = orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
        yield piece if start == 0 else b"," + piece
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    yield b"]," + orjson.dumps({"model": model, "usage": usage})[1:]
