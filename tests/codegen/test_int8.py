"""Products of unsigned by signed bytes: the same integers from every variant of the kernels, whatever the sizes."""

from __future__ import annotations

import numpy as np
import pytest

from llmos.runtime.program import Program

from .programs import V3, V4, compile_text, in_turn

TARGETS = ("x86-64-v4-amx", "x86-64-v4-vnni", V4, "x86-64-v3-vnni", V3)


def product(m: int | None, n: int, k: int, target: str, weight: np.ndarray, start: int = 0) -> Program:
    """The program of [m, k] bytes by a weight [n, k], with 32-bit sums that start at a number. m: None for any."""
    rows, symbols = ("?", "{m = array<i64: 1, 512>}") if m is None else (str(m), "{}")
    shape, out = (f'["m", {k}]', f'["m", {n}]') if m is None else (f"[{m}, {k}]", f"[{m}, {n}]")
    size = f"%c0 = arith.constant 0 : index\n %m = tensor.dim %x, %c0 : tensor<?x{k}xi8>" if m is None else ""
    empty = "(%m)" if m is None else "()"
    text = f"""
    module attributes {{llmos.symbols = {symbols}}} {{
      func.func @main(%x: tensor<{rows}x{k}xi8> {{llmos.kind = "input", llmos.name = "x", llmos.dtype = "uint8", llmos.shape = {shape}}},
                      %w: tensor<{n}x{k}xi8> {{llmos.kind = "weight", llmos.name = "w", llmos.dtype = "int8"}})
          -> (tensor<{rows}x{n}xi32> {{llmos.name = "y", llmos.dtype = "int32", llmos.shape = {out}}}) {{
        {size}
        %start = arith.constant {start} : i32
        %empty = tensor.empty{empty} : tensor<{rows}x{n}xi32>
        %init = linalg.fill ins(%start : i32) outs(%empty : tensor<{rows}x{n}xi32>) -> tensor<{rows}x{n}xi32>
        %y = linalg.generic {{indexing_maps = [affine_map<(i, j, l) -> (i, l)>, affine_map<(i, j, l) -> (j, l)>,
                                               affine_map<(i, j, l) -> (i, j)>],
                              iterator_types = ["parallel", "parallel", "reduction"]}}
            ins(%x, %w : tensor<{rows}x{k}xi8>, tensor<{n}x{k}xi8>) outs(%init : tensor<{rows}x{n}xi32>) {{
          ^bb0(%a: i8, %b: i8, %c: i32):
            %u = arith.extui %a : i8 to i32
            %s = arith.extsi %b : i8 to i32
            %p = arith.muli %u, %s : i32
            %t = arith.addi %c, %p : i32
            linalg.yield %t : i32
        }} -> tensor<{rows}x{n}xi32>
        return %y : tensor<{rows}x{n}xi32>
      }}
    }}"""
    return compile_text(text, {"w": weight}, target)


def operands(m: int, n: int, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (m, k), np.uint8)
    w = rng.integers(-128, 128, (n, k), np.int8)
    x.flat[: k // 2], w.flat[: k // 2] = 255, -128  # the largest products: no sum of two fits 16 bits
    return x, w


SIZES = ((1, 1), (5, 3), (16, 4), (33, 7), (48, 64), (50, 66), (100, 130), (64, 256), (96, 4100))


@pytest.mark.parametrize(("n", "k", "target"), in_turn(SIZES, TARGETS, each=2))
def test_every_size_gives_the_exact_sum(n: int, k: int, target: str) -> None:
    _, w = operands(1, n, k, 0)
    program = product(None, n, k, target, w)
    for m in (1, 2, 3, 7, 16, 33, 64):
        x, _ = operands(m, n, k, m)
        np.testing.assert_array_equal(np.asarray(program(x)), x.astype(np.int32) @ w.astype(np.int32).T)


@pytest.mark.parametrize("target", TARGETS)
def test_sums_wrap_around_as_32_bits_do(target: str) -> None:
    x, w = operands(3, 40, 64, 1)
    start = 2**31 - 1
    program = product(3, 40, 64, target, w, start)
    expected = x.astype(np.int64) @ w.astype(np.int64).T + start
    np.testing.assert_array_equal(np.asarray(program(x)), expected.astype(np.int32))


def test_the_kernel_is_a_contraction_with_a_packed_weight() -> None:
    _, w = operands(1, 48, 64, 0)
    program = product(None, 48, 64, V3, w)
    assert [kernel.kind for kernel in program.manifest.kernels] == ["contraction"]
    assert [tuple(weight.shape) for weight in program.manifest.weights] == [(1, 16, 48, 4)]
