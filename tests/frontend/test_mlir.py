"""MLIR text in: the example of the design's origin, tosa, defaults for names and symbols, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmos.compiler.frontend.mlir import import_mlir
from llmos.runtime.errors import UnsupportedError, UserError
from tests.reference import run


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
    with pytest.raises(UserError, match="no such file"):
        import_mlir(tmp_path / "absent.mlir")
    with pytest.raises(UnsupportedError, match="memref"):
        import_mlir("func.func @main(%x: memref<4xf32>) {\n return\n}")
