"""Views of functions: what the entry takes and gives, and how passes change its arguments."""

from collections.abc import Iterator

import pytest

from llmos.compiler.ir.attributes import WEIGHT, PackedLayout, items, tensor_attributes
from llmos.compiler.ir.bindings import context, ir
from llmos.compiler.ir.functions import DispatchFunc, EntryFunc, dispatch_functions, functions_of, public_functions

TEXT = """
func.func @main(
    %x: tensor<?x4xf32> {llmos.kind = "input", llmos.name = "x", llmos.dtype = "float32", llmos.shape = ["n", 4]},
    %s: tensor<4x2xf32> {llmos.kind = "input", llmos.name = "state.s", llmos.dtype = "complex64", llmos.shape = [4, 2], llmos.state = "s"},
    %w: tensor<4x4xf32> {llmos.kind = "weight", llmos.name = "w", llmos.dtype = "float32"},
    %u: tensor<4x4xf32> {llmos.kind = "weight", llmos.name = "x", llmos.dtype = "float32", llmos.packed = [array<i64: 0>, array<i64: 1>]})
  -> (tensor<4x2xf32> {llmos.name = "y", llmos.dtype = "float32"},
      tensor<?x4xf32> {llmos.name = "updated.x", llmos.dtype = "float32", llmos.updates = "x"}) {
  return %s, %x : tensor<4x2xf32>, tensor<?x4xf32>
}
func.func private @d0(%x: tensor<4xf32>) attributes {llmos.dispatch = "row_reduction", llmos.outer = 1 : i64} { return }
func.func private @other() { return }
"""


@pytest.fixture
def module() -> Iterator[ir.Module]:
    with context(), ir.Location.unknown():
        yield ir.Module.parse(TEXT)


def test_functions_of_a_module(module: ir.Module) -> None:
    assert list(functions_of(module)) == ["main", "d0", "other"]
    assert [EntryFunc(each).name for each in public_functions(module)] == ["main"]
    [dispatch] = map(DispatchFunc, dispatch_functions(module))
    assert (dispatch.name, dispatch.kind, dispatch.num_outer, dispatch.label) == ("d0", "row_reduction", 1, "")
    assert (dispatch.winograd_tile, dispatch.in_place) == (None, None)


def test_arguments_and_results(module: ir.Module) -> None:
    entry = EntryFunc.of(module)
    x, state = entry.arguments.inputs
    assert (x.name, x.shape, x.state, x.position) == ("x", ["n", 4], "", 0)
    assert (state.state, state.shape, state.callers_shape) == ("s", [4, 2], (4,))
    assert [(each.name, each.packed) for each in entry.arguments.weights] == [("w", None), ("x", PackedLayout((0,), (1,)))]
    assert [each.name for each in entry.outputs] == ["y"]
    assert entry.updated == {1: 0}  # the input of that name, not the weight
    assert (
        entry.arguments.of(state.value) == state
        and entry.arguments.of(DispatchFunc(dispatch_functions(module)[0]).block.arguments[0]) is None
    )


def test_arguments_come_and_go(module: ir.Module) -> None:
    entry = EntryFunc.of(module)
    kind = ir.Type.parse("tensor<8xbf16>")
    entry.add_argument(kind, items(tensor_attributes("v", "bfloat16", kind=WEIGHT)))
    entry.drop_arguments([2])
    assert [(each.name, each.dtype) for each in entry.arguments.weights] == [("x", "float32"), ("v", "bfloat16")]
    assert entry.arguments[3].value.type == kind
    entry.mark_argument(2, packed=PackedLayout((1,), (0,)).attribute())
    assert entry.arguments[2].packed == PackedLayout((1,), (0,))
    module.operation.verify()
