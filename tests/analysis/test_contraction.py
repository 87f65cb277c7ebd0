"""Contractions over every type of element: what is one, how its factors are made, and that its numbers are right."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmos.compiler.analysis.contraction import Contraction, contraction_of, float_contraction_of
from llmos.compiler.frontend.mlir import import_mlir
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.frontend.torch import import_torch
from llmos.compiler.ir.bindings import ir
from llmos.passes import parse_pipeline, run_pipeline
from tests.conformance.inprocess import Compiled
from tests.frontend.harness import module_of
from tests.passes.ir_tests import QUIET, functions, parse
from tests.reference import Executor

# x [m, k] less zero points of m times w [k, n] less zero points of n; parts of the body are left out or replaced by the cases
PRODUCT = """
#x = affine_map<(m, n, k) -> (m, k)>
#w = affine_map<(m, n, k) -> (k, n)>
#xz = affine_map<(m, n, k) -> ()>
#wz = affine_map<(m, n, k) -> (n)>
#y = affine_map<(m, n, k) -> (m, n)>
func.func @main(%x: tensor<?x8xi8>, %w: tensor<8x6xi8>, %xz: tensor<i8>, %wz: tensor<6xi8>) -> tensor<?x6xi32> {
  %c0 = arith.constant 0 : index
  %zero = arith.constant 0 : i32
  %m = tensor.dim %x, %c0 : tensor<?x8xi8>
  %empty = tensor.empty(%m) : tensor<?x6xi32>
  %o = linalg.fill ins(%zero : i32) outs(%empty : tensor<?x6xi32>) -> tensor<?x6xi32>
  %r = linalg.generic {indexing_maps = [#x, #w, #xz, #wz, #y], iterator_types = ["parallel", "parallel", "reduction"]}
      ins(%x, %w, %xz, %wz : tensor<?x8xi8>, tensor<8x6xi8>, tensor<i8>, tensor<6xi8>) outs(%o : tensor<?x6xi32>) {
  ^bb0(%a: i8, %b: i8, %az: i8, %bz: i8, %acc: i32):
    %a0 = arith.LEFT %a : i8 to i32
    %b0 = arith.RIGHT %b : i8 to i32
    %az0 = arith.LEFT %az : i8 to i32
    %bz0 = arith.RIGHT %bz : i8 to i32
    %a1 = arith.subi %a0, %az0 : i32
    %b1 = arith.subi %b0, %bz0 : i32
    %p = arith.muli %a1, %b1 : i32
    %s = arith.addi %acc, %p : i32
    linalg.yield %s : i32
  } -> tensor<?x6xi32>
  return %r : tensor<?x6xi32>
}
"""
NUMPY = {"extsi": np.int8, "extui": np.uint8}


def product(left: str, right: str) -> str:
    return PRODUCT.replace("LEFT", left).replace("RIGHT", right)


def contractions(module: ir.Module) -> list[Contraction]:
    found = [contraction_of(op.operation) for op in functions(module)[0].regions[0].blocks[0].operations]
    return [each for each in found if each is not None]


@pytest.mark.parametrize("left", NUMPY)
@pytest.mark.parametrize("right", NUMPY)
def test_bytes_with_zero_points(left: str, right: str) -> None:
    """Every pair of signs: the view, and the numbers of the compiled code at several sizes."""
    module = parse(product(left, right))
    (found,) = contractions(module)
    assert [str(each) for each in found.types] == ["i8", "i8", "i32"] and not found.is_float
    assert (found.lhs_factor.is_unsigned, found.rhs_factor.is_unsigned) == (left == "extui", right == "extui")
    arguments = list(functions(module)[0].regions[0].blocks[0].arguments)
    assert (found.lhs, found.rhs) == (arguments[0], arguments[1])
    assert (found.lhs_factor.zero_point, found.rhs_factor.zero_point) == (arguments[2], arguments[3])
    assert float_contraction_of(found.generic.op) is None
    program = Compiled(import_mlir(product(left, right)))
    for m in (5, 1):
        x, w, xz, wz = _bytes(m, NUMPY[left], NUMPY[right])
        (got,) = program([each.view(np.int8) for each in (x, w, xz, wz)])
        np.testing.assert_array_equal(got, (x.astype(np.int32) - xz) @ (w.astype(np.int32) - wz))


def _bytes(m: int, left: type, right: type) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(m)
    shapes = (((m, 8), left), ((8, 6), right), ((), left), ((6,), right))
    return tuple(np.array(rng.integers(np.iinfo(t).min, np.iinfo(t).max, s, endpoint=True, dtype=t)) for s, t in shapes)


NAMED = """
func.func @main(%x: tensor<4x8xi8>, %w: tensor<8x6xi8>) -> tensor<4x6xi32> {
  %zero = arith.constant 0 : i32
  %xz = arith.constant 3 : i32
  %wz = arith.constant -2 : i32
  %empty = tensor.empty() : tensor<4x6xi32>
  %o = linalg.fill ins(%zero : i32) outs(%empty : tensor<4x6xi32>) -> tensor<4x6xi32>
  %r = OP outs(%o : tensor<4x6xi32>) -> tensor<4x6xi32>
  return %r : tensor<4x6xi32>
}
"""


@pytest.mark.parametrize(
    ("op", "has_zero_points"),
    [
        ("linalg.matmul ins(%x, %w : tensor<4x8xi8>, tensor<8x6xi8>)", False),
        ("linalg.quantized_matmul ins(%x, %w, %xz, %wz : tensor<4x8xi8>, tensor<8x6xi8>, i32, i32)", True),
    ],
    ids=("matmul", "quantized-matmul"),
)
def test_named_ops(op: str, has_zero_points: bool) -> None:
    """MLIR's own integer products, generalized."""
    module = parse(NAMED.replace("OP", op))
    run_pipeline(module, parse_pipeline("func.func(linalg-generalize-named-ops),canonicalize"), options=QUIET)
    (found,) = contractions(module)
    assert [str(each) for each in found.types] == ["i8", "i8", "i32"]
    assert (found.lhs_factor.zero_point is not None) == (found.rhs_factor.zero_point is not None) == has_zero_points
    x, w, _, _ = _bytes(4, np.int8, np.int8)
    (got,) = Compiled(import_mlir(NAMED.replace("OP", op)))([x, w])
    zeros = (3, -2) if has_zero_points else (0, 0)
    np.testing.assert_array_equal(got, (x.astype(np.int32) - zeros[0]) @ (w.astype(np.int32) - zeros[1]))


@pytest.mark.parametrize(
    ("instead", "of"),
    [
        ("%s = arith.subi %acc, %p : i32", "%s = arith.addi %acc, %p : i32"),  # no sum
        ("%p = arith.addi %a1, %b1 : i32", "%p = arith.muli %a1, %b1 : i32"),  # no product
        ("%a1 = arith.subi %az0, %a0 : i32", "%a1 = arith.subi %a0, %az0 : i32"),  # the zero point less the element
        ("%a1 = arith.ori %a0, %az0 : i32", "%a1 = arith.subi %a0, %az0 : i32"),  # no zero point
        ("%b1 = arith.subi %b0, %a0 : i32", "%b1 = arith.subi %b0, %bz0 : i32"),  # an element as the other's zero point
        ("%p = arith.muli %a1, %a1 : i32", "%p = arith.muli %a1, %b1 : i32"),  # one factor twice
    ],
)
def test_what_is_no_contraction(instead: str, of: str) -> None:
    text = product("extsi", "extsi")
    assert of in text
    assert contractions(parse(text.replace(of, instead))) == []


def imported(function: object, *inputs: torch.Tensor) -> ImportedModel:
    return import_torch(module_of(function), inputs)


def test_products_of_torch() -> None:
    """aten._int_mm keeps its bytes; a product of int32 is a contraction of those."""
    x, w, _, _ = _bytes(4, np.int8, np.int8)
    rows = torch.from_numpy(np.repeat(x, 8, 0)), torch.from_numpy(np.tile(w, (1, 4)))
    model = imported(lambda x, w: torch._int_mm(x, w), *rows)
    (found,) = contractions(model.module)
    assert [str(each) for each in found.types] == ["i8", "i8", "i32"]
    assert not found.lhs_factor.is_unsigned and found.lhs_factor.zero_point is None
    wanted = torch._int_mm(*rows).numpy()
    inputs = [each.numpy() for each in rows]
    np.testing.assert_array_equal(Executor(model.module, model.weights)(inputs)[0], wanted)
    np.testing.assert_array_equal(Compiled(model)(inputs)[0], wanted)
    model = imported(lambda x, w: x @ w, *(each.to(torch.int32) for each in rows))
    (found,) = contractions(model.module)
    assert [str(each) for each in found.types] == ["i32"] * 3 and found.lhs_factor.is_unsigned is None


def test_floats_are_multiplied_as_they_lie() -> None:
    model = imported(lambda x, w: x @ w, torch.ones(4, 8), torch.ones(8, 6))
    (found,) = contractions(model.module)
    assert found.is_float and float_contraction_of(found.generic.op) == found
    assert all(each.zero_point is None and each.is_unsigned is None for each in found.factors)
