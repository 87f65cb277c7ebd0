"""Sizes in every grammar and simplifier, against Python's own numbers: // rounds down, % has the sign of its right side."""

from __future__ import annotations

import ctypes
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import sympy
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch.utils._sympy import functions as torch_sympy

import llmos
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver import compile as compile_model
from llmos.compiler.frontend.dims import IndexValues
from llmos.compiler.frontend.float_sizes import rounded_size
from llmos.compiler.frontend.onnx import import_onnx
from llmos.compiler.frontend.torch import import_torch
from llmos.compiler.ir.bindings import context, ir
from llmos.compiler.ir.rounded_sizes import FloorMul, FloorMulF32
from llmos.compiler.ir.shapes import Shapes
from llmos.compiler.ir.size_text import size_text
from llmos.compiler.ir.sizes import Symbol, SymbolTable
from llmos.runtime.errors import UnsupportedError
from tests.conformance.inprocess import Compiled
from tests.properties.onnx_nodes import expected

ROOT = Path(__file__).parents[2]
TABLE = SymbolTable((Symbol("h", 1, 100), Symbol("w", 1, 60)))
POINTS = [(1, 1), (1, 60), (31, 2), (32, 7), (33, 8), (64, 59), (70, 9), (100, 3)]
OPTIONS = CompileOptions(target="native", cache=False, repro=None, accuracy_report=False)


def _texts() -> st.SearchStrategy[str]:
    leaves = st.one_of(st.sampled_from(["h", "w"]), st.integers(-40, 40).map(lambda n: f"({n})"))
    divisors = st.one_of(st.integers(1, 9).map(str), st.integers(-9, -1).map(lambda n: f"({n})"), st.sampled_from(["h", "w"]))

    def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.one_of(
            st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
            st.tuples(inner, st.sampled_from(["//", "%"]), divisors).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
            inner.map(lambda t: f"-{t}"),
            st.tuples(st.sampled_from(["min", "max"]), inner, inner).map(lambda t: f"{t[0]}({t[1]}, {t[2]})"),
            st.tuples(inner, st.integers(-50, 50).filter(bool), st.integers(1, 30)).map(
                lambda t: f"floor_mul{t[1] % 2 * '_f32'}({t[0]}, {t[1]}, {t[2]})"
            ),
        )

    return st.recursive(leaves, larger, max_leaves=6)


def _python(text: str, h: int, w: int) -> int:
    return int(eval(text, {"min": min, "max": max, "floor_mul": _floor_mul, "floor_mul_f32": _floor_mul_f32}, {"h": h, "w": w}))


def _floor_mul(n: int, p: int, q: int) -> int:
    return math.floor(n * (p / q))


def _floor_mul_f32(n: int, p: int, q: int) -> int:
    return math.floor(np.float32(n) * np.float32(p / q))


def _value(expr: sympy.Expr, h: int, w: int) -> int:
    by_name = {"h": h, "w": w}
    found = expr.subs({symbol: by_name[str(symbol)] for symbol in expr.free_symbols})
    assert found.is_Integer, found
    return int(found)


@settings(max_examples=60, deadline=None)
@given(_texts())
@example("-floor_mul_f32((h // 3), 1, 1)")
@example("floor_mul(h * (h + 1) // 2, 3, 2) - floor_mul(h // 3, 1, 1) * (w // 2)")
def test_text_is_read_and_written_with_pythons_meaning(text: str) -> None:
    expr = TABLE.parse(text)
    written = size_text(expr)
    low, high = TABLE.bounds(expr)
    for h, w in POINTS:
        expected = _python(text, h, w)
        assert _value(expr, h, w) == expected
        assert _python(written, h, w) == expected
        assert low <= expected <= high
    assert _value(TABLE.parse(written), *POINTS[2]) == _python(text, *POINTS[2])


@pytest.fixture(scope="module")
def evaluate(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int, int], int | None]:
    """The C core's evaluator; None for what it refuses."""
    import subprocess

    class CSymbol(ctypes.Structure):
        _fields_ = [("name", ctypes.c_char_p), ("min", ctypes.c_int64), ("max", ctypes.c_int64)]

    library = tmp_path_factory.mktemp("core") / "expression.so"
    native = ROOT / "runtime" / "native"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", f"-I{native / 'include'}", native / "expression.c", "-o", library], check=True)
    function: Any = ctypes.CDLL(str(library)).evaluate
    function.restype = ctypes.c_bool
    symbols = (CSymbol * 2)(CSymbol(b"h", 1, 100), CSymbol(b"w", 1, 60))

    def run(text: str, h: int, w: int) -> int | None:
        found = ctypes.c_int64()
        return found.value if function(text.encode(), symbols, 2, (ctypes.c_int64 * 2)(h, w), ctypes.byref(found)) else None

    return run


