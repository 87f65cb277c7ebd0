"""plan-memory: slots shared by results whose lives don't overlap, sized over the symbols."""

from __future__ import annotations

from llmos.compiler.ir.bindings import ir
from llmos.passes.plan_memory import PlanMemory

from .ir_tests import apply, check, functions, parse

DISPATCHED = 'llmos.dispatch = "elementwise"'


def program(body: str, symbols: str = "n = array<i64: 1, 100>", results: str = "tensor<?xf32>") -> ir.Module:
    """An entry over %x [n] whose dispatches map [n] to [n] (@same), [2 n] (@double) or [m] (@other)."""
    return apply(
        parse(
            f"""module attributes {{llmos.symbols = {{{symbols}}}, llmos.induction_variables = {{step0 = array<i64: 0, 8>}}}} {{
              func.func @main(
                %x: tensor<?xf32> {{llmos.kind = "input", llmos.name = "x", llmos.dtype = "float32", llmos.shape = ["n"]}}
              ) -> ({results}) {{
                {body}
              }}
              func.func private @same(%a: tensor<?xf32>) -> tensor<?xf32> attributes {{{DISPATCHED}}} {{
                return %a : tensor<?xf32>
              }}
              func.func private @double(%a: tensor<?xf32>) -> tensor<?xf32> attributes {{{DISPATCHED}}} {{
                return %a : tensor<?xf32>
              }}
              func.func private @other(%a: tensor<?xf32>) -> tensor<?xf32> attributes {{{DISPATCHED}}} {{
                return %a : tensor<?xf32>
              }}
              func.func private @two(%a: tensor<?xf32>) -> (tensor<?xf32>, tensor<?xf32>) attributes {{{DISPATCHED}}} {{
                return %a, %a : tensor<?xf32>, tensor<?xf32>
              }}
            }}"""
        ),
        PlanMemory(),
    )


def call(result: str, callee: str, operand: str, shape: str = "n") -> str:
    return f'%{result} = call @{callee}(%{operand}) {{llmos.shapes = [["{shape}"]]}} : (tensor<?xf32>) -> tensor<?xf32>\n'


def slots(module: ir.Module) -> list[str]:
    return [ir.StringAttr(size).value for size in ir.ArrayAttr(functions(module)[0].attributes["llmos.slots"])]


def buffers(module: ir.Module) -> list[list[int]]:
    calls = [op.operation for op in functions(module)[0].regions[0].blocks[0].operations if op.operation.name == "func.call"]
    return [list(ir.DenseI64ArrayAttr(op.attributes["llmos.buffers"])) for op in calls]


RETURN = "return %{0} : tensor<?xf32>"


def test_a_chain_uses_two_slots_in_turn() -> None:
    module = program(call("a", "same", "x") + call("b", "same", "a") + call("c", "same", "b") + call("d", "same", "c") + RETURN.format("d"))
    check(
        module,
        """
        CHECK: func.func @main
        CHECK-SAME: llmos.slots = ["4*n", "4*n"]
        CHECK: call @same{{.*}}llmos.buffers = array<i64: 0>
        CHECK: call @same{{.*}}llmos.buffers = array<i64: 1>
        CHECK: call @same{{.*}}llmos.buffers = array<i64: 0>
        CHECK: call @same{{.*}}llmos.buffers = array<i64: -1>
        """,
    )


def test_a_result_is_never_written_over_an_operand_of_its_own_call() -> None:
    """%a is read last by the call that makes %b: its slot is free after that call, not during it."""
    module = program(call("a", "same", "x") + call("b", "same", "a") + call("c", "same", "b") + RETURN.format("c"))
    assert buffers(module)[0] != buffers(module)[1]


def test_a_slot_grows_to_its_largest_tenant() -> None:
    module = program(
        call("a", "same", "x") + call("b", "same", "a") + call("c", "double", "b", "2*n") + call("d", "same", "c") + RETURN.format("d")
    )
    assert slots(module) == ["8*n", "4*n"]
    assert buffers(module) == [[0], [1], [0], [-1]]


