"""The perplexity of a language model on a text: tokens, the reference's figure and the compiled code's (docs/llm.md).

The text is cut into windows of WINDOW tokens. Each is a prompt of its own, computed in one step with an empty cache, and all of its tokens
but the first count: perplexity = exp(mean of -log p(token | those before it in its window)).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmos.runtime.artifact.dtypes import DTYPES
from llmos.runtime.artifact.fields import Fields, fail
from llmos.runtime.artifact.recorded import RecordedArray

WINDOW = 256  # tokens
MAX_TOKENS = 2048  # of a text: its beginning

Step = Callable[[list[np.ndarray]], np.ndarray]  # inputs of a step, caches among them, to logits [rows, vocabulary]


@dataclass(frozen=True)
class StepShape:
    """What the inputs of a step depend on. caches: the shape of a block and the dtype of each cache. window: tokens."""

    block_size: int
    window: int
    caches: Sequence[tuple[tuple[int, ...], str]]

    @classmethod
    def of(cls, generation: Mapping[str, Any], caches: Sequence[tuple[tuple[int, ...], str]]) -> StepShape:
        """generation: the manifest's metadata of that name, as the compiler has written them."""
        return cls(int(generation["block_size"]), min(WINDOW, int(generation["max_length"])), caches)

    def inputs(self, tokens: np.ndarray) -> list[np.ndarray]:
        """Inputs of the step of one prompt, int32 [tokens], in which the logits of all tokens are wanted."""
        count = len(tokens)
        num_blocks = -(-count // self.block_size)
        places = np.arange(count, dtype=np.int32)
        table = np.arange(num_blocks, dtype=np.int32)[None]
        arrays = [np.ascontiguousarray(tokens, np.int32), places, places, np.zeros(count, np.int32), table, places]
        return arrays + [np.zeros((num_blocks, *shape), DTYPES[dtype].storage) for shape, dtype in self.caches]

    def perplexity(self, step: Step, tokens: np.ndarray) -> float:
        """Return the perplexity of tokens, int32 [tokens]. Raises what the step raises."""
        total, count = 0.0, 0
        for window in self._windows(tokens):
            total += _negative_log_likelihood(step(self.inputs(window))[:-1], window[1:])
            count += len(window) - 1
        mean = total / max(1, count)
        return math.exp(mean) if mean < 700 else math.inf  # NaN stays NaN

    def _windows(self, tokens: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(tokens), self.window):
            window = tokens[start : start + self.window]
            if len(window) > 1:
                yield window


def _negative_log_likelihood(logits: np.ndarray, tokens: np.ndarray) -> float:
    """Sum over rows of logits [tokens, vocabulary]."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    chosen = np.take_along_axis(wide, tokens.astype(np.int64)[:, None], -1)[:, 0]
    return float((np.log(np.exp(wide).sum(-1)) - chosen).sum())


@dataclass(frozen=True)
class Perplexity:
    """The part of an accuracy report. tokens: int32 [tokens]. reference: its perplexity. targets: those of the code variants that ran."""

    tokens: RecordedArray
    reference: float
    targets: Mapping[str, float]

    @property
    def num_tokens(self) -> int:
        return math.prod(self.tokens.shape)

    def to_json(self) -> dict[str, Any]:
        return {"tokens": self.tokens.to_json(), "reference": self.reference, "targets": dict(self.targets)}

    @classmethod
    def parse(cls, fields: Fields) -> Perplexity:
        tokens = RecordedArray.parse(fields.record("tokens"))
        if tokens.dtype != "int32" or len(tokens.shape) != 1:
            raise fail(f"{fields.path}.tokens: expected int32 of one dimension")
        targets = fields.record("targets")
        return cls(tokens, fields.number("reference"), {name: targets.number(name) for name in targets.value})

    def summary(self) -> str:
        """Summarize in one line: the largest of the targets' figures."""
        found = f"{max(self.targets.values()):.4g}" if self.targets else "not run"
        return f"perplexity {found} on {self.num_tokens:,} tokens ({self.reference:.4g} for the reference)"