@settings(max_examples=60, deadline=None)
@given(_texts())
def test_the_c_core_reads_the_same_text(evaluate: Callable[[str, int, int], int | None], text: str) -> None:
    for h, w in POINTS:
        assert evaluate(text, h, w) == _python(text, h, w)
        assert evaluate(size_text(TABLE.parse(text)), h, w) == _python(text, h, w)


@pytest.mark.parametrize(
    "text",
    [
        "h // 0",
        "h % (h - h)",
        "h /2",
        "h //",
        "min()",
        "min(h",
        "h**2",
        "q",
        "2 3",
        "9223372036854775807 + h",
        "(" * 70,
        "floor_mul(h, 1)",
        "floor_mul(h, 1, 0)",
        "floor_mul_f32(h, 1)",
    ],
)
def test_the_c_core_refuses_what_is_no_size(evaluate: Callable[[str, int, int], int | None], text: str) -> None:
    assert evaluate(text, 5, 6) is None


@settings(max_examples=60, deadline=None)
@given(_texts())
@example("((h // w) // (-2))")
@example("((h // (-3)) // (w - 5 - h))")
@example("(((h // 2) // w) % (-3))")
def test_torchs_expressions_become_index_arithmetic_with_the_same_meaning(text: str) -> None:
    h, w = (sympy.Symbol(name, integer=True, positive=True) for name in "hw")
    names = {"FloorDiv": torch_sympy.FloorDiv, "PythonMod": torch_sympy.PythonMod, "min": torch_sympy.Min, "max": torch_sympy.Max}
    names |= {"floor_mul": FloorMul, "floor_mul_f32": FloorMulF32}
    expr = sympy.sympify(eval(_with_functions(text), names, {"h": h, "w": w}))
    with context(), ir.Location.unknown():
        module = ir.Module.parse(
            'func.func @main(%x: tensor<?x?xf32> {llmos.shape = ["h", "w"]}) {\n %c0 = arith.constant 0 : index\n'
            " %c1 = arith.constant 1 : index\n %h = tensor.dim %x, %c0 : tensor<?x?xf32>\n"
            " %w = tensor.dim %x, %c1 : tensor<?x?xf32>\n return\n}"
        )
        function = module.body.operations[0].operation
        ops = [op.operation for op in function.regions[0].blocks[0].operations]
        values = IndexValues(ops[-1], {h: ops[2].results[0], w: ops[3].results[0]})
        value = values.value(int(expr) if expr.is_Integer else expr)
        found = Shapes.of(function, TABLE).index(value)
    for point in POINTS:
        assert _value(found, *point) == _python(text, *point)


def _with_functions(text: str) -> str:
    """`a // b` and `a % b` as calls of torch's own functions, which sympy's operators would not make."""
    import ast

    class Calls(ast.NodeTransformer):
        def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
            self.generic_visit(node)
            name = {ast.FloorDiv: "FloorDiv", ast.Mod: "PythonMod"}.get(type(node.op))
            return node if name is None else ast.Call(ast.Name(name, ast.Load()), [node.left, node.right], [])

    return ast.unparse(ast.fix_missing_locations(Calls().visit(ast.parse(text, mode="eval"))))


def test_index_arithmetic_of_any_sign_is_compiled_with_its_own_meaning(tmp_path: Path) -> None:
    """floordivsi, ceildivsi, divsi and remsi of negative numbers, through the passes, the manifest and the code."""
    source = random.Random(5)
    operations = [source.choice(["floordivsi", "ceildivsi", "divsi", "remsi"]) for _ in range(24)]
    numbers = [(source.choice([-3, -2, -1, 1, 2]), source.randint(-70, 70), source.choice([-7, -5, -3, 2, 4, 32])) for _ in operations]
    lines = []
    for i, (operation, (scale, shift, by)) in enumerate(zip(operations, numbers, strict=True)):
        lines += [
            f"%s{i} = arith.constant {scale} : index\n %o{i} = arith.constant {shift} : index\n %b{i} = arith.constant {by} : index",
            f"%m{i} = arith.muli %h, %s{i} : index\n %a{i} = arith.addi %m{i}, %o{i} : index",
            f"%q{i} = arith.{operation} %a{i}, %b{i} : index\n %r{i} = arith.addi %q{i}, %big : index",
            f"%e{i} = tensor.empty(%r{i}) : tensor<?xf32>",
            f"%f{i} = linalg.fill ins(%one : f32) outs(%e{i} : tensor<?xf32>) -> tensor<?xf32>",
        ]
    results = ", ".join(["tensor<?xf32>"] * len(operations))
    named = ", ".join(f'tensor<?xf32> {{llmos.name = "y{i}", llmos.dtype = "float32"}}' for i in range(len(operations)))
    text = (
        'module attributes {llmos.symbols = {h = array<i64: 1, 100>}} { func.func @main(%x: tensor<?xf32> {llmos.kind = "input", '
        f'llmos.name = "x", llmos.dtype = "float32", llmos.shape = ["h"]}}) -> ({named}) {{ %c0 = arith.constant 0 : index\n'
        "%one = arith.constant 1.0 : f32\n %big = arith.constant 300 : index\n %h = tensor.dim %x, %c0 : tensor<?xf32>\n"
        + "\n".join(lines)
        + f"\n return {', '.join(f'%f{i}' for i in range(len(operations)))} : {results} }} }}"
    )
    (tmp_path / "sizes.linalg.mlir").write_text(text)
    compile_model(str(tmp_path / "sizes.linalg.mlir"), options=OPTIONS).save(tmp_path / "sizes.llmos")
    program = llmos.load(tmp_path / "sizes.llmos")
    written = [spec.shape[0] for spec in program.manifest.entries[0].outputs]
    for h in (1, 2, 31, 32, 33, 70, 99, 100):
        expected = [_c_result(o, s * h + k, by) + 300 for o, (s, k, by) in zip(operations, numbers, strict=True)]
        assert [len(each) for each in program(np.zeros(h, np.float32))] == expected
        assert [_python(str(size), h, 1) for size in written] == expected