def test_a_result_behind_a_view_lives_as_long_as_the_view_is_read() -> None:
    view = """%v = tensor.expand_shape %a [[0, 1]] output_shape [%n, 1] : tensor<?xf32> into tensor<?x1xf32>
      %w = tensor.collapse_shape %v [[0, 1]] : tensor<?x1xf32> into tensor<?xf32>
    """
    size = "%c0 = arith.constant 0 : index\n%n = tensor.dim %x, %c0 : tensor<?xf32>\n"
    body = (
        size + call("a", "same", "x") + view + call("b", "same", "x") + call("c", "same", "b") + call("d", "same", "w") + RETURN.format("d")
    )
    held = buffers(program(body))
    assert held[0] != held[1]
    assert held[2] not in (held[0], held[1])


def test_sizes_that_cant_be_compared_get_slots_of_their_own() -> None:
    """n may be more or less than m: neither fits the other's slot for all values."""
    text = "n = array<i64: 1, 100>, m = array<i64: 1, 100>"
    body = call("a", "same", "x") + call("b", "same", "a") + call("c", "other", "b", "m") + call("d", "same", "c") + RETURN.format("d")
    assert sorted(slots(program(body, text))) == ["4*m", "4*n", "4*n"]


def test_ranges_decide_which_size_is_larger() -> None:
    text = "n = array<i64: 1, 100>, m = array<i64: 100, 200>"
    body = call("a", "same", "x") + call("b", "same", "a") + call("c", "other", "b", "m") + call("d", "same", "c") + RETURN.format("d")
    assert sorted(slots(program(body, text))) == ["4*m", "4*n"]


def test_an_output_that_is_read_later_stays_an_output() -> None:
    body = call("a", "same", "x") + call("b", "same", "a") + "return %a, %b : tensor<?xf32>, tensor<?xf32>"
    module = program(body, results="tensor<?xf32>, tensor<?xf32>")
    assert (slots(module), buffers(module)) == ([], [[-1], [-2]])


def test_a_result_that_nobody_reads_has_memory_all_the_same() -> None:
    two = '%a, %unread = call @two(%x) {llmos.shapes = [["n"], ["n"]]} : (tensor<?xf32>) -> (tensor<?xf32>, tensor<?xf32>)\n'
    module = program(two + call("b", "same", "a") + RETURN.format("b"))
    assert buffers(module)[0] == [0, 1]
    assert buffers(module)[1] == [-1]


def test_the_states_of_a_loop_have_two_slots_and_its_stacks_are_written_in_place() -> None:
    module = program(
        call("a", "same", "x")
        + """%c0 = arith.constant 0 : index
        %c1 = arith.constant 1 : index
        %c9 = arith.constant 9 : index
        %n = tensor.dim %x, %c0 : tensor<?xf32>
        %y = tensor.empty(%n) : tensor<9x?xf32>
        %r:3 = scf.for %i = %c0 to %c9 step %c1 iter_args(%ys = %y, %h = %a, %g = %a)
            -> (tensor<9x?xf32>, tensor<?xf32>, tensor<?xf32>) {
          %t = func.call @same(%h) {llmos.shapes = [["n"]]} : (tensor<?xf32>) -> tensor<?xf32>
          %u:2 = func.call @two(%t) {llmos.shapes = [["n"], ["n"]]} : (tensor<?xf32>) -> (tensor<?xf32>, tensor<?xf32>)
          %z = tensor.insert_slice %u#0 into %ys[%i, 0] [1, %n] [1, 1] {llmos.scan_output} : tensor<?xf32> into tensor<9x?xf32>
          scf.yield %z, %u#0, %u#1 : tensor<9x?xf32>, tensor<?xf32>, tensor<?xf32>
        } {llmos.induction_variable = "step0"}
        """
        + call("d", "same", "r#2")
        + call("e", "same", "d")
        + "return %r#0, %e : tensor<9x?xf32>, tensor<?xf32>",
        results="tensor<9x?xf32>, tensor<?xf32>",
    )
    check(
        module,
        """
        CHECK: %[[A:.*]] = call @same({{.*}}) {llmos.buffers = array<i64: 0>
        CHECK: func.call @same({{.*}}) {llmos.buffers = array<i64: 3, 3>
        CHECK: func.call @two({{.*}}) {llmos.buffers = array<i64: -4294967296, -4294967296, 1, 2>
        CHECK: {llmos.buffers = array<i64: -1, -4294967296, -4294967296>
        CHECK: call @same({{.*}}) {llmos.buffers = array<i64: 3>
        """,
    )
