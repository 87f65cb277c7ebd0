"""`llmos opt` and `llmos compile` as a user calls them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.ao.quantization.fx._decomposed
from onnx import helper

import llmos
from llmos.compiler.cli.model_options import parse_dynamic
from llmos.runtime.cli.command import run

RELU_LAYER = """
func.func @main(%x: tensor<1x1024xf32> {llmos.kind = "input", llmos.name = "x", llmos.dtype = "float32", llmos.shape = [1, 1024]})
    -> (tensor<1x256xf32> {llmos.name = "y", llmos.dtype = "float32"}) {
  %weight = arith.constant dense<0.5> : tensor<256x1024xf32>
  %zero = arith.constant 0.0 : f32
  %empty = tensor.empty() : tensor<1x256xf32>
  %init = linalg.fill ins(%zero : f32) outs(%empty : tensor<1x256xf32>) -> tensor<1x256xf32>
  %space = tensor.empty() : tensor<1024x256xf32>
  %turned = linalg.transpose ins(%weight : tensor<256x1024xf32>) outs(%space : tensor<1024x256xf32>) permutation = [1, 0]
  %product = linalg.matmul ins(%x, %turned : tensor<1x1024xf32>, tensor<1024x256xf32>) outs(%init : tensor<1x256xf32>) -> tensor<1x256xf32>
  %y = tosa.clamp %product {min_val = 0.0 : f32, max_val = 3.40282347E+38 : f32} : (tensor<1x256xf32>) -> tensor<1x256xf32>
  return %y : tensor<1x256xf32>
}
"""
PIPELINE = "tosa-to-linalg,linalg-generalize-named-ops,linalg-fuse-elementwise-ops,arith-expand,canonicalize"


@pytest.fixture
def relu_layer(tmp_path: Path) -> Path:
    path = tmp_path / "layer.mlir"
    path.write_text(RELU_LAYER)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "linear.pt2"
    torch.export.save(torch.export.export(torch.nn.Linear(4, 3).eval(), (torch.randn(2, 4),)), path)
    return path


def test_opt_runs_passes_by_name(relu_layer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["opt", str(relu_layer), "-p", PIPELINE, "--timing"]) == 0
    out, err = capsys.readouterr()
    assert "linalg.generic" in out and "tosa" not in out and "linalg.matmul" not in out
    assert "linalg-fuse-elementwise-ops" in err and "total" in err


def test_opt_reads_standard_input_and_writes_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("func.func @f(%a: i32) -> i32 { return %a : i32 }"))
    assert run(["opt", "-", "-p", "cse", "-o", str(tmp_path / "out.mlir")]) == 0
    assert "@f" in (tmp_path / "out.mlir").read_text()


def test_opt_dumps_what_changed(relu_layer: Path, tmp_path: Path) -> None:
    assert run(["opt", str(relu_layer), "-p", PIPELINE, "-o", str(tmp_path / "out.mlir"), "--dump-ir", str(tmp_path / "dump")]) == 0
    assert (tmp_path / "dump" / "01-tosa-to-linalg.mlir").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["opt", "FILE", "-p", "linalg-fuse-elementwise"], "did you mean linalg-fuse-elementwise-ops"),
        (["opt", "missing.mlir", "-p", "cse"], "can't read missing.mlir"),
        (["opt", "FILE", "-p", "arith-expand{nonsense=1}"], "no such option nonsense"),
        (["opt", "FILE", "-p", "cse", "-o", "/nonexistent/out.mlir"], "can't write /nonexistent/out.mlir"),
        (["compile", "missing.onnx"], "no such file or directory: missing.onnx"),
        (["compile", "FILE", "--target", "pdp-11"], "is no target"),
        (["compile", "FILE", "--precision", "fp31"], "precision has no 'fp31'"),
        (["compile", "FILE", "--quant", "w8a9"], "--quant has no scheme 'w8a9'; did you mean w8a8"),
        (
            ["compile", "FILE", "--quant", "w8a8-static"],
            "--quant w8a8-static takes the ranges of activations from data: give some with --calibrate FILE",
        ),
        (["compile", "FILE", "--quant", "w4a16"], "--quant w4a16: say how many weights share a scale"),
        (["compile", "FILE", "--budget", "cosine>=2"], "a cosine, such as cosine>=0.999"),
        (["compile", "FILE", "--budget", "-1"], "give the largest relative error to allow, such as 1e-4"),
        (["compile", "FILE", "--stop-after", "fusd.mlir"], "did you mean fused.mlir"),
        (["compile", "FILE", "--dynamic", "batch=0"], "a size is 1 or more"),
        (["compile", "FILE", "--dynamic", "batch=9:3"], "a range goes up"),
        (["compile", "FILE", "--dynamic", "batch=x"], "write NAME, NAME=SIZE or NAME=MIN:MAX"),
        (["compile", "FILE", "--dynamic", "batch=4"], "are for .onnx models"),
        (["compile", "FILE", "--bind", "x=1"], "are for .onnx models"),
        (["compile", "FILE", "--bind", "x=one"], "write NAME=NUMBER"),
        (["compile", "FILE", "-o", "/nonexistent/m.llmos"], "no such directory: /nonexistent"),
        (["bench", "missing.llmos"], "no such file or directory"),
        (["bench", "FILE", "--against", "nobody"], "no engine is called 'nobody'"),
    ],
)
def test_bad_input_gives_one_line_and_exit_code_2(
    arguments: list[str], message: str, relu_layer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([str(relu_layer) if part == "FILE" else part for part in arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.startswith("error: ") and err.count("\n") == 1


def test_names_sizes_and_ranges_of_dimensions() -> None:
    assert parse_dynamic("batch, tokens") == (("batch", "tokens"), {})
    assert parse_dynamic("batch=1:8,height=64") == ((), {"batch": (1, 8), "height": 64})
    assert parse_dynamic("") == ((), {})


def onnx_model(path: Path) -> Path:
    """y [batch, n] = x [batch, n] * scale []"""
    tensors = [helper.make_tensor_value_info(*spec) for spec in (("x", 1, ["batch", "n"]), ("scale", 1, []), ("y", 1, ["batch", "n"]))]
    graph = helper.make_graph([helper.make_node("Mul", ["x", "scale"], ["y"])], "g", tensors[:2], tensors[2:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def test_an_onnx_model_with_fixed_and_bounded_dimensions_and_a_bound_input(tmp_path: Path) -> None:
    source, out = onnx_model(tmp_path / "m.onnx"), tmp_path / "m.llmos"
    assert (
        run(["compile", str(source), "-o", str(out), "--target", "native", "-q", "--dynamic", "batch=1:8,n=3", "--bind", "scale=2.5"]) == 0
    )
    with llmos.load(out) as program:
        assert [(spec.name, spec.shape) for spec in program["main"].inputs] == [("x", ("batch", 3))]
        np.testing.assert_array_equal(program(np.ones((8, 3), np.float32)), np.full((8, 3), 2.5, np.float32))
        with pytest.raises(llmos.InputError, match="1 to 8"):
            program(np.ones((9, 3), np.float32))


def test_names_of_an_onnx_models_dimensions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = onnx_model(tmp_path / "m.onnx"), tmp_path / "m.llmos"
    assert run(["compile", str(source), "-o", str(out), "--target", "native", "-q", "--dynamic", "rows,columns"]) == 0
    with llmos.load(out) as program:
        assert program["main"].inputs[0].shape == ("rows", "columns")
    assert run(["compile", str(source), "-o", str(out), "--dynamic", "hight=3", "-q"]) == 2
    assert "no dynamic dimension 'hight'; it has: batch, n" in capsys.readouterr().err


def test_compile_writes_an_artifact_and_says_where(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "linear.llmos"
    assert run(["compile", str(exported), "-o", str(out), "--target", "native"]) == 0
    captured = capsys.readouterr()
    assert str(out) in captured.out
    assert "import:" in captured.err and "write:" in captured.err
    assert "\x1b" not in captured.err


def test_quiet_says_nothing_but_the_result(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compile", str(exported), "-o", str(tmp_path / "linear.llmos"), "--target", "native", "-q"]) == 0
    assert capsys.readouterr().err == ""


def test_the_layer_with_relu_runs_through_named_passes_and_compiles(relu_layer: Path, tmp_path: Path) -> None:
    optimized, out = tmp_path / "optimized.mlir", tmp_path / "layer.llmos"
    assert run(["opt", str(relu_layer), "-p", PIPELINE, "-o", str(optimized)]) == 0
    for source in (relu_layer, optimized):
        assert run(["compile", str(source), "-o", str(out), "--target", "native", "-q"]) == 0
        x = np.random.default_rng(0).standard_normal((1, 1024), np.float32)
        with llmos.load(out) as program:
            np.testing.assert_allclose(program(x), np.maximum(x @ np.full((1024, 256), 0.5, np.float32), 0), rtol=1e-4, atol=1e-4)


def test_check_says_how_every_op_compiles(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", str(exported)]) == 0
    out = capsys.readouterr().out
    assert "aten.linear" in out and "every op compiles" in out


class Quantized(torch.nn.Module):
    """Numbers that go through int8 and back."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = torch.ops.quantized_decomposed.quantize_per_tensor(x, 0.1, 3, -128, 127, torch.int8)
        return torch.ops.quantized_decomposed.dequantize_per_tensor(q, 0.1, 3, -128, 127, torch.int8)


