"""What requests hold: prompts and lengths from distributions, or bodies of a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import orjson

from llmos.runtime.errors import UserError

APIS = ("chat", "completions", "embeddings", "infer")
_PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions", "embeddings": "/v1/embeddings"}
JSON_HEADERS = b"Content-Type: application/json\r\n"
_MAX_LENGTH = 1 << 20
# Words that most vocabularies have as one token with the space before it, so that so many words are about as many tokens.
_TEXT = (
    "the of and to in that was for with his on be at by had not are but from have they you which one were all there would their we him "
    "been has when who will no more if out so up said what its about than into them can only other time new some could these two may "
    "first then do any like my now over such our man me even most made after also well before must through years much where your way"
)
_WORDS = _TEXT.split()


@dataclass(frozen=True)
class Length:
    """A distribution of lengths. Parsed from `128`, `16:256` (uniform), or `lognormal:128,0.7` (median, sigma)."""

    text: str
    draw: Callable[[Random], int]

    @classmethod
    def parse(cls, text: str) -> Length:
        """Parse a distribution. Raises UserError."""
        try:
            if text.startswith("lognormal:"):
                median, sigma = map(float, text.removeprefix("lognormal:").split(","))
                if not (1 <= median <= _MAX_LENGTH and 0 <= sigma <= 5):
                    raise ValueError
                return cls(text, lambda random: min(_MAX_LENGTH, max(1, round(random.lognormvariate(math.log(median), sigma)))))
            low, _, high = text.partition(":")
            least, most = int(low), int(high or low)
            if not 1 <= least <= most <= _MAX_LENGTH:
                raise ValueError
        except ValueError:
            raise UserError(f"'{text}' is no distribution of lengths: give 128, 16:256 or lognormal:128,0.7 (median, sigma)") from None
        return cls(text, lambda random: random.randint(least, most))


@dataclass(frozen=True)
class Call:
    """A request to send."""

    path: str
    body: bytes
    headers: bytes = JSON_HEADERS


@dataclass(frozen=True)
class TextWorkload:
    """Requests of texts. prompt: words, about as many tokens. shared_prefix: words that all prompts begin with. more: other parameters."""

    api: str
    model: str
    prompt: Length
    output: Length
    shared_prefix: int = 0
    stream: bool = True
    ignore_eos: bool = True
    more: Mapping[str, Any] | None = None

    def calls(self, random: Random) -> Iterator[Call]:
        """Yield requests without end, the same for the same random numbers."""
        prefix = " ".join(Random(0).choices(_WORDS, k=self.shared_prefix))
        while True:
            words = " ".join(random.choices(_WORDS, k=self.prompt.draw(random)))
            yield Call(_PATHS[self.api], orjson.dumps(self._document(f"{prefix} {words}".strip(), random)))

    def _document(self, text: str, random: Random) -> dict[str, Any]:
        if self.api == "embeddings":
            return {"model": self.model, "input": text, "encoding_format": "base64", **(self.more or {})}
        found: dict[str, Any] = {"model": self.model, "max_tokens": self.output.draw(random)}
        found |= {"prompt": text} if self.api == "completions" else {"messages": [{"role": "user", "content": text}]}
        if self.stream:
            found |= {"stream": True, "stream_options": {"include_usage": True}}
        if self.ignore_eos:
            found["ignore_eos"] = True
        return found | dict(self.more or {})


@dataclass(frozen=True)
class FileWorkload:
    """Requests of a file, again from its beginning at its end. bodies: JSON objects."""

    path: str
    bodies: Sequence[bytes]

    @classmethod
    def read(cls, file: Path, api: str, model: str, stream: bool) -> FileWorkload:
        """Read a file of JSON objects, one a line; what a body lacks of model and stream is filled in. Raises UserError."""
        try:
            lines = file.read_bytes().splitlines()
        except OSError as error:
            raise UserError(f"can't read {file}: {error.strerror}") from error
        filled: dict[str, Any] = {} if api == "infer" else {"model": model}
        if stream and api in ("chat", "completions"):
            filled |= {"stream": True, "stream_options": {"include_usage": True}}
        bodies = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                found = orjson.loads(line)
            except ValueError as error:
                raise UserError(f"{file}, line {number}: no JSON ({error})") from error
            if not isinstance(found, dict):
                raise UserError(f"{file}, line {number}: a request's body must be a JSON object")
            bodies.append(orjson.dumps(filled | found))
        if not bodies:
            raise UserError(f"{file} holds no requests: write the JSON of one in each line")
        return cls(infer_path(model) if api == "infer" else _PATHS[api], bodies)

    def calls(self, random: Random) -> Iterator[Call]:
        """Yield the requests in the order of the file."""
        return cycle([Call(self.path, body) for body in self.bodies])


@dataclass(frozen=True)
class InferWorkload:
    """Random tensors for a model, in binary. inputs: of its metadata. length: of dimensions that are free, beside the first, which is 1."""

    model: str
    inputs: Sequence[Mapping[str, Any]]
    length: Length

    def calls(self, random: Random) -> Iterator[Call]:
        """Yield requests without end, the same for the same random numbers."""
        while True:
            yield self._call(random)

    def _call(self, random: Random) -> Call:
        length = self.length.draw(random)
        tensors, data = [], []
        for tensor in self.inputs:
            shape = [length if dim < 0 and place else abs(dim) for place, dim in enumerate(tensor["shape"])]
            values = _values(str(tensor["datatype"]), shape, random)
            size = {"parameters": {"binary_data_size": values.nbytes}}
            tensors.append({"name": tensor["name"], "datatype": tensor["datatype"], "shape": shape, **size})
            data.append(values.tobytes())
        head = orjson.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}})
        headers = b"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: %d\r\n" % len(head)
        return Call(infer_path(self.model), b"".join((head, *data)), headers)


def infer_path(model: str) -> str:
    """Return the path of a model's infer route."""
    return f"/v2/models/{model}/infer"


_DTYPES = {"BOOL": "bool", "FP16": "float16", "FP32": "float32", "FP64": "float64", "BF16": "uint16"}


def _values(datatype: str, shape: Sequence[int], random: Random) -> np.ndarray[Any, Any]:
    """Return values of a tensor: normal floats, and integers that are 1, which is a token and a mask of every model."""
    name = _DTYPES.get(datatype) or datatype.lower()
    try:
        dtype = np.dtype(name)
    except TypeError:
        raise UserError(f"an input has the datatype {datatype}: give requests with --requests") from None
    if dtype.kind != "f":
        return np.ones(shape, dtype)
    return np.random.default_rng(random.getrandbits(32)).standard_normal(shape).astype(dtype)
