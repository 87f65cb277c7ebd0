"""The driver from end to end on small torch models: every stage saved, resumed from, and the numbers still right."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import llmos
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver import ModelWarning, compile_to_file
from llmos.compiler.support.progress import Progress
from llmos.runtime.errors import UserError


class Mlp(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = torch.nn.Linear(24, 40)
        self.outer = torch.nn.Linear(40, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(torch.relu(self.inner(x)))


NATIVE = {"target": "native", "cache": False, "repro": None}


@pytest.fixture(scope="module")
def model() -> Mlp:
    return Mlp().eval()


@pytest.fixture(scope="module")
def exported(model: Mlp, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "mlp.pt2"
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.export.save(torch.export.export(model, (torch.randn(3, 24),), dynamic_shapes=({0: batch},)), path)
    return path


def build(source: Path, out: Path, **options: object) -> list[str]:
    result = compile_to_file(source, out, CompileOptions(**{**NATIVE, **options}), Progress())  # type: ignore[arg-type]
    return sorted(path.name for path in result.written)


@pytest.fixture(scope="module")
def straight(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("straight") / "straight.llmos"
    build(exported, path, accuracy_report=False)
    return path


def assert_right(artifact: Path, model: Mlp) -> None:
    with llmos.load(artifact) as program:
        for batch in (1, 2, 5, 33):
            x = torch.randn(batch, 24)
            np.testing.assert_allclose(program(x), model(x).detach().numpy(), rtol=1e-5, atol=1e-5)


def test_a_module_compiles_in_memory(model: Mlp, tmp_path: Path) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    artifact = llmos.compile(model, (torch.randn(3, 24),), dynamic_shapes=({0: batch},), target="native")
    manifest = artifact.save(tmp_path / "mlp.llmos")
    assert [(symbol.name, symbol.max) for symbol in manifest.symbols] == [("batch", 64)]
    assert_right(tmp_path / "mlp.llmos", model)


def test_a_pt2_file_compiles_and_its_dims_get_names(exported: Path, model: Mlp, tmp_path: Path) -> None:
    out = tmp_path / "mlp.llmos"
    assert build(exported, out, dynamic=("rows",)) == ["mlp.llmos"]
    with llmos.load(out) as program:
        assert [symbol.name for symbol in program.manifest.symbols] == ["rows"]
        assert program.manifest.entries[0].inputs[0].shape == ("rows", 24)
    assert_right(out, model)


def test_more_names_than_dynamic_dimensions(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--dynamic names 2 dimensions .* the model has 1"):
        build(exported, tmp_path / "mlp.llmos", dynamic=("batch", "tokens"))
    assert list(tmp_path.iterdir()) == []


def test_compiling_twice_gives_the_same_bytes(exported: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        build(exported, tmp_path / f"{name}.llmos", name="mlp", target="portable", jobs=2)
    assert (tmp_path / "a.llmos").read_bytes() == (tmp_path / "b.llmos").read_bytes()


@pytest.mark.parametrize("stage", ["linalg.mlir", "fused.mlir", "kernels.mlir", "ll", "o", "so"])
def test_every_stage_can_be_saved_and_be_the_input(stage: str, straight: Path, exported: Path, model: Mlp, tmp_path: Path) -> None:
    resumed = tmp_path / "resumed.llmos"
    written = build(exported, tmp_path / "step.llmos", stop_after=stage)
    [saved] = [name for name in written if name.endswith(f".{stage}")]
    assert not (tmp_path / "step.llmos").exists()
    build(tmp_path / saved, resumed, accuracy_report=False)
    assert_right(resumed, model)
    assert resumed.read_bytes() == straight.read_bytes()


def test_a_hand_edited_dump_is_compiled_as_it_is(exported: Path, model: Mlp, tmp_path: Path) -> None:
    build(exported, tmp_path / "step.llmos", stop_after="linalg.mlir")
    saved = tmp_path / "step.linalg.mlir"
    text = saved.read_text()
    assert "maximumf" in text or "cmpf" in text
    edited = text.replace("arith.maximumf", "arith.minimumf").replace("arith.cmpf ugt", "arith.cmpf ult")
    saved.write_text(edited)
    build(saved, tmp_path / "edited.llmos")
    x = torch.randn(4, 24)
    with llmos.load(tmp_path / "edited.llmos") as program:
        negative = model.outer(-torch.relu(-model.inner(x))).detach().numpy()
        np.testing.assert_allclose(program(x), negative, rtol=1e-5, atol=1e-5)


def test_weights_can_come_from_another_file(exported: Path, tmp_path: Path) -> None:
    build(exported, tmp_path / "step.llmos", stop_after="linalg.mlir")
    weights = (tmp_path / "step.linalg.mlir.safetensors").rename(tmp_path / "elsewhere.safetensors")
    result = compile_to_file(
        tmp_path / "step.linalg.mlir",
        tmp_path / "out.llmos",
        CompileOptions(**NATIVE),  # type: ignore[arg-type]
        Progress(),
        weights,
    )
    assert result.manifest is not None and result.manifest.weights


def test_dumps_hold_every_pass_and_every_stage(exported: Path, tmp_path: Path) -> None:
    build(exported, tmp_path / "mlp.llmos", dump_ir=tmp_path / "dump")
    names = {path.name for path in (tmp_path / "dump").iterdir()}
    assert "00-input.mlir" in names and any(name.endswith("-form-dispatches.mlir") for name in names)
    assert {"mlp.linalg.mlir", "mlp.fused.mlir"} <= names
    assert any(name.endswith(".ll") for name in names)


def test_weights_with_nan_give_a_warning(model: Mlp, tmp_path: Path) -> None:
    broken = Mlp().eval()
    with torch.no_grad():
        broken.outer.weight[0, 0] = float("nan")
    with pytest.warns(ModelWarning, match=r"NaN in its weights: outer\.weight"):
        llmos.compile(broken, (torch.randn(2, 24),), target="native")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ModelWarning)
        llmos.compile(model, (torch.randn(2, 24),), target="native")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("gone.onnx", None, "no such file or directory"),
        ("empty.onnx", b"", "is empty"),
        ("model.pt", b"x", "is a pickle"),
        ("model.safetensors", b"x", "holds weights without a model"),
        ("model.llmos", b"x", "is compiled already"),
        ("model.xyz", b"x", "is not a model that llmos knows"),
        ("cut.pt2", b"PK\x03\x04 cut", r"cut\.pt2"),
        ("cut.onnx", b"\x08\x07 cut", r"cut\.onnx"),
        ("bad.mlir", b"func.func @main( {", "not a valid MLIR module"),
        ("bad.linalg.mlir", b"func.func @main( {", "is not valid MLIR"),
    ],
)
def test_bad_sources_get_one_readable_line_and_leave_nothing(name: str, data: bytes | None, message: str, tmp_path: Path) -> None:
    source = tmp_path / name
    if data is not None:
        source.write_bytes(data)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UserError, match=message) as caught:
        build(source, out / "m.llmos")
    assert len(str(caught.value).splitlines()) == 1
    assert list(out.iterdir()) == []
