"""`quant="w8a8"` from a module to numbers: small models beside eager, and what the artifact says of itself."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import llmos
from llmos.compiler.analysis.contraction import contraction_of
from llmos.compiler.analysis.quantization import quantization_of
from llmos.compiler.backends.common import common_passes
from llmos.compiler.backends.cpu.backend import CpuBackend
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.backends.planning import passes_of
from llmos.compiler.driver import Artifact
from llmos.compiler.frontend.torch import import_torch
from llmos.compiler.ir.bindings import ir
from llmos.compiler.verify.accuracy import excess, tolerance_for
from llmos.compiler.verify.samples import Signature
from llmos.passes import run_pipeline
from llmos.runtime.artifact.accuracy import accuracy_report_of
from llmos.runtime.artifact.deviation import Tolerance, measure, parse_budget
from llmos.runtime.artifact.fields import Fields
from llmos.runtime.artifact.reader import Artifact as Opened
from llmos.runtime.cli.command import run
from llmos.runtime.errors import ToleranceError, UserError
from tests.passes.ir_tests import CONTEXT, QUIET

WIDTH = 64


class Block(torch.nn.Module):
    """A transformer's layer, as BERT has it."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (torch.nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = torch.nn.Linear(WIDTH, 4 * WIDTH), torch.nn.Linear(4 * WIDTH, WIDTH)
        self.first, self.second = torch.nn.LayerNorm(WIDTH), torch.nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (each(x).view(batch, tokens, 2, -1).transpose(1, 2) for each in (self.query, self.key, self.value))
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, WIDTH)
        x = self.first(x + self.out(attended))
        return self.second(x + self.down(torch.nn.functional.gelu(self.up(x))))


def mlp() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(96, 128), torch.nn.ReLU(), torch.nn.Linear(128, 40)).eval()


def compiled(module: torch.nn.Module, x: torch.Tensor, dims: tuple[str, ...], **options: object) -> Artifact:
    shapes = ({axis: torch.export.Dim(name, min=1, max=64) for axis, name in enumerate(dims)},)
    chosen = CompileOptions(**{"quant": "w8a8", "target": "native", "repro": None, **options})  # type: ignore[arg-type]
    return llmos.compile(module, (x,), dynamic_shapes=shapes, options=chosen)