def _c_result(operation: str, a: int, b: int) -> int:
    truncated = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return {"floordivsi": a // b, "ceildivsi": -(-a // b), "divsi": truncated, "remsi": a - b * truncated}[operation]


def test_rounding_up_in_a_torch_model(tmp_path: Path) -> None:
    class Windows(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            h = x.shape[1]
            up = -(-h // 32)
            sizes = (
                up + 1,
                (-h) % 32 + 2,
                (h - 70) // 9 + 10,
                (h - 70) % 7 + 2,
                6 - (3 - h) // 4 + (-h) % 5,
                (h - 9) // (-4) + 60,
                int(h * 2.3),
            )
            return tuple(x.new_ones(size) for size in sizes)

    dims = ({1: torch.export.Dim("h", min=1, max=200)},)
    compile_model(Windows(), (torch.randn(2, 40),), dynamic_shapes=dims, options=OPTIONS).save(tmp_path / "up.llmos")
    program = llmos.load(tmp_path / "up.llmos")
    assert program.manifest.entries[0].outputs[-1].shape == ("floor_mul(h, 23, 10)",) and program.manifest.format == 3
    for h in (1, 2, 31, 32, 33, 50, 65, 100, 127):
        x = torch.randn(2, h)
        assert [each.shape for each in program(x.numpy())] == [tuple(each.shape) for each in Windows()(x)]


def test_onnx_divides_sizes_towards_zero(tmp_path: Path) -> None:
    """2 - (-h) / 32, which is not the same as rounding up."""

    def number(name: str, *values: int, rank: int = 0) -> onnx.TensorProto:
        return helper.make_tensor(name, TensorProto.INT64, [len(values)] * rank, values)

    nodes = [
        ("Shape", ["x"], "s", {}),
        ("Gather", ["s", "one"], "h", {"axis": 0}),
        ("Neg", ["h"], "negative", {}),
        ("Div", ["negative", "by"], "quotient", {}),
        ("Sub", ["two", "quotient"], "rows", {}),
        ("Unsqueeze", ["rows", "axis"], "rows1", {}),
        ("Unsqueeze", ["h", "axis"], "h1", {}),
        ("Concat", ["rows1", "h1"], "shape", {"axis": 0}),
        ("Slice", ["x", "axis", "end", "axis"], "row", {}),
        ("Expand", ["row", "shape"], "y", {}),
    ]
    graph = helper.make_graph(
        [helper.make_node(name, given, [made], **options) for name, given, made, options in nodes],
        "sizes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, "h"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [number("one", 1), number("two", 2), number("by", 32), number("axis", 0, rank=1), number("end", 1, rank=1)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "sizes.onnx")
    compile_model(str(tmp_path / "sizes.onnx"), options=OPTIONS).save(tmp_path / "sizes.llmos")
    program = llmos.load(tmp_path / "sizes.llmos")
    for h in (1, 31, 32, 33, 64, 65):
        x = np.arange(2 * h, dtype=np.float32).reshape(2, h)
        np.testing.assert_array_equal(program(x), np.broadcast_to(x[:1], (2 + h // 32, h)))


ROUNDINGS: dict[str, tuple[Any, Callable[[float], int]]] = {
    "trunc": (torch_sympy.TruncToInt, math.trunc),
    "floor": (torch_sympy.FloorToInt, math.floor),
    "ceil": (torch_sympy.CeilToInt, math.ceil),
    "round": (torch_sympy.RoundToInt, round),
}


@pytest.mark.parametrize("largest", [2000, 2**31 - 1])
@pytest.mark.parametrize("name", ROUNDINGS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_size_that_goes_through_floats_is_the_same_at_every_size(name: str, largest: int, data: st.DataObject) -> None:
    """Times or over constants of one and two decimals, odd and even ones, and such as no fraction of small numbers is equal to."""
    decimal = st.tuples(st.integers(1, 400), st.sampled_from([1, 2, 3, 4, 7, 8, 10, 100])).map(lambda t: t[0] / t[1])
    scale = data.draw(st.one_of(decimal, st.floats(0.05, 20)))
    form = data.draw(st.sampled_from(["product", "product", "product", "quotient", "shifted", "whole"]))
    n, rounding = sympy.Symbol("n", integer=True, positive=True), ROUNDINGS[name]
    value: Any = {
        "product": scale * torch_sympy.ToFloat(n),
        "quotient": torch_sympy.FloatTrueDiv(torch_sympy.ToFloat(n), sympy.Float(scale)),
        "shifted": scale * torch_sympy.ToFloat(n) + 0.5,
        "whole": torch_sympy.IntTrueDiv(n, sympy.Integer(math.ceil(scale))),
    }[form]
    python: Any = {
        "product": lambda n: scale * n,
        "quotient": lambda n: n / scale,
        "shifted": lambda n: scale * n + 0.5,
        "whole": lambda n: n / math.ceil(scale),
    }[form]
    try:
        found = rounded_size(rounding[0](value), lambda _: (1, largest))
    except UnsupportedError as error:
        assert form in ("quotient", "shifted"), (form, scale, error)
        return
    functions = {"FloorDiv": lambda a, b: a // b, "PythonMod": lambda a, b: a % b, "FloorMul": _floor_mul}
    function = sympy.lambdify(n, found, modules=[functions])
    for size in (*range(1, 400), *random.Random(0).sample(range(1, largest), 100), largest):
        assert function(size) == rounding[1](python(size)), (form, scale, size, found)


def test_sizes_that_go_through_floats_in_a_torch_model() -> None:
    def sizes(x: torch.Tensor) -> tuple[int, ...]:
        h: Any = x.shape[0]
        whole = (int(h * 2.3), int(h * 0.7), math.ceil(h / 3), math.ceil(h * 0.3), round(h * 0.7), round(h / 4), math.floor(h * 1.1 + 0.5))
        return (*whole, int(h / 1.5), int((h // 2) * 1.7), round(h * 0.5))

    model = _module(lambda x: tuple(x.new_ones(size + 1) for size in sizes(x)))
    run = Compiled(import_torch(model, (torch.randn(6),), ({0: torch.export.Dim("h", min=1, max=1000)},)))
    for h in (*range(1, 60), 100, 511, 999, 1000):
        assert tuple(len(each) - 1 for each in run([np.zeros(h, np.float32)])) == sizes(torch.zeros(h)), h


@pytest.mark.parametrize("seed", range(8))
def test_onnx_sizes_that_go_through_floats_are_rounded_to_float32(seed: int) -> None:
    """Shape, Cast, up to three operations, a rounding, Cast, Expand."""
    source = random.Random(seed)
    nodes: list[tuple[str, list[str], str, dict[str, Any]]] = [("Shape", ["x"], "s", {}), ("Cast", ["s"], "v0", {"to": TensorProto.FLOAT})]
    constants = [helper.make_tensor("one", TensorProto.FLOAT, [], [1])]
    for i in range(source.choice([1, 1, 2, 3])):
        number = source.choice([1.3, 2.3, 0.7, 1 / 3, 0.5, 1.5, source.uniform(0.3, 4)]) if seed else 1.3
        constants.append(helper.make_tensor(f"c{i}", TensorProto.FLOAT, [], [number]))
        nodes.append((source.choice(["Mul", "Mul", "Div", "Add"]) if seed else "Mul", [f"v{i}", f"c{i}"], f"v{i + 1}", {}))
    nodes.append((source.choice(["Floor", "Ceil", "Identity"]), [nodes[-1][2]], "r", {}))
    nodes += [("Cast", ["r"], "n", {"to": TensorProto.INT64}), ("Expand", ["one", "n"], "y", {})]
    graph = helper.make_graph(
        [helper.make_node(name, given, [made], **options) for name, given, made, options in nodes],
        "sizes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["h"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    run = Compiled(import_onnx(model, dynamic={"h": (1, 1000)}))
    for h in (*range(1, 40), 110, 300, 999, 1000):
        x = np.zeros(h, np.float32)
        assert len(run([x])[0]) == len(expected(model, {"x": x})[0][0]), (h, nodes)


def _module(function: Callable[..., Any]) -> torch.nn.Module:
    return type("Module", (torch.nn.Module,), {"forward": staticmethod(function)})()
