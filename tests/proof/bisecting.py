"""Runs bisections on models with seeded miscompiles."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import pytest

from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.execution.interpreter import OpCache
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.verify.bisect import Verdict, bisect
from tests.proof.miscompiles import (
    Expected,
    InPass,
    LostTile,
    StaleBuffer,
    WrongPacking,
    drop_bias,
    drop_epilogue,
    forward_operand,
    round_to_bfloat16,
    scale_constant,
    swap_operands,
    wrong_axis,
    wrong_broadcast,
    wrong_identity,
    wrong_pad,
)

CACHE = OpCache(opt_level=0)  # ops that the interpreter compiled: the tests look at the same model again and again
OPTIONS = CompileOptions(target="native", cache=False, repro=None)


class Miscompile(Protocol):
    """Plants one error; what it gives says, once a compile has run, where the error is."""

    def plant(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Expected]: ...


# A bias of keys would change nothing: it adds the same to all scores of a query. The shares lead elsewhere.
ENCODER: dict[str, Miscompile] = {
    "wrong axis": InPass("form-dispatches", wrong_axis, share=0.63),
    "dropped epilogue": InPass("form-dispatches", drop_epilogue("math.erf")),
    "stale buffer": StaleBuffer(),
    "lost tail of rows": LostTile("row_reduction"),
    "lost tail of columns": LostTile("contraction"),
    "lost tail of queries": LostTile("attention"),
    "wrong broadcast": InPass("form-dispatches", wrong_broadcast, share=0.63),
    "dropped bias": InPass("linalg-generalize-named-ops", drop_bias, share=0.63),
    "swapped difference": InPass("form-dispatches", swap_operands("arith.subf")),
    "swapped quotient": InPass("label-dispatches", swap_operands("arith.divf"), "row_reduction"),
    "wrong scale in attention": InPass("form-dispatches", scale_constant(0.3, 0.4, 0.5), "attention", share=0.1),
    "wrong packing order": WrongPacking(),
    "bfloat16 where none should be": InPass("form-dispatches", round_to_bfloat16, "row_reduction"),
    "lost mask": InPass("form-dispatches", forward_operand("arith.select", 1), "attention", share=0.1),
    "wrong identity of a sum": InPass("form-dispatches", wrong_identity, "row_reduction"),
}
CONVOLUTIONS: dict[str, Miscompile] = {
    "wrong pad value": InPass("form-dispatches", wrong_pad),
    "dropped activation": InPass("form-dispatches", drop_epilogue("arith.maximumf"), "contraction"),
}


def found(imported: ImportedModel, miscompile: Miscompile, monkeypatch: pytest.MonkeyPatch) -> Verdict:
    """Bisects a model with an error in its compile, and checks that what it names is where the error was planted."""
    expected = miscompile.plant(monkeypatch)
    start_s = time.perf_counter()
    verdict = bisect(imported, OPTIONS, lambda _: None, CACHE)
    print(f"{time.perf_counter() - start_s:.1f} s: {verdict.line()}")
    want = expected()
    assert verdict.kind == want.kind and verdict.stage.startswith(want.stage), verdict.line()
    assert not want.dispatch or verdict.dispatch == want.dispatch, f"{verdict.line()}; planted in {want}"
    assert not want.place or want.place in verdict.source, f"{verdict.line()}; planted in {want}"
    return verdict
