"""The advisor of `--quant auto`: the products whose rounding costs most per multiplication stay in float, until the budget holds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmos.compiler.calibration.native import NativeProgram
from llmos.compiler.calibration.sensitivity import Excess, Judge, SwitchedProgram
from llmos.compiler.calibration.statistics import Step
from llmos.runtime.artifact.deviation import MAX_ERROR, Tolerance
from llmos.runtime.errors import UserError

MARGIN = 0.5  # of the budget: among many more inputs the worst is about twice as bad (MiniLM: 64 and 200 sentences)
SAMPLE = 16  # calls on which each product is measured alone
ROUNDS = 7  # of timing


@dataclass(frozen=True)
class Decision:
    """keep: numbers of products that stay in float; alone: what each costs where it alone is quantized; excess: of the whole."""

    keep: tuple[int, ...]
    alone: tuple[Excess, ...]
    excess: Excess


def decide(switched: SwitchedProgram, judge: Judge, work: Sequence[int], step: Step) -> Decision:
    """Choose what stays in float. work: multiplications that quantizing each product makes cheaper.

    Raises UserError where no product may be quantized.
    """
    sample, count = judge.some(SAMPLE), len(work)
    alone = []
    for number in range(count):
        alone.append(sample.excess(switched.quantizing({number})))
        step(number + 1, count)
    judge = judge.worst_first(switched.keeping(()))
    order = sorted(range(count), key=lambda number: alone[number].mean / work[number], reverse=True)
    keep = _enough(switched, judge, order)
    for number in reversed(keep[:-1]):  # what others have made up for
        fewer = [each for each in keep if each != number]
        if judge.is_within(switched.keeping(fewer), MARGIN):
            keep = fewer
    return Decision(tuple(sorted(keep)), tuple(alone), judge.excess(switched.keeping(keep)))


def _enough(switched: SwitchedProgram, judge: Judge, order: Sequence[int]) -> list[int]:
    """The first of `order` that keep the whole within the budget."""
    for count in range(len(order)):
        if judge.is_within(switched.keeping(order[:count]), MARGIN):
            return list(order[:count])
    raise UserError(f"--quant auto: no product can be quantized within {budget_text(judge.budget)}; allow more with --budget")


def budget_text(budget: Tolerance) -> str:
    """As `--budget` takes it."""
    return budget.shown() if budget.figure != MAX_ERROR else f"an error of {budget.max_error:g}"


def speedup(plain: NativeProgram, quantized: NativeProgram, calls: Sequence[Sequence[np.ndarray]]) -> float:
    """Return the time of the float program over that of the quantized one, on one core, over the largest calls."""
    largest = sorted(calls, key=lambda call: sum(array.size for array in call))[-4:]
    total = [0.0, 0.0]
    for call in largest:
        rounds = [(plain.seconds(call), quantized.seconds(call)) for _ in range(ROUNDS)]
        total = [before + statistics.median(times) for before, times in zip(total, zip(*rounds, strict=True), strict=True)]
    return total[0] / total[1]


def require_faster(ratio: float, num_kept: int, num_products: int, budget: Tolerance) -> None:
    """Raises UserError for a plan that gains nothing."""
    if ratio <= 1:
        raise UserError(
            f"--quant auto: within {budget_text(budget)} {num_kept} of {num_products} products stay in float, and the plan has "
            f"{ratio:.2f} times the speed of float: compile without --quant, or allow more with --budget"
        )
