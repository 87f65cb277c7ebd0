"""What data decides in the plain loops of the fallback, and reads of tensors that may have no elements."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from llmos.runtime.errors import InputError

from .programs import V3, compile_text

PLACES = (-(2**63), -(10**11), -4, -1, 3, 4, 2**32, 2**32 + 1, 10**11, 2**63 - 1)

# Reads x[at], divides by it, and writes the quotient there: loops over elements, which only the fallback takes.
LOOP = """
module attributes {llmos.symbols = {n = array<i64: 0, 64>}} {
  func.func @main(%x: tensor<3xi64> {llmos.kind = "input", llmos.name = "x", llmos.dtype = "int64", llmos.shape = [3]},
                  %at: tensor<?xi64> {llmos.kind = "input", llmos.name = "at", llmos.dtype = "int64", llmos.shape = ["n"]})
      -> (tensor<3xi64> {llmos.name = "y", llmos.dtype = "int64"}) {
    %c0 = arith.constant 0 : index
    %c1 = arith.constant 1 : index
    %n = tensor.dim %at, %c0 : tensor<?xi64>
    %one = arith.constant 100 : i64
    %y = scf.for %i = %c0 to %n step %c1 iter_args(%held = %x) -> tensor<3xi64> {
      %raw = tensor.extract %at[%i] : tensor<?xi64>
      %place = arith.index_cast %raw : i64 to index
      %old = tensor.extract %held[%place] : tensor<3xi64>
      %made = arith.divsi %one, %old : i64
      %next = tensor.insert %made into %held[%place] : tensor<3xi64>
      scf.yield %next : tensor<3xi64>
    }
    return %y : tensor<3xi64>
  }
}
"""


def test_loops_over_elements_check_what_data_asks_for() -> None:
    program = compile_text(LOOP, target=V3)
    x = np.array([7, 0, -1])
    assert program(x, np.array([2, 0, 1])).tolist() == [14, 0, -100]
    assert program(x, np.empty(0, np.int64)).tolist() == x.tolist()
    for place in PLACES:
        with pytest.raises(InputError, match="index"):
            program(x, np.array([0, place, 1]))
    assert program(x, np.array([0])).tolist() == [14, 0, -1]
    program.check_integrity()


def test_integer_division_in_loops_never_traps() -> None:
    program = compile_text(LOOP.replace("arith.constant 100", f"arith.constant {-(2**63)}"), target=V3)
    assert program(np.array([-1, 0, 2]), np.array([0, 1, 2])).tolist() == [-(2**63), 0, -(2**62)]


# Rows of a table that may have none, a padding of it, and a concatenation of it with others.
EMPTY = """
#at = affine_map<(i, j) -> (i)>
#all = affine_map<(i, j) -> (i, j)>
module attributes {llmos.symbols = {n = array<i64: 0, 64>, rows = array<i64: 0, 64>}} {
  func.func @main(%x: tensor<?x40xf32> {llmos.kind = "input", llmos.name = "x", llmos.dtype = "float32", llmos.shape = ["rows", 40]},
                  %at: tensor<?xi64> {llmos.kind = "input", llmos.name = "at", llmos.dtype = "int64", llmos.shape = ["n"]})
      -> (tensor<?x40xf32> {llmos.name = "taken", llmos.dtype = "float32"},
          tensor<?x40xf32> {llmos.name = "padded", llmos.dtype = "float32"},
          tensor<?x40xf32> {llmos.name = "joined", llmos.dtype = "float32"}) {
    %c0 = arith.constant 0 : index
    %three = arith.constant 3.0 : f32
    %n = tensor.dim %at, %c0 : tensor<?xi64>
    %e = tensor.empty(%n) : tensor<?x40xf32>
    %taken = linalg.generic {indexing_maps = [#at, #all], iterator_types = ["parallel", "parallel"]}
        ins(%at : tensor<?xi64>) outs(%e : tensor<?x40xf32>) {
    ^bb0(%id: i64, %out: f32):
      %place = arith.index_cast %id : i64 to index
      %j = linalg.index 1 : index
      %v = tensor.extract %x[%place, %j] : tensor<?x40xf32>
      linalg.yield %v : f32
    } -> tensor<?x40xf32>
    %padded = tensor.pad %x low[2, 0] high[1, 0] {
    ^bb0(%i: index, %j: index):
      tensor.yield %three : f32
    } : tensor<?x40xf32> to tensor<?x40xf32>
    %joined = tensor.concat dim(0) %x, %taken, %x : (tensor<?x40xf32>, tensor<?x40xf32>, tensor<?x40xf32>) -> tensor<?x40xf32>
    return %taken, %padded, %joined : tensor<?x40xf32>, tensor<?x40xf32>, tensor<?x40xf32>
  }
}
"""


def _nowhere(shape: tuple[int, ...]) -> np.ndarray:
    """An array without elements whose address may not be read."""
    memory = (ctypes.c_float * 0).from_address(8)
    return np.frombuffer(memory, np.float32).reshape(shape)


def test_of_no_elements_none_is_read() -> None:
    program = compile_text(EMPTY, target=V3)
    for rows, at in ((5, [4, 0, 2]), (1, [0]), (3, []), (0, [])):
        x = np.random.default_rng(rows).random((rows, 40), np.float32) if rows else _nowhere((0, 40))
        taken, padded, joined = program(x, np.array(at, np.int64))
        assert np.array_equal(taken, x[at] if at else np.empty((0, 40), np.float32))
        assert np.array_equal(padded, np.pad(x, ((2, 1), (0, 0)), constant_values=3))
        assert np.array_equal(joined, np.concatenate([x, taken, x]))
    with pytest.raises(InputError, match="index"):
        program(_nowhere((0, 40)), np.array([0]))
