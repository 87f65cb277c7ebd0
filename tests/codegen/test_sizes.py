"""Programs at the ends of their ranges: nothing at all, symbols that start at 0, sizes that are expressions."""

from __future__ import annotations

import numpy as np
import pytest

from .programs import compile_text

HEADER = "module attributes {llmos.symbols = {b = array<i64: 0, 64>, n = array<i64: 0, 5000>}}"
X = '%x: tensor<?x?xf32> {llmos.kind = "input", llmos.name = "x", llmos.dtype = "float32", llmos.shape = ["b", "n"]}'
BODY = """
  func.func @main(%x_argument) -> (
      tensor<?x?xf32> {llmos.name = "twice", llmos.dtype = "float32"}, tensor<?xf32> {llmos.name = "rows", llmos.dtype = "float32"},
      tensor<?xf32> {llmos.name = "columns", llmos.dtype = "float32"}, tensor<?x?xf32> {llmos.name = "gram", llmos.dtype = "float32"}) {
    %c0 = arith.constant 0 : index
    %c1 = arith.constant 1 : index
    %zero = arith.constant 0.0 : f32
    %b = tensor.dim %x, %c0 : tensor<?x?xf32>
    %n = tensor.dim %x, %c1 : tensor<?x?xf32>
    %e = tensor.empty(%b, %n) : tensor<?x?xf32>
    %twice = linalg.generic {indexing_maps = [affine_map<(i, j) -> (i, j)>, affine_map<(i, j) -> (i, j)>],
        iterator_types = ["parallel", "parallel"]}
        ins(%x : tensor<?x?xf32>) outs(%e : tensor<?x?xf32>) {
    ^bb0(%a: f32, %o: f32):
      %s = arith.addf %a, %a : f32
      linalg.yield %s : f32
    } -> tensor<?x?xf32>
    %er = tensor.empty(%b) : tensor<?xf32>
    %zr = linalg.fill ins(%zero : f32) outs(%er : tensor<?xf32>) -> tensor<?xf32>
    %rows = linalg.reduce {arith.addf} ins(%x : tensor<?x?xf32>) outs(%zr : tensor<?xf32>) dimensions = [1]
    %ec = tensor.empty(%n) : tensor<?xf32>
    %zc = linalg.fill ins(%zero : f32) outs(%ec : tensor<?xf32>) -> tensor<?xf32>
    %columns = linalg.reduce {arith.addf} ins(%x : tensor<?x?xf32>) outs(%zc : tensor<?xf32>) dimensions = [0]
    %eg = tensor.empty(%b, %b) : tensor<?x?xf32>
    %zg = linalg.fill ins(%zero : f32) outs(%eg : tensor<?x?xf32>) -> tensor<?x?xf32>
    %gram = linalg.generic {
        indexing_maps = [affine_map<(i, j, k) -> (i, k)>, affine_map<(i, j, k) -> (j, k)>, affine_map<(i, j, k) -> (i, j)>],
        iterator_types = ["parallel", "parallel", "reduction"]} ins(%x, %x : tensor<?x?xf32>, tensor<?x?xf32>) outs(%zg : tensor<?x?xf32>) {
    ^bb0(%p: f32, %q: f32, %o: f32):
      %m = arith.mulf %p, %q : f32
      %s = arith.addf %o, %m : f32
      linalg.yield %s : f32
    } -> tensor<?x?xf32>
    return %twice, %rows, %columns, %gram : tensor<?x?xf32>, tensor<?xf32>, tensor<?xf32>, tensor<?x?xf32>
  }
"""


@pytest.fixture(scope="module")
def program() -> object:
    return compile_text(f"{HEADER} {{{BODY.replace('%x_argument', X)}}}")


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0), (1, 1), (5, 17), (3, 4999)])
def test_sizes_from_nothing_on(program: object, shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    twice, rows, columns, gram = program(x)  # type: ignore[operator]
    np.testing.assert_array_equal(twice, x + x)
    np.testing.assert_allclose(rows, x.sum(1), atol=1e-3)
    np.testing.assert_allclose(columns, x.sum(0), atol=1e-4)
    np.testing.assert_allclose(gram, x @ x.T, atol=2e-2)


def test_an_entry_that_computes_nothing_from_its_input() -> None:
    text = """module {
      func.func @main(%x: tensor<3xf32> {llmos.kind = "input", llmos.name = "x", llmos.dtype = "float32", llmos.shape = [3]})
          -> (tensor<f32> {llmos.name = "y", llmos.dtype = "float32"}) {
        %one = arith.constant dense<1.5> : tensor<f32>
        return %one : tensor<f32>
      }
    }"""
    y = compile_text(text)(np.zeros(3, np.float32))
    assert isinstance(y, np.ndarray)
    assert (y.shape, float(y)) == ((), 1.5)


def test_sizes_that_are_expressions() -> None:
    """A pad and a join: outputs of n + 3 and 2 n + 3 elements."""
    text = """module attributes {llmos.symbols = {n = array<i64: 1, 5000>}} {
      func.func @main(%x: tensor<?xf32> {llmos.kind = "input", llmos.name = "x", llmos.dtype = "float32", llmos.shape = ["n"]})
          -> (tensor<?xf32> {llmos.name = "padded", llmos.dtype = "float32"},
              tensor<?xf32> {llmos.name = "joined", llmos.dtype = "float32"}) {
        %seven = arith.constant 7.0 : f32
        %p = tensor.pad %x low[1] high[2] {
        ^bb0(%i: index):
          tensor.yield %seven : f32
        } : tensor<?xf32> to tensor<?xf32>
        %j = tensor.concat dim(0) %p, %x : (tensor<?xf32>, tensor<?xf32>) -> tensor<?xf32>
        return %p, %j : tensor<?xf32>, tensor<?xf32>
      }
    }"""
    program = compile_text(text)
    for n in (1, 16, 31, 5000):
        x = np.arange(n, dtype=np.float32)
        padded, joined = program(x)
        np.testing.assert_array_equal(padded, np.pad(x, (1, 2), constant_values=7))
        np.testing.assert_array_equal(joined, np.concatenate([padded, x]))