def test_check_and_inspect_say_what_is_quantized(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "quantized.pt2", tmp_path / "quantized.llmos"
    torch.export.save(torch.export.export(Quantized(), (torch.randn(4, 4),)), source)
    line = "1 dequantize int8 per-tensor, 1 quantize int8 per-tensor"
    assert run(["check", str(source)]) == 0
    said = capsys.readouterr().out
    assert f"quantization: {line}" in said and "quantized_decomposed.quantize_per_tensor.default" in said
    assert run(["compile", str(source), "-o", str(out), "--target", "native", "-q"]) == 0
    assert run(["inspect", str(out)]) == 0
    assert f"quantization\n  {line}\n" in capsys.readouterr().out
    assert run(["check", str(exported)]) == 0
    assert "quantization" not in capsys.readouterr().out


def test_check_finds_what_does_not_compile_and_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "noisy.pt2"

    class Noisy(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x) + torch.randn_like(x)

    torch.export.save(torch.export.export(Noisy(), (torch.randn(4, 4),)), source)
    assert run(["check", str(source), "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert not rows[0]["supported"] and "randn_like" in rows[0]["op"]
    out = tmp_path / "out"
    out.mkdir()
    assert run(["compile", str(source), "-o", str(out / "noisy.llmos"), "-q"]) == 2
    err = capsys.readouterr().err
    assert "randn_like" in err and err.count("\n") == 1
    assert list(out.iterdir()) == []
