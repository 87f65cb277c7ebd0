"""How far one array is from another: the figures of a certificate."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from llmos.runtime.artifact.fields import Fields

SMALLEST_SCALE = 1e-3  # an output that is smaller everywhere is taken as of this scale: rounding in a sum that cancels is no error

_BLOCK = 1 << 15  # elements compared at a time

ROUNDINGS = 8  # how many times an output's own sensitivity to one rounding of the inputs is still no error


@dataclass(frozen=True)
class Budget:
    """What is allowed: `max_error` relative to an output's scale; `differing`, the share of unequal elements of integers and bools."""

    max_error: float
    differing: float = 0.01

    def widened(self, sensitivity: float) -> Budget:
        """For an output that moves by `sensitivity` when the inputs are rounded once: compiled code rounds at every step."""
        return replace(self, max_error=max(self.max_error, ROUNDINGS * sensitivity))

    def to_json(self) -> dict[str, float]:
        return asdict(self)

    @classmethod
    def parse(cls, fields: Fields) -> Budget:
        return cls(fields.number("max_error"), fields.number("differing"))


@dataclass(frozen=True)
class Deviation:
    """`max_error` and `mean_error` relative to the reference's largest finite magnitude; inf where a NaN or Inf is on one side only, which
    `unmatched` elements are. The same on both sides agrees.

    `differing`: share of unequal elements, for integers and bools. For logits, `kl` is the largest Kullback-Leibler divergence
    KL(softmax(reference) || softmax(got)) of a row, in nats, and `top1` the share of rows with the same largest element.
    """

    max_error: float
    mean_error: float
    cosine: float
    differing: float | None = None
    kl: float | None = None
    top1: float | None = None
    unmatched: int = 0

    def within(self, budget: Budget) -> bool:
        if self.differing is not None:
            return self.differing <= budget.differing
        return self.max_error <= budget.max_error

    def to_json(self) -> dict[str, Any]:
        """Figures of three digits, without those that don't apply; JSON has no infinity, so `unmatched` stands for it."""
        figures = {key: value for key, value in asdict(self).items() if value is not None and key != "unmatched" and math.isfinite(value)}
        unmatched = {"unmatched": max(1, self.unmatched)} if not math.isfinite(self.max_error) else {}
        return {**{key: float(f"{value:.3g}") for key, value in figures.items()}, **unmatched}

    @classmethod
    def parse(cls, fields: Fields) -> Deviation:
        differing, kl, top1 = (fields.number(key) if key in fields.value else None for key in ("differing", "kl", "top1"))
        unmatched = fields.integer("unmatched") if "unmatched" in fields.value else 0
        errors = (math.inf, math.inf) if unmatched else (fields.number("max_error"), fields.number("mean_error"))
        return cls(*errors, fields.number("cosine"), differing, kl, top1, unmatched)


def numbers(array: np.ndarray, dtype: str) -> np.ndarray:
    """The values in float64 (complex ones in complex128); bfloat16 comes as uint16."""
    if dtype == "bfloat16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def scale_of(array: np.ndarray, dtype: str) -> float:
    """The largest finite magnitude, at least SMALLEST_SCALE."""
    largest = SMALLEST_SCALE
    for values, _ in _blocks(array, array, dtype):
        magnitudes = np.abs(values)
        largest = max(largest, float(np.max(magnitudes, initial=0.0, where=np.isfinite(magnitudes))))
    return largest


def measure(got: np.ndarray, want: np.ndarray, dtype: str, *, scale: float | None = None, logits: bool = False) -> Deviation:
    """Compares two arrays of one shape; `want` is the reference.

    dtype: numpy's name, or "bfloat16" for arrays of uint16. scale: of the whole output where the arrays are samples of it.
    logits: whether the last dimension holds the logits of a class each.
    """
    total = _Totals()
    for a, b in _blocks(got, want, dtype):
        total.add(a, b)
    whole = max(got.size, 1)
    scale = scale_of(want, dtype) if scale is None else scale
    found = Deviation(
        max_error=_bounded(total.largest / scale, total.unmatched),
        mean_error=_bounded(total.errors / whole / scale, total.unmatched),
        cosine=total.cosine,
        differing=total.differing / whole if got.size and is_exact(dtype) else None,
        unmatched=total.unmatched,
    )
    return _with_rows(found, numbers(got, dtype), numbers(want, dtype)) if logits and got.ndim > 0 and got.size > 0 else found


def _bounded(error: float, unmatched: int) -> float:
    """Finite numbers that are too far apart for a float are not infinitely so: that would mean another thing."""
    return error if unmatched else min(error, sys.float_info.max)


def _with_rows(found: Deviation, a: np.ndarray, b: np.ndarray) -> Deviation:
    """With what is said of logits."""
    return replace(found, kl=_divergence(a, b), top1=float(np.mean(np.argmax(a, -1) == np.argmax(b, -1))))


def _blocks(got: np.ndarray, want: np.ndarray, dtype: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Both arrays in float64, few elements at a time, which stay in the cache."""
    flat = got.reshape(-1), want.reshape(-1)
    for start in range(0, got.size, _BLOCK):
        a, b = (numbers(each[start : start + _BLOCK], dtype) for each in flat)
        yield a, b


@dataclass
class _Totals:
    """What is summed up over blocks of two arrays."""

    largest: float = 0.0
    errors: float = 0.0
    differing: int = 0
    unmatched: int = 0
    products: np.ndarray = field(default_factory=lambda: np.zeros(3))  # a·a, b·b, a·b of the elements that are finite on both sides

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        errors = _errors(a, b)
        self.largest = max(self.largest, float(np.max(errors, initial=0.0)))
        with np.errstate(over="ignore"):
            self.errors += float(np.sum(errors))
        self.unmatched += int(np.count_nonzero(np.isinf(errors)))
        self.differing += int(np.count_nonzero(a != b))
        finite = np.isfinite(a) & np.isfinite(b)
        if not finite.all():
            a, b = a[finite], b[finite]
        with np.errstate(over="ignore"):
            self.products += [float(np.sum(x * y.conj()).real) for x, y in ((a, a), (b, b), (a, b))]

    @property
    def cosine(self) -> float:
        """1 where both arrays are all zeros."""
        squared_a, squared_b, product = (float(each) for each in self.products)
        length = math.sqrt(squared_a) * math.sqrt(squared_b)
        if length == 0.0:
            return 1.0 if squared_a == squared_b == 0.0 else 0.0
        return product / length if math.isfinite(product / length) else 0.0


def is_exact(dtype: str) -> bool:
    """Whether values are integers or bools, where equal means equal."""
    return dtype == "bool" or dtype.startswith(("int", "uint"))


def _errors(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a - b|; 0 where both are NaN or the same infinity, inf where one is and the other isn't."""
    with np.errstate(invalid="ignore", over="ignore"):
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        finite = np.isfinite(a) & np.isfinite(b)
        errors: np.ndarray = np.where(same, 0.0, np.where(finite, np.minimum(np.abs(a - b), sys.float_info.max), np.inf))
    return errors


def _divergence(got: np.ndarray, want: np.ndarray) -> float:
    p, q = _log_softmax(want), _log_softmax(got)
    with np.errstate(invalid="ignore"):
        rows = np.sum(np.where(np.exp(p) > 0, np.exp(p) * (p - q), 0.0), -1)
    return float(np.max(rows, initial=0.0, where=np.isfinite(rows)))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        shifted = logits - np.max(logits, -1, keepdims=True)
        result: np.ndarray = shifted - np.log(np.sum(np.exp(shifted), -1, keepdims=True))
    return result
