"""What quantization costs and what code generation costs, told apart: in reports, `verify`, `compare` and `bisect`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import llmos
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver import Artifact
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.frontend.torch import import_torch
from llmos.compiler.verify import quantized
from llmos.compiler.verify.bisect import CLEAN, KERNEL, PASS, bisect
from llmos.runtime.artifact.accuracy import ACCURACY_MEMBER, AccuracyReport
from llmos.runtime.cli.command import run
from llmos.runtime.errors import ToleranceError
from tests.proof.bisecting import CACHE, OPTIONS
from tests.proof.miscompiles import InPass, LostTile, drop_bias, scale_constant

SHAPE = ({0: torch.export.Dim("batch", min=1, max=64)},)
SCALED = InPass("form-dispatches", scale_constant(0.49, 0.51, 1.03))  # of GELU: a budget of cosines doesn't see it


def module() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(96, 128), torch.nn.GELU(), torch.nn.Linear(128, 40)).eval()


def model() -> ImportedModel:
    return import_torch(module(), (torch.randn(4, 96),), SHAPE, name="m")


def options(quant: str) -> CompileOptions:
    return replace(OPTIONS, quant=quant)


def compiled(quant: str) -> Artifact:
    return llmos.compile(model(), options=options(quant))


def report_of(artifact: Artifact) -> AccuracyReport:
    return AccuracyReport.parse(artifact.contents.extras[ACCURACY_MEMBER])


def test_a_report_has_both_and_verify_prints_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact, path = compiled("w8a8"), str(tmp_path / "m.llmos")
    report = report_of(artifact)
    own, other = report.worst(), report.quantized and report.quantized.worst()
    assert own is not None and other is not None and report.quantized is not None
    assert own.deviation.max_error > 1e-3 and other.deviation.max_error < 1e-5
    assert report.quantized.budget.max_error == 1e-4 and report.quantized.budget.cosine is None
    assert len(report.quantized.cases) == 1 and AccuracyReport.parse(report.to_json()) == report
    artifact.save(path)
    assert run(["verify", path]) == 0
    shown = capsys.readouterr().out
    assert "against torch eager: what quantization costs" in shown
    assert f"against {quantized.ENGINE}: what code generation costs" in shown
    assert run(["verify", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["reference"] == "torch eager" and found["quantized"]["reference"] == quantized.ENGINE
    assert found["findings"][0]["max_error"] > 1e-3 > 1e-5 > found["quantized"]["findings"][0]["max_error"]
    assert run(["verify", path, "--budget", "1e-7"]) == 1  # the budget is that of quantization
    assert "1 output within budget" in capsys.readouterr().out
    assert run(["inspect", path]) == 0
    assert f"against {quantized.ENGINE}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_miscompile_that_quantization_hides_fails_the_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    SCALED.plant(monkeypatch)
    with pytest.raises(ToleranceError, match=f"over the budget of 0.0039, on .* against {quantized.ENGINE}"):
        compiled("w8a8")
    monkeypatch.setattr(quantized, "_MOST_BYTES", 0)  # beside the source's reference alone nobody sees it
    report = report_of(compiled("w8a8"))
    assert report.quantized is not None and not report.quantized.cases
    assert "bytes of weights are too many for MLIR's reference lowering" in report.summary()


def test_what_is_not_quantized_has_one_part() -> None:
    assert report_of(compiled("")).quantized is None


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["w8a8", "w4a16:g32"])
def test_bisect_finds_the_miscompile_and_not_the_rounding(quant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = bisect(model(), options(quant), lambda _: None, CACHE)
    assert verdict.kind == CLEAN and verdict.error < 1e-5, verdict.line()
    assert verdict.quantization is not None and verdict.quantization > 1e-3
    assert "quantization itself costs" in verdict.line()
    with monkeypatch.context() as patch:
        expected = SCALED.plant(patch)
        verdict = bisect(model(), options(quant), lambda _: None, CACHE)
        assert (verdict.kind, verdict.stage, verdict.dispatch) == (PASS, "form-dispatches", expected().dispatch), verdict.line()
    with monkeypatch.context() as patch:
        InPass("linalg-generalize-named-ops", drop_bias).plant(patch)  # before anything is quantized
        verdict = bisect(model(), options(quant), lambda _: None, CACHE)
        assert (verdict.kind, verdict.stage) == (PASS, "linalg-generalize-named-ops"), verdict.line()
    with monkeypatch.context() as patch:
        expected = LostTile("contraction").plant(patch)
        verdict = bisect(model(), options(quant), lambda _: None, CACHE)
        assert (verdict.kind, verdict.dispatch) == (KERNEL, expected().dispatch), verdict.line()


@pytest.mark.slow
def test_compare_says_which_it_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.export.save(torch.export.export(module(), (torch.randn(4, 96),), dynamic_shapes=SHAPE), tmp_path / "m.pt2")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((64, 4, 96), np.float32))
    source, path, data = (str(tmp_path / name) for name in ("m.pt2", "m.llmos", "x.npy"))
    for quant, words in (("w8a8", []), ("w4a16:g32:gptq", ["--calibrate", data])):
        assert run(["compile", source, "-o", path, "-q", "--target", "native", "--quant", quant, *words]) == 0
        capsys.readouterr()
        assert run(["compare", path, "--source", source, *words, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["outputs"]["output"]["max_error"] > 1e-3 > 1e-5 > found["quantized_outputs"]["output"]["max_error"]
        assert all(row["alone"] < 1e-5 for row in found["dispatches"] if not row["is_exact"])
        assert run(["compare", path, "--source", source, *words]) == 0
        shown = capsys.readouterr().out
        assert "beside the interpreter of the quantized model" in shown
        assert "output output against torch eager" in shown and f"output output against {quantized.ENGINE}" in shown


def test_a_quantized_file_has_both_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    arrays = {"w": rng.integers(-127, 128, (64, 48)).astype(np.int8), "zero": np.uint8(128), "sx": np.float32(0.02), "sw": np.float32(0.01)}
    kinds = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zero"], ["qx"]),
        helper.make_node("DequantizeLinear", ["qx", "sx", "zero"], ["dx"]),
        helper.make_node("DequantizeLinear", ["w", "sw"], ["dw"]),
        helper.make_node("MatMul", ["dx", "dw"], ["y"]),
    ]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size])] for name, size in (("x", 64), ("y", 48))]
    stored = [helper.make_tensor(name, kinds[each.dtype.name], each.shape, each.ravel()) for name, each in arrays.items()]
    graph = helper.make_graph(nodes, "g", *ends, stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "m.onnx")
    artifact = llmos.compile(tmp_path / "m.onnx", options=OPTIONS)
    report = report_of(artifact)
    worst = report.quantized and report.quantized.worst()
    assert worst is not None and worst.deviation.max_error < 1e-5
    artifact.save(tmp_path / "m.llmos")
    assert run(["verify", str(tmp_path / "m.llmos")]) == 0
    shown = capsys.readouterr().out
    assert "what code generation costs" in shown and "what quantization costs" not in shown
