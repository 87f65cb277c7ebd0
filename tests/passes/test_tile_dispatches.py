"""tile-dispatches: dispatches carry what a search chose for them, and weights are packed as wide as that says."""

from __future__ import annotations

import pytest
import torch

from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.tiling import Tiling, Tilings
from llmos.passes.form_dispatches import FormDispatches
from llmos.passes.pack_weights import PackWeights
from llmos.passes.tile_dispatches import TileDispatches, tiling_key

from .ir_tests import apply, check, functions, generics

X = torch.randn(3, 24)
W = torch.randn(24, 64)


def formed() -> ir.Module:
    return apply(generics(lambda w, x: torch.tanh(x @ w) @ w.t(), X, weights=(W,)), FormDispatches())


def contractions(module: ir.Module) -> list[ir.Operation]:
    return [op for op in functions(module) if "contraction" in ir.StringAttr(op.attributes["sym_name"]).value]


def test_choices_reach_their_dispatch_and_the_weight_it_reads() -> None:
    module = formed()
    key = tiling_key(contractions(module)[0])
    tile = TileDispatches(Tilings(((key, Tiling("x86-64-v4", columns=32, rows=16)),)))
    check(
        apply(module, tile, PackWeights()),
        """
        CHECK: func.func @main(
        CHECK-SAME: llmos.packed = [array<i64: 1>, array<i64: 0>, array<i64: 32>]
        CHECK-SAME: llmos.packed = [array<i64: 0>, array<i64: 1>]
        CHECK: func.func private @d0_contraction
        CHECK-SAME: llmos.packed = [array<i64: 1>, array<i64: 0>, array<i64: 32>]
        CHECK-SAME: llmos.tiling = "target=x86-64-v4+columns=32+rows=16"
        CHECK-NOT: llmos.tiling
        """,
    )


def test_a_key_is_the_same_before_and_after_tiling_and_packing() -> None:
    module = formed()
    before = [tiling_key(op) for op in contractions(module)]
    tile = TileDispatches(Tilings(tuple((key, Tiling(columns=32)) for key in before)))
    after = [tiling_key(op) for op in contractions(apply(module, tile, PackWeights()))]
    assert before == after
    assert len(set(before)) == 2


def test_the_pass_is_written_and_read_as_text() -> None:
    tilings = Tilings((("0123abcd", Tiling("x86-64-v4", columns=64, lines=0)), ("beef", Tiling("x86-64-v4", rows=8))))
    assert Tilings.parse(str(tilings)) == tilings
    assert str(TileDispatches(tilings)) == "tile-dispatches{tilings=" + str(tilings) + "}"


@pytest.mark.parametrize("text", ["columns=17", "rows=0", "rows=x", "deep=3", "depth=-4", "lines=65", "ahead=-1"])
def test_choices_that_there_are_not_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=text.partition("=")[0]):
        Tiling.parse(text)


def test_only_the_width_of_panels_counts_on_other_targets() -> None:
    tiling = Tiling("x86-64-v4", columns=32, rows=16)
    assert tiling.on(CpuTarget.parse("x86-64-v4")) == tiling
    assert tiling.on(CpuTarget.parse("x86-64-v4-bf16")) == tiling
    assert tiling.on(CpuTarget.parse("x86-64-v3")) == Tiling(columns=32)
