"""fuse-loops: independent loops with the same turns become one; others stay apart."""

from __future__ import annotations

import pytest

from llmos.compiler.analysis.loops import Loop, loops_in
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.shapes import Shapes
from llmos.compiler.ir.sizes import SymbolTable
from llmos.passes.form_dispatches import FormDispatches
from llmos.passes.fuse_loops import FuseLoops

from .ir_tests import apply, check, functions, parse

LOOP = """
    %{name}:2 = scf.for %i = %c0 to %{bound} step %c1 iter_args(%ys = %y, %h = %{init}) -> (tensor<?x4xf32>, tensor<4xf32>) {{
      %row = tensor.extract_slice %x[%i, 0] [1, 4] [1, 1] : tensor<?x4xf32> to tensor<4xf32>
      %s = linalg.generic {{indexing_maps = [#d, #d, #d], iterator_types = ["parallel"]}} ins(%row, %h : tensor<4xf32>, tensor<4xf32>)
          outs(%e : tensor<4xf32>) {{
      ^bb0(%u: f32, %v: f32, %o: f32):
        %t = arith.mulf %u, %v : f32
        linalg.yield %t : f32
      }} -> tensor<4xf32>
      %z = tensor.insert_slice %s into %ys[%i, 0] [1, 4] [1, 1] : tensor<4xf32> into tensor<?x4xf32>
      scf.yield %z, %s : tensor<?x4xf32>, tensor<4xf32>
    }}
"""


def loop(name: str, init: str = "p", bound: str = "n") -> str:
    return LOOP.format(name=name, init=init, bound=bound)


def program(*loops: str) -> ir.Module:
    body = "".join(loops)
    return parse(
        f"""#d = affine_map<(i) -> (i)>
        module attributes {{llmos.symbols = {{n = array<i64: 0, 100>}}}} {{
          func.func @main(%x: tensor<?x4xf32> {{llmos.kind = "input", llmos.name = "x", llmos.dtype = "float32", llmos.shape = ["n", 4]}},
                          %p: tensor<4xf32> {{llmos.kind = "input", llmos.name = "p", llmos.dtype = "float32", llmos.shape = [4]}})
              -> (tensor<?x4xf32>, tensor<4xf32>) {{
            %c0 = arith.constant 0 : index
            %c1 = arith.constant 1 : index
            %n = tensor.dim %x, %c0 : tensor<?x4xf32>
            %y = tensor.empty(%n) : tensor<?x4xf32>
            %e = tensor.empty() : tensor<4xf32>
            {body}
            return %a#0, %b#1 : tensor<?x4xf32>, tensor<4xf32>
          }}
        }}"""
    )


def loops(module: ir.Module) -> list[Loop]:
    main = functions(module)[0]
    shapes = Shapes.of(main, SymbolTable.of(module))
    return [Loop(op, shapes) for op in loops_in(main.regions[0].blocks[0])]


def test_two_directions_become_parts_of_one_loop() -> None:
    module = apply(program(loop("a"), loop("b")), FuseLoops())
    check(
        module,
        """
        CHECK: llmos.induction_variables = {step0 = array<i64: 0, 99>}
        CHECK: %[[R:.*]]:4 = scf.for %[[I:.*]] = %{{.*}} to %{{.*}} iter_args({{.*}}, {{.*}}, {{.*}}, {{.*}})
        CHECK: extract_slice %arg0[%[[I]], 0]
        CHECK: extract_slice %arg0[%[[I]], 0]
        CHECK: llmos.induction_variable = "step0"
        CHECK: return %[[R]]#0, %[[R]]#3
        """,
    )
    (formed,) = loops(apply(module, FormDispatches()))
    assert [len(part) for part in formed.parts] == [1, 1]


def test_three_become_one() -> None:
    module = apply(program(loop("a"), loop("q"), loop("b")), FuseLoops())
    (fused,) = loops(module)
    assert fused.states == [1, 3, 5] and sorted(fused.scan_outputs) == [0, 2, 4]


@pytest.mark.parametrize("other", [loop("b", init="a#1"), "%m = arith.addi %n, %n : index" + loop("b", bound="m")])
def test_a_loop_that_needs_the_other_or_takes_other_turns_stays_apart(other: str) -> None:
    if "%m" in other:  # a stack of the wrong size is no stack, so this one wouldn't run as dispatches anyway
        other = other.replace("iter_args(%ys = %y", "iter_args(%ys = %y2").replace("%m = arith.addi %n, %n : index", M)
    assert len(loops(apply(program(loop("a"), other), FuseLoops()))) == 2


M = "%m = arith.addi %n, %n : index\n%y2 = tensor.empty(%m) : tensor<?x4xf32>\n"


def test_a_loop_whose_tensor_is_written_in_pieces_is_left_to_the_fallback() -> None:
    text = loop("a").replace("into %ys[%i, 0] [1, 4]", "into %ys[%i, 0] [1, 2]").replace("insert_slice %s", "insert_slice %w")
    text = text.replace("      %z =", "      %w = tensor.extract_slice %s[0] [2] [1] : tensor<4xf32> to tensor<2xf32>\n      %z =")
    text = text.replace(": tensor<4xf32> into tensor<?x4xf32>", ": tensor<2xf32> into tensor<?x4xf32>")
    assert len(loops(apply(program(text, loop("b")), FuseLoops()))) == 1
