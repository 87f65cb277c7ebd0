"""What a client may ask of a generation, checked before anything runs."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmos.runtime.engine.generate.sampler import RowSampling
from llmos.runtime.engine.generate.structured import StructuredOutputs
from llmos.runtime.errors import InputError

MAX_LOGPROBS = 20
MAX_SEQUENCES = 128
_SEED_BITS = 64
_SEQUENCE_STRIDE = 0x9E3779B97F4A7C15  # odd, so that all sequences of a request have different seeds

# name -> (lowest, highest, whether the lowest itself is allowed)
_RANGES: Mapping[str, tuple[float, float, bool]] = {
    "temperature": (0.0, math.inf, True),
    "top_p": (0.0, 1.0, False),
    "min_p": (0.0, 1.0, True),
    "typical_p": (0.0, 1.0, False),
    "repetition_penalty": (0.01, 100.0, True),  # beyond, logits that it divides or multiplies would leave the range of floats
    "presence_penalty": (-2.0, 2.0, True),
    "frequency_penalty": (-2.0, 2.0, True),
}
# name -> (lowest, highest, whether None is allowed)
_COUNTS: Mapping[str, tuple[int, int, bool]] = {
    "top_k": (0, 2**31 - 1, False),
    "seed": (-(2**63), 2**64 - 1, True),
    "max_tokens": (1, 2**31 - 1, True),
    "min_tokens": (0, 2**31 - 1, False),
    "logprobs": (0, MAX_LOGPROBS, True),
    "prompt_logprobs": (0, MAX_LOGPROBS, True),
    "n": (1, MAX_SEQUENCES, False),
    "priority": (-100, 100, False),
}


@dataclass(frozen=True)
class SamplingParams:
    """How a request is generated. Raises InputError with the parameter, what it must be and what it was.

    temperature: 0 is greedy. top_k: 0 is off. seed: None draws one. max_tokens: None goes on to the end of the context.
    min_tokens: no stop token before so many. stop: strings that end the text, for the layer that makes text of tokens.
    stop_token_ids: end a sequence as the model's own end tokens do, which ignore_eos disables. logprobs, prompt_logprobs: None is none,
    0 of the token alone, k also of the k likeliest. n: sequences of one prompt. priority: of 1 more, as if it had arrived a while earlier
    (PRIORITY_STEP_S), so that nothing waits forever. structured_outputs: the form that every text must have, a mapping with one of json (a
    JSON schema), json_object (True), regex, choice (texts) and grammar (Lark); see StructuredOutputs.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1
    ignore_eos: bool = False
    priority: int = 0
    structured_outputs: StructuredOutputs | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, bounds in _RANGES.items():
            self._set(name, _number(name, getattr(self, name), *bounds))
        for name, limits in _COUNTS.items():
            self._set(name, _count(name, getattr(self, name), *limits))
        self._set("stop", _stop_strings(self.stop))
        self._set("stop_token_ids", _token_ids(self.stop_token_ids))
        self._set("logit_bias", _biases(self.logit_bias))
        if not isinstance(self.ignore_eos, bool):
            raise InputError(f"ignore_eos: must be true or false, not {self.ignore_eos!r}")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InputError(f"min_tokens: must be at most max_tokens ({self.max_tokens}), not {self.min_tokens}")
        if self.structured_outputs is not None:
            self._set("structured_outputs", StructuredOutputs.of(self.structured_outputs))
            if self.min_tokens or self.ignore_eos:
                name = "min_tokens" if self.min_tokens else "ignore_eos"
                raise InputError(f"{name}: can't be given with structured_outputs, which say where a text may end")

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def row_sampling(self, seed: int, index: int) -> RowSampling:
        """Return what rows of sequence `index` of a request with this seed are sampled with."""
        return RowSampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            typical_p=self.typical_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=tuple(self.logit_bias.items()),
            seed=(seed + index * _SEQUENCE_STRIDE) % 2**_SEED_BITS,
            num_logprobs=-1 if self.logprobs is None else self.logprobs,
        )

    def check_vocabulary(self, vocab_size: int) -> None:
        """Check the token ids in the parameters. Raises InputError."""
        for name, ids in (("stop_token_ids", self.stop_token_ids), ("logit_bias", self.logit_bias)):
            wrong = [each for each in ids if each >= vocab_size]
            if wrong:
                raise InputError(f"{name}: token id {wrong[0]} is out of range, the model has ids 0 to {vocab_size - 1}")


def _number(name: str, value: object, low: float, high: float, closed: bool) -> float:
    most = "" if high == math.inf else f" and at most {high:g}"
    expected = f"a number {'at least' if closed else 'greater than'} {low:g}{most}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InputError(f"{name}: must be {expected}, not {value!r}")
    number = float(value)
    if not math.isfinite(number) or number > high or number < low or (number == low and not closed):
        raise InputError(f"{name}: must be {expected}, not {value!r}")
    return number


def _count(name: str, value: object, low: int, high: int, optional: bool) -> int | None:
    if value is None and optional:
        return None
    number = int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else None
    if number is None or not low <= number <= high:
        raise InputError(f"{name}: must be an integer from {low} to {high}, not {value!r}")
    return number


def _stop_strings(stop: object) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else stop
    if not isinstance(strings, Iterable) or isinstance(strings, bytes | Mapping):
        raise InputError(f"stop: must be a string or a list of strings, not {stop!r}")
    found = tuple(strings)
    wrong = [each for each in found if not isinstance(each, str) or not each]
    if wrong:
        raise InputError(f"stop: must be strings of one character or more, not {wrong[0]!r}")
    return found


def _token_ids(ids: object) -> tuple[int, ...]:
    if not isinstance(ids, Iterable) or isinstance(ids, str | bytes | Mapping):
        raise InputError(f"stop_token_ids: must be a list of token ids, not {ids!r}")
    return tuple(_token_id("stop_token_ids", each) for each in ids)


def _token_id(name: str, value: object) -> int:
    number = int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else -1
    if number < 0:
        raise InputError(f"{name}: must hold token ids, not {value!r}")
    return number


def _biases(biases: object) -> dict[int, float]:
    """Return the biases in the order of their ids."""
    if not isinstance(biases, Mapping):
        raise InputError(f"logit_bias: must map token ids to numbers, not {biases!r}")
    pairs = [(_token_id("logit_bias", each), _number("logit_bias", bias, -100, 100, True)) for each, bias in biases.items()]
    return dict(sorted(pairs))
