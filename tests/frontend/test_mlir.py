"""MLIR text in: the example of the design's origin, tosa, defaults for names and symbols, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmos.compiler.frontend.mlir import import_mlir
from llmos.runtime.errors import UnsupportedError, UserError
from tests.frontend.refusals import assert_refused
from tests.reference import Executor, run


def _origin(weight: np.ndarray) -> str:
    """matmul on tensor<1x1024xf32> with a constant tensor<256x1024xf32>, then relu."""
    return f"""
#x = affine_map<(m, n, k) -> (m, k)>
#w = affine_map<(m, n, k) -> (n, k)>
#y = affine_map<(m, n, k) -> (m, n)>
module {{
  func.func @forward(%x: tensor<1x1024xf32>) -> tensor<1x256xf32> {{
    %w = arith.constant dense<"0x{weight.tobytes().hex()}"> : tensor<256x1024xf32>
    %zero = arith.constant dense<0.0> : tensor<1x256xf32>
    %0 = linalg.matmul indexing_maps = [#x, #w, #y] ins(%x, %w : tensor<1x1024xf32>, tensor<256x1024xf32>)
           outs(%zero : tensor<1x256xf32>) -> tensor<1x256xf32>
    %1 = tosa.clamp %0 {{min_val = 0.0 : f32, max_val = 3.4028235e38 : f32}} : (tensor<1x256xf32>) -> tensor<1x256xf32>
    return %1 : tensor<1x256xf32>
  }}
}}
"""


def test_the_origin_example_imports_and_is_right() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((256, 1024), dtype=np.float32)
    x = rng.standard_normal((1, 1024), dtype=np.float32)
    model = import_mlir(_origin(weight))
    assert list(model.weights) == ["constant0"]
    np.testing.assert_array_equal(model.weights["constant0"].array, weight)
    (y,) = run(model, [x])
    np.testing.assert_allclose(y, np.maximum(x @ weight.T, 0), rtol=1e-4, atol=1e-4)
    assert "tosa" not in str(model.module)


def test_tosa_with_a_dynamic_dimension_gets_default_names(tmp_path: Path) -> None:
    path = tmp_path / "m.mlir"
    path.write_text("""
func.func @main(%x: tensor<?x4xf32>, %y: tensor<?x4xf32>) -> tensor<?x4xf32> {
  %0 = tosa.tanh %x : (tensor<?x4xf32>) -> tensor<?x4xf32>
  %1 = tosa.exp %0 : (tensor<?x4xf32>) -> tensor<?x4xf32>
  return %1 : tensor<?x4xf32>
}
""")
    model = import_mlir(path)
    text = str(model.module)
    assert 'llmos.name = "arg1"' in text and 'llmos.shape = ["d1", 4]' in text
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_allclose(run(model, [x, x])[0], np.exp(np.tanh(x)), rtol=1e-6)


def test_what_cannot_be_compiled_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="stablehlo"):
        import_mlir("func.func @main(%x: tensor<4xf32>) {\n %0 = stablehlo.add %x, %x : tensor<4xf32>\n return\n}")
    with pytest.raises(UserError, match="not a valid MLIR module"):
        import_mlir("func.func @main(%x: tensor<4xf32>) -> tensor<4xf32> {\n oops\n}")
    with pytest.raises(UserError, match="No such file"):
        import_mlir(tmp_path / "absent.mlir")
    with pytest.raises(UnsupportedError, match="memref"):
        import_mlir("func.func @main(%x: memref<4xf32>) {\n return\n}")


def _function(body: str, arguments: str = "%x: tensor<4xf32>", result: str = "tensor<4xf32>") -> str:
    return f"func.func @main({arguments}) -> {result} {{\n{body}\n}}\n"


RETURNED = "return %x : tensor<4xf32>"
TWICE = """func.func {} @{}(%x: tensor<4xf32>) -> tensor<4xf32> {{
  %0 = arith.addf %x, %x : tensor<4xf32>
  return %0 : tensor<4xf32>
}}
"""
CALL = "%0 = call @{}(%x) : (tensor<4xf32>) -> tensor<4xf32>\nreturn %0 : tensor<4xf32>"
FOREVER = """%t = arith.constant true
%0 = scf.while (%a = %x) : (tensor<4xf32>) -> tensor<4xf32> {
  scf.condition(%t) %a : tensor<4xf32>
} do {
^bb0(%b: tensor<4xf32>):
  scf.yield %b : tensor<4xf32>
}
return %0 : tensor<4xf32>"""
INPUT = '%x: tensor<{}xf32> {{llmos.kind = "{}", llmos.name = "x", llmos.dtype = "float32"{}}}'


def test_private_functions_are_inlined_and_other_public_ones_left_out() -> None:
    model = import_mlir(TWICE.format("private", "twice") + TWICE.format("", "other") + _function(CALL.format("twice")))
    x = np.arange(4, dtype=np.float32)
    np.testing.assert_array_equal(Executor(model.module, model.weights)([x])[0], 2 * x)


BAD = {
    "cut-short": (_function(RETURNED)[:-20], "line 2, column"),
    "an-unknown-dialect": (_function('%0 = "foo.bar"(%x) : (tensor<4xf32>) -> tensor<4xf32>\n' + RETURNED), "unregistered dialect"),
    "nothing": ("\n", "it has none"),
    "only-private": (_function(RETURNED).replace("@main", "private @main"), "it has none"),
    "a-scalar": (_function("return %x : f32", "%x: f32", "f32"), "the type f32"),
    "calls-itself": (_function(CALL.format("main")), "func.call"),
    "calls-nothing": ("func.func private @f(tensor<4xf32>) -> tensor<4xf32>\n" + _function(CALL.format("f")), "func.call"),
    "a-loop-without-end": (_function(FOREVER), "scf.while"),
    "brackets-without-end": ("(" * 100_000 + "\n", "nested"),
    "sizes-that-overflow": (
        _function(f"return %x : tensor<{2**62}x16xf32>", f"%x: tensor<{2**62}x16xf32>", f"tensor<{2**62}x16xf32>"),
        "bytes",
    ),
    "an-input-without-a-name": (_function(RETURNED, '%x: tensor<4xf32> {llmos.kind = "input"}'), "no llmos.name"),
    "a-weight-without-data": (_function(RETURNED, INPUT.format(4, "weight", "")), "not among the weights"),
    "a-size-that-is-code": (
        _function("return %x : tensor<?xf32>", INPUT.format("?", "input", ', llmos.shape = ["__import__(1)"]'), "tensor<?xf32>"),
        "no expression",
    ),
    "symbols-without-ranges": ("module attributes {llmos.symbols = {n = 5}} {\n" + _function(RETURNED) + "}\n", "no range"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_text_gets_one_line(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text, message = BAD[name]
    (tmp_path / "bad.mlir").write_text(text)
    (tmp_path / "out").mkdir()
    assert_refused(tmp_path / "bad.mlir", message, tmp_path / "out", capfd)
