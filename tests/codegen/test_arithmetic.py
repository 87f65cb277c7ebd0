"""Which arithmetic multiplies what: element types by target, and what each of them promises to plans."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from llmos.compiler.backends.cpu.arithmetic.amx import Bf16Tiles
from llmos.compiler.backends.cpu.arithmetic.base import Arithmetic, MatrixArithmetic, Operands, RegisterArithmetic
from llmos.compiler.backends.cpu.arithmetic.bf16_dot import Bf16Dot
from llmos.compiler.backends.cpu.arithmetic.bf16_extend import Bf16Extend, Bf16ExtendPanel
from llmos.compiler.backends.cpu.arithmetic.f32 import Float32
from llmos.compiler.backends.cpu.arithmetic.register_tile import UNROLL, register_tile
from llmos.compiler.backends.cpu.arithmetic.select import ARITHMETICS, arithmetic_of
from llmos.compiler.backends.cpu.target import TARGETS, CpuTarget
from llmos.compiler.ir.bindings import ir
from llmos.runtime.errors import UnsupportedError

NAMES = [target.name for target in TARGETS]
K = (1, 2, 31, 32, 33, 64, 4096, None)


@pytest.fixture(autouse=True)
def context() -> Iterator[None]:
    with ir.Context():
        yield


def of(left: str, right: str, k: int | None, target: str) -> Arithmetic:
    return arithmetic_of(Operands(ir.Type.parse(left), ir.Type.parse(right), k), CpuTarget.parse(target))


@pytest.mark.parametrize("target", [*NAMES, "x86-64-v4-amx@x86-64-v3", "x86-64-v4-bf16@x86-64-v4"])
def test_float32_weights_are_multiplied_in_float32(target: str) -> None:
    for left, k in itertools.product(("f32", "bf16"), K):
        assert isinstance(of(left, "f32", k, target), Float32)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("x86-64-v4-amx", Bf16Tiles),
        ("x86-64-v4-amx@x86-64-v3", Bf16Tiles),
        ("x86-64-v4-bf16", Bf16Dot),
        ("x86-64-v4-bf16@x86-64-v4", Bf16Dot),
        ("x86-64-v4", Bf16Extend),
        ("x86-64-v3", Bf16ExtendPanel),
        ("aarch64", Bf16Extend),
    ],
)
def test_bfloat16_by_the_best_of_a_target(target: str, expected: type[Arithmetic]) -> None:
    assert type(of("bf16", "bf16", 64, target)) is expected


@pytest.mark.parametrize("target", NAMES)
def test_float32_rows_by_a_bfloat16_weight_are_multiplied_in_float32(target: str) -> None:
    for k in K:
        assert isinstance(of("f32", "bf16", k, target).left_type, ir.F32Type)


def test_matrix_tiles_want_k_in_whole_tiles() -> None:
    found = {k: type(of("bf16", "bf16", k, "x86-64-v4-amx")) for k in K}
    assert found == {k: Bf16Tiles if k in (32, 64, 4096) else Bf16Extend for k in K}


def test_other_element_types_are_refused() -> None:
    for left, right in (("i8", "i16"), ("f64", "f64"), ("f32", "f16")):
        with pytest.raises(UnsupportedError, match=right):
            of(left, right, 64, "x86-64-v4")


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_blocks_of_k_are_whole_steps_and_scratch_holds_one(arithmetic: type[RegisterArithmetic | MatrixArithmetic]) -> None:
    made, shape = arithmetic(), register_tile(256)
    assert made.block_rows(shape) >= 1
    for k, most in itertools.product((1, 3, 64, 1000, 4096), (0, 1, 64, 4096)):
        block = made.k_block(k, most)
        assert block % max(UNROLL, made.k_per_word) == 0
        assert made.scratch_bytes(k, 48, block) >= 4 * 48 * block * isinstance(made, Bf16ExtendPanel)
        if block and most >= UNROLL:
            assert block < most + UNROLL or block <= -(-k // UNROLL) * UNROLL