def cosine(got: np.ndarray, want: torch.Tensor) -> float:
    a, b = got.ravel().astype(np.float64), want.detach().numpy().ravel().astype(np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_an_mlp(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = mlp()
    compiled(module, torch.randn(4, 96), ("batch",), accuracy_report=False).save(tmp_path / "m.llmos")
    program = llmos.load(tmp_path / "m.llmos")
    for rows in (1, 7, 33):
        x = torch.randn(rows, 96)
        assert cosine(program(x.numpy()), module(x)) >= 0.999


@pytest.mark.sample(1)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_block_of_bert(precision: str, tmp_path: Path) -> None:
    """In bfloat16 what isn't quantized: here the factors of attention."""
    torch.manual_seed(0)
    module = Block().eval()
    compiled(module, torch.randn(2, 5, WIDTH), ("batch", "tokens"), precision=precision, accuracy_report=False).save(tmp_path / "m.llmos")
    program = llmos.load(tmp_path / "m.llmos")
    for batch, tokens in ((1, 1), (3, 11)):
        x = torch.randn(batch, tokens, WIDTH)
        assert cosine(program(x.numpy()), module(x)) >= 0.999


@pytest.mark.sample(1, 2, 3)
@pytest.mark.parametrize(
    ("scheme", "least", "bits"), [("w8a16", 0.9999, 8.6), ("fp8", 0.9995, 8.6), ("w4a16:g32", 0.999, 5.4), ("w4a8:g64", 0.999, 4.8)]
)
def test_weights_in_few_bits(scheme: str, least: float, bits: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """bits: at most, stored for each element of a matrix, with scales and zero points."""
    torch.manual_seed(0)
    module, path = Block().eval(), tmp_path / "m.llmos"
    compiled(module, torch.randn(2, 5, WIDTH), ("batch", "tokens"), quant=scheme, accuracy_report=False).save(path)
    program = llmos.load(path)
    for batch, tokens in ((1, 1), (3, 11)):
        x = torch.randn(batch, tokens, WIDTH)
        assert cosine(program(x.numpy()), module(x)) >= least
    packed = [weight for weight in program.manifest.weights if "packed" in weight.name]
    assert sum(math.prod(each.shape) * np.dtype(each.dtype).itemsize for each in packed) * 8 <= bits * 12 * WIDTH**2
    assert run(["inspect", str(path)]) == 0
    assert f"compiled with --quant {scheme}" in capsys.readouterr().out


def test_what_no_group_divides_stays_in_float(tmp_path: Path) -> None:
    module = mlp()  # sums of 96 and 128 products
    compiled(module, torch.randn(4, 96), ("batch",), quant="w4a16:g64", accuracy_report=False).save(tmp_path / "m.llmos")
    weights = llmos.load(tmp_path / "m.llmos").manifest.weights
    packed = [(weight.dtype, math.prod(weight.shape)) for weight in weights if len(weight.shape) > 2]
    assert ("float32", 96 * 128) in packed and ("uint8", 128 * 48 // 2) in packed


def test_what_queries_keys_and_values_are_made_of_is_quantized_once() -> None:
    imported = import_torch(Block().eval(), (torch.randn(2, 5, WIDTH),), None, name="m")
    run_pipeline(imported.module, common_passes(CompileOptions(quant="w8a8")), options=QUIET, context=CONTEXT)
    ops = [op.operation for op in imported.module.body.operations[0].regions[0].blocks[0].operations]
    found = [each for each in map(quantization_of, ops) if each is not None]
    assert [each.dtype for each in found] == ["uint8"] * 4  # of x, what is attended to, and both sides of gelu
    products = [each for each in map(contraction_of, ops) if each is not None and not each.is_float]
    assert [str(each.rhs.type.element_type) for each in products] == ["i8"] * 6
    assert all(isinstance(each.rhs.owner, ir.Block) for each in products)  # folded: stored as they are read


def test_rows_are_the_same_alone_and_among_others(tmp_path: Path) -> None:
    compiled(mlp(), torch.randn(4, 96), ("batch",)).save(tmp_path / "m.llmos")
    program = llmos.load(tmp_path / "m.llmos")
    x = torch.randn(9, 96).numpy()
    together = program(x)
    for row in range(9):
        np.testing.assert_array_equal(program(x[row : row + 1])[0], together[row])


def test_the_artifact_says_how_it_was_quantized(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.llmos"
    compiled(mlp(), torch.randn(4, 96), ("batch",)).save(path)
    opened = Opened.open(path)
    assert opened.manifest.metadata["quant"] == "w8a8"
    assert {"int8", "int32"} <= {weight.dtype for weight in opened.manifest.weights}
    assert [each.details.get("arithmetic") for each in opened.manifest.kernels if each.kind == "contraction"] == ["int8"] * 2
    report = accuracy_report_of(opened)
    assert report is not None and report.budget.cosine == 0.99 and "of at least 0.99" in report.summary()
    assert run(["inspect", str(path)]) == 0
    assert "compiled with --quant w8a8" in capsys.readouterr().out
    assert run(["verify", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"][0]["budget"]["cosine"] == 0.99
    assert run(["verify", str(path), "--budget", "1e-7"]) == 1
    assert run(["verify", str(path), "--budget", "cosine>=0.999"]) == 0
    assert run(["verify", str(path), "--budget", "cosine>=1.0"]) == 1


@pytest.mark.parametrize(("budget", "message"), [({"min_cosine": 1.0}, "has a cosine of"), ({"budget": 1e-6}, "is off by")])
def test_a_model_over_budget_is_not_compiled(budget: dict[str, float], message: str) -> None:
    with pytest.raises(ToleranceError, match=message):
        compiled(mlp(), torch.randn(4, 96), ("batch",), **budget)


def test_nothing_is_quantized_unasked() -> None:
    names = [each.name for each in passes_of(CompileOptions(), CpuBackend())]
    assert "quantize-contractions" not in names
    quantized = [each.name for each in passes_of(CompileOptions(quant="w8a8"), CpuBackend())]
    assert quantized.index("quantize-contractions") < quantized.index("fold-weight-computation")


def test_budgets() -> None:
    assert parse_budget("1e-3") == {"max_error": 1e-3} and parse_budget("cosine>=0.999") == {"cosine": 0.999}
    assert parse_budget("kl<=0.01") == {"kl": 0.01} and parse_budget("top1 >= 0.98") == {"top1": 0.98}
    assert Tolerance(1e-4, cosine=0.5).asked("kl<=0.5") == Tolerance(1e-4, kl=0.5)
    assert Tolerance(1e-4).asked("cosine >= 0.5") == Tolerance(1e-4, cosine=0.5)
    assert Tolerance(1e-4, cosine=0.5).asked("0.1") == Tolerance(0.1)
    cosines = ("cosine", "cosine>=", "cosine>=1.5", "cosine>=nan")
    for text in ("", "nan", "inf", "-1", *cosines, "error>=0.1", "kl>=0.1", "kl<=inf", "top1>=2", "max_error<=1"):
        with pytest.raises(UserError, match="--budget"):
            parse_budget(text)


def test_budgets_of_logits() -> None:
    rows = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]]))
    found = measure(rows[:, [0, 2, 1]], rows, "float32", logits=True)  # the best of the second row is another
    assert not found.within(Tolerance(1.0, kl=0.1)) and found.within(Tolerance(0.0, kl=0.7 * np.log(7)))
    assert not found.within(Tolerance(1.0, top1=0.6)) and found.within(Tolerance(0.0, top1=0.5))
    assert excess(found, Tolerance(0.0, top1=0.75)) == 2.0 and excess(found, Tolerance(0.0, kl=2 * found.kl)) == 0.5
    assert Tolerance.parse(Fields("t", Tolerance(0.1, kl=0.5).to_json())) == Tolerance(0.1, kl=0.5)
    imported = import_torch(mlp(), (torch.randn(4, 96),), None, name="m")
    with pytest.raises(UserError, match="--budget kl: the model has no output of logits by its name, only"):
        tolerance_for(imported, Signature.of(imported.module), CompileOptions(quant="w8a8", max_kl=0.1))
    with pytest.raises(UserError, match="a budget bounds one figure"):
        CompileOptions(max_kl=0.1, min_cosine=0.9)


def test_an_onnx_model_in_groups_keeps_its_4_bits(tmp_path: Path) -> None:
    """MatMul of a DequantizeLinear in blocks of 32, as exporters write 4-bit weights."""
    rng = np.random.default_rng(0)
    numbers, scales = rng.integers(0, 16, (64, 48), np.uint8), rng.random((2, 48), np.float32) * 0.1 + 0.01
    zeros = rng.integers(0, 16, (2, 48), np.uint8)
    nibbles = [helper.make_tensor(name, TensorProto.UINT4, each.shape, each.ravel()) for name, each in (("q", numbers), ("z", zeros))]
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=0, block_size=32),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 48])],
        [*nibbles, helper.make_tensor("s", TensorProto.FLOAT, scales.shape, scales.ravel())],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), tmp_path / "m.onnx")
    options = CompileOptions(target="native", repro=None)
    llmos.compile(tmp_path / "m.onnx", options=options).save(tmp_path / "m.llmos")
    program = llmos.load(tmp_path / "m.llmos")
    weight = (numbers.astype(np.float32) - zeros.repeat(32, 0)) * scales.repeat(32, 0)
    for rows in (1, 40):
        x = rng.standard_normal((rows, 64), np.float32)
        np.testing.assert_allclose(np.asarray(program(x)), x @ weight, rtol=1e-4, atol=1e-4)
    assert {weight.dtype: math.prod(weight.shape) for weight in program.manifest.weights}["uint8"] == 64 * 48 // 2
