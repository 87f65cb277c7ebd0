"""Deviation between two arrays: the figures of an accuracy report."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from llmos.runtime.artifact.bfloat16 import from_bfloat16
from llmos.runtime.artifact.fields import Fields
from llmos.runtime.errors import UserError

SMALLEST_SCALE = 1e-3  # lower bound of an output's scale, so that rounding in sums that cancel is no error

MAX_ERROR = "max_error"
FIGURES = {"kl": "<=", "top1": ">=", "cosine": ">="}  # judged instead of the largest error, the first that a budget and an output have
_BOUNDS = {MAX_ERROR: (0.0, sys.float_info.max), "cosine": (-1.0, 1.0), "kl": (0.0, sys.float_info.max), "top1": (0.0, 1.0)}

_BLOCK = 1 << 15  # elements compared at a time

ROUNDINGS = 8  # allowed error as a multiple of an output's sensitivity to one rounding of the inputs


@dataclass(frozen=True)
class Tolerance:
    """The tolerance: `max_error` relative to an output's scale; `differing`, the fraction of unequal integers and bools.

    Where one of these is given, it is judged instead of `max_error`. cosine: the smallest of an output with the reference's. Of logits:
    kl, the largest Kullback-Leibler divergence of a row, in nats, and top1, the smallest fraction of rows with the same largest element.
    """

    max_error: float
    differing: float = 0.01
    cosine: float | None = None
    kl: float | None = None
    top1: float | None = None

    def loosened(self, sensitivity: float) -> Tolerance:
        """Raise the tolerance of an output that changes by `sensitivity` when its inputs are rounded once: code rounds at every step."""
        return replace(self, max_error=max(self.max_error, ROUNDINGS * sensitivity))

    def asked(self, text: str) -> Tolerance:
        """Return the tolerance with what a user asks for instead, as `parse_budget` reads it."""
        asked: dict[str, Any] = {**dict.fromkeys(FIGURES), **parse_budget(text)}
        return replace(self, **asked)

    @property
    def figure(self) -> str:
        """Return the name of what is judged: "max_error", "cosine", "kl" or "top1"."""
        return next((name for name in FIGURES if getattr(self, name) is not None), MAX_ERROR)

    def shown(self) -> str:
        """Format the bound of outputs of floats."""
        figure = self.figure
        return f"{self.max_error:.2e}" if figure == MAX_ERROR else f"{figure}{FIGURES[figure]}{getattr(self, figure):g}"

    def to_json(self) -> dict[str, float]:
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def parse(cls, fields: Fields) -> Tolerance:
        figures = {name: fields.number(name) for name in FIGURES if name in fields.value}
        return cls(fields.number("max_error"), fields.number("differing"), **figures)


def parse_budget(text: str) -> dict[str, float]:
    """Parse what `--budget` takes as the bound of one figure by its name: `1e-3`, `cosine>=0.999`, `kl<=0.01` or `top1>=0.98`.

    Raises UserError.
    """
    found = re.fullmatch(r"\s*(?:(\w+)\s*(>=|<=))?\s*(\S+)\s*", text)
    figure, sign, number = found.groups() if found else (None, None, "")
    name = figure or MAX_ERROR
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if name in _BOUNDS and FIGURES.get(name) == sign and _BOUNDS[name][0] <= value <= _BOUNDS[name][1]:
        return {name: value}
    raise UserError(
        f"--budget {text}: give the largest relative error to allow, such as 1e-4, a cosine, such as cosine>=0.999, or, of logits, "
        "a divergence, such as kl<=0.01, or a part of equal best ones, such as top1>=0.98"
    )


@dataclass(frozen=True)
class Deviation:
    """`max_error` and `mean_error`, relative to the reference's largest finite magnitude; inf if any elements are `unmatched`, that is,
    NaN or Inf on one side only. Equal NaN or Inf on both sides match.

    `differing`: fraction of unequal elements, for integers and bools. For logits, `kl` is the largest Kullback-Leibler divergence
    KL(softmax(reference) || softmax(got)) of a row, in nats, and `top1` the fraction of rows with the same largest element.
    """

    max_error: float
    mean_error: float
    cosine: float
    differing: float | None = None
    kl: float | None = None
    top1: float | None = None
    unmatched: int = 0

    def within(self, budget: Tolerance) -> bool:
        if self.differing is not None:
            return self.differing <= budget.differing
        judged = (name for name in FIGURES if getattr(budget, name) is not None and getattr(self, name) is not None)
        figure = next(judged, MAX_ERROR)
        found, bound = getattr(self, figure), getattr(budget, figure)
        if figure == MAX_ERROR:
            return bool(found <= bound)
        return not self.unmatched and bool(found >= bound if FIGURES[figure] == ">=" else found <= bound)

    def to_json(self) -> dict[str, Any]:
        """Return figures of three digits, without those that don't apply; JSON has no infinity, which `unmatched` implies."""
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
    """Convert values to float64 (complex ones to complex128); bfloat16 is given as uint16."""
    if dtype == "bfloat16":
        array = from_bfloat16(array)
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def scale_of(array: np.ndarray, dtype: str) -> float:
    """Return the largest finite magnitude, at least SMALLEST_SCALE."""
    largest = SMALLEST_SCALE
    for values, _ in _blocks(array, array, dtype):
        magnitudes = np.abs(values)
        largest = max(largest, float(np.max(magnitudes, initial=0.0, where=np.isfinite(magnitudes))))
    return largest


def measure(got: np.ndarray, want: np.ndarray, dtype: str, *, scale: float | None = None, logits: bool = False) -> Deviation:
    """Compare two arrays of one shape; `want` is the reference.

    dtype: numpy's name, or "bfloat16" for arrays of uint16. scale: of the whole output if the arrays are samples of it.
    logits: whether the last dimension holds logits.
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
    """Clamp an overflowed error of finite numbers to the largest float, because infinity means unmatched elements."""
    return error if unmatched else min(error, sys.float_info.max)


def _with_rows(found: Deviation, a: np.ndarray, b: np.ndarray) -> Deviation:
    """Add the figures of logits."""
    return replace(found, kl=_divergence(a, b), top1=float(np.mean(np.argmax(a, -1) == np.argmax(b, -1))))


def _blocks(got: np.ndarray, want: np.ndarray, dtype: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield both arrays in float64, in blocks that fit in cache."""
    flat = got.reshape(-1), want.reshape(-1)
    for start in range(0, got.size, _BLOCK):
        a, b = (numbers(each[start : start + _BLOCK], dtype) for each in flat)
        yield a, b


@dataclass
class _Totals:
    """Accumulated statistics over blocks of two arrays."""

    largest: float = 0.0
    errors: float = 0.0
    differing: int = 0
    unmatched: int = 0
    products: np.ndarray = field(default_factory=lambda: np.zeros(3))  # a·a, b·b, a·b of elements that are finite on both sides

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
        """Return the cosine similarity; 1 if both arrays are all zeros."""
        squared_a, squared_b, product = (float(each) for each in self.products)
        length = math.sqrt(squared_a) * math.sqrt(squared_b)
        if length == 0.0:
            return 1.0 if squared_a == squared_b == 0.0 else 0.0
        return product / length if math.isfinite(product / length) else 0.0


def is_exact(dtype: str) -> bool:
    """Whether values are integers or bools, which are compared exactly."""
    return dtype == "bool" or dtype.startswith(("int", "uint"))


def _errors(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return |a - b|; 0 if both are NaN or the same infinity, inf if only one is."""
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
