"""hoist-extensions: factors of half precision are extended before a contraction, which then is one of float32."""

from __future__ import annotations

import pytest

from llmos.compiler.analysis.contraction import float_contraction_of
from llmos.compiler.ir.bindings import context, ir
from llmos.passes.hoist_extensions import HoistExtensions

from .ir_tests import apply, check, functions

PRODUCT = """
#l = affine_map<(m, n, k) -> (m, k)>
#r = affine_map<(m, n, k) -> (k, n)>
#o = affine_map<(m, n, k) -> (m, n)>
func.func @main(%a: tensor<4x8xLEFT>, %b: tensor<8x16xf16>, %o: tensor<4x16xf32>) -> tensor<4x16xf32> {
  %r = linalg.generic {indexing_maps = [#l, #r, #o], iterator_types = ["parallel", "parallel", "reduction"]}
      ins(%a, %b : tensor<4x8xLEFT>, tensor<8x16xf16>) outs(%o : tensor<4x16xf32>) {
  ^bb0(%x: LEFT, %y: f16, %z: f32):
    EXTENDED
    %q = arith.extf %y : f16 to f32
    %s = arith.mulf %p, %q : f32
    %t = arith.OP %z, %s : f32
    linalg.yield %t : f32
  } -> tensor<4x16xf32>
  return %r : tensor<4x16xf32>
}
"""
WIDE = "%p = arith.extf %x : f16 to f32"


def product(left: str = "f16", extended: str = WIDE, op: str = "addf") -> ir.Module:
    with context(), ir.Location.unknown():
        return ir.Module.parse(PRODUCT.replace("LEFT", left).replace("EXTENDED", extended).replace("OP", op))


def contractions(module: ir.Module) -> int:
    return sum(float_contraction_of(op.operation) is not None for op in functions(module)[0].regions[0].blocks[0].operations)


def test_both_factors() -> None:
    module = product()
    assert contractions(module) == 0
    check(
        apply(module, HoistExtensions()),
        """
        CHECK: arith.extf
        CHECK: arith.extf
        CHECK: ins(%{{.*}}, %{{.*}} : tensor<4x8xf32>, tensor<8x16xf32>)
        CHECK-NOT: arith.extf
        """,
    )
    assert contractions(module) == 1


def test_one_factor() -> None:
    module = apply(product("f32", "%p = arith.addf %x, %x : f32"), HoistExtensions())
    assert contractions(module) == 0  # more than a product
    text = PRODUCT.replace("LEFT", "f32").replace("EXTENDED", "").replace("%p, %q", "%x, %q").replace("OP", "addf")
    with context(), ir.Location.unknown():
        module = ir.Module.parse(text)
    assert contractions(apply(module, HoistExtensions())) == 1


@pytest.mark.parametrize("op", ["maximumf", "mulf"])
def test_other_reductions_keep_their_bodies(op: str) -> None:
    module = product(op=op)
    before = str(module)
    assert str(apply(module, HoistExtensions())) == before
