"""Bad input, given to the command line as a user would: one readable line, exit code 2, and nothing half-written."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import llmos
from llmos.runtime.artifact.writer import ArtifactContents, CodeVariant, write_artifact
from llmos.runtime.cli.command import run

from .conftest import Compile, call

Done = subprocess.CompletedProcess[str]
NATIVE = ("--target", "native")


class Classifier(torch.nn.Module):
    """float32 [batch, 24] to [batch, 7]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = torch.nn.Linear(24, 40)
        self.outer = torch.nn.Linear(40, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(torch.relu(self.inner(x)))


def export(module: torch.nn.Module, path: Path) -> Path:
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    torch.export.save(torch.export.export(module.eval(), (torch.randn(3, 24),), dynamic_shapes=shapes), path)
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(Classifier(), tmp_path_factory.mktemp("source") / "classifier.pt2")


@pytest.fixture(scope="module")
def artifact(source: Path, compiled: Compile) -> Path:
    return compiled(source, "classifier", *NATIVE, "--dynamic", "batch")


def assert_one_line(done: Done, *parts: str) -> None:
    assert (done.returncode, done.stdout) == (2, ""), done
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and len(done.stderr) < 1000, done.stderr
    for part in parts:
        assert part in done.stderr


def assert_empty(folder: Path) -> None:
    assert list(folder.iterdir()) == []


def missing(folder: Path, source: Path) -> Path:
    return folder / "missing.pt2"


def truncated(folder: Path, source: Path) -> Path:
    path = folder / "truncated.pt2"
    path.write_bytes(source.read_bytes()[:-2000])
    return path


def empty(folder: Path, source: Path) -> Path:
    path = folder / "empty.onnx"
    path.touch()
    return path


def truncated_onnx(folder: Path, source: Path) -> Path:
    path = folder / "truncated.onnx"
    path.write_bytes(_onnx("Relu")[:-25])
    return path


def unknown_onnx_op(folder: Path, source: Path) -> Path:
    path = folder / "unknown.onnx"
    path.write_bytes(_onnx("Frobnicate"))
    return path


def unsupported_torch_op(folder: Path, source: Path) -> Path:
    class Noisy(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.randn_like(x)

    return export(Noisy(), folder / "noisy.pt2")


def broken_mlir(folder: Path, source: Path) -> Path:
    path = folder / "broken.mlir"
    path.write_text("func.func @main(%x: tensor<2xf32>) {\n")
    return path


def pickle_file(folder: Path, source: Path) -> Path:
    path = folder / "weights.pth"
    torch.save({"a": torch.ones(1)}, path)
    return path


def truncated_safetensors(folder: Path, source: Path) -> Path:
    from transformers import BertConfig, BertModel

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
    BertModel(BertConfig(**small)).save_pretrained(folder / "bert")
    weights = folder / "bert" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return folder / "bert"


def _onnx(op: str) -> bytes:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"], name="the_node")], "g", [x], [y])
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    return model.SerializeToString()


SOURCES: list[tuple[Callable[[Path, Path], Path], str]] = [
    (missing, "no such file or directory"),
    (truncated, "truncated.pt2"),
    (empty, "is empty"),
    (truncated_onnx, "truncated.onnx"),
    (unknown_onnx_op, "Frobnicate"),
    (unsupported_torch_op, "randn_like"),
    (broken_mlir, "broken.mlir"),
    (pickle_file, "pickle"),
    (truncated_safetensors, "bert"),
]


@pytest.fixture
def call_here(capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """`llmos` in this process, for tests about what it says: a process of its own imports torch first."""

    def run_here(*arguments: object) -> Done:
        capfd.readouterr()
        code = run([str(each) for each in arguments])
        return Done([], code, *capfd.readouterr())

    return run_here


@pytest.mark.parametrize(("make", "message"), SOURCES, ids=lambda value: getattr(value, "__name__", ""))
def test_sources_that_do_not_compile(
    make: Callable[[Path, Path], Path],
    message: str,
    source: Path,
    tmp_path: Path,
    call_here: Callable[..., Done],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad, out = tmp_path / "bad", tmp_path / "out"
    bad.mkdir(), out.mkdir()
    path = make(bad, source)
    monkeypatch.chdir(out)
    assert_one_line(call_here("compile", path, "-o", out / "model.llmos", "-q"), message)
    assert_empty(out)


def test_a_process_of_its_own_says_the_same(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert_one_line(call("compile", unknown_onnx_op(tmp_path, source), "-o", out / "model.llmos", "-q", cwd=out), "Frobnicate")
    assert_empty(out)


def test_nan_weights_are_a_warning_and_the_model_still_compiles(tmp_path: Path, call_here: Callable[..., Done]) -> None:
    module = Classifier()
    with torch.no_grad():
        module.inner.weight[3, 5] = float("nan")
    done = call_here("compile", export(module, tmp_path / "diverged.pt2"), "-o", tmp_path / "out.llmos", "-q", *NATIVE)
    assert done.returncode == 0 and (tmp_path / "out.llmos").is_file()
    assert done.stderr.startswith("warning: ") and "NaN" in done.stderr and "inner.weight" in done.stderr and done.stderr.count("\n") == 1


CALLS = [
    ("y", np.zeros((1, 24), np.float32), ['no input "y"', "x"]),
    ("x", np.zeros((1, 24), np.float64), ["float32", "float64"]),
    ("x", np.zeros((1, 24), np.int32), ["float32", "int32"]),
    ("x", np.zeros(24, np.float32), ["x", "2", "1"]),
    ("x", np.zeros((1, 23), np.float32), ["24", "23"]),
    ("x", np.zeros((65, 24), np.float32), ["batch", "65", "64"]),
    ("x", np.zeros((0, 24), np.float32), ["batch", "0"]),
]


@pytest.mark.parametrize(("name", "array", "parts"), CALLS, ids=["name", "dtype", "integers", "rank", "size", "above", "below"])
def test_inputs_that_do_not_fit(name: str, array: np.ndarray, parts: list[str], artifact: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array)
    out = tmp_path / "out"
    assert_one_line(call("run", artifact, "--input", f"{name}={tmp_path / 'x.npy'}", "--output", out), *parts)
    assert not out.exists()


def test_a_flipped_byte_anywhere(artifact: Path, tmp_path: Path) -> None:
    good = artifact.read_bytes()
    for place in np.linspace(0, len(good) - 1, 7).astype(int):
        bad = tmp_path / "flipped.llmos"
        bad.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        assert_one_line(call("run", bad), "flipped.llmos")


def test_a_truncated_artifact(artifact: Path, tmp_path: Path) -> None:
    bad = tmp_path / "truncated.llmos"
    bad.write_bytes(artifact.read_bytes()[:-1])
    for command in ("run", "inspect", "serve"):
        assert_one_line(call(command, bad), "truncated.llmos")


@pytest.mark.parametrize(("arch", "features"), [("riscv64", ()), (os.uname().machine, ("teleport",))], ids=["architecture", "feature"])
def test_an_artifact_for_another_processor(arch: str, features: tuple[str, ...], artifact: Path, tmp_path: Path) -> None:
    opened = llmos.Artifact.open(artifact)
    manifest = opened.manifest
    code = CodeVariant("other", arch, features, bytes(opened.member(manifest.code[0].member)))
    write_artifact(tmp_path / "foreign.llmos", ArtifactContents("foreign", manifest.entries, manifest.symbols, code=[code]))
    assert_one_line(call("run", tmp_path / "foreign.llmos"), f"a {arch} machine" if not features else "teleport", "--target native")


def test_a_foreign_signature(artifact: Path, tmp_path: Path) -> None:
    done = call("run", artifact, env={"LLMOS_HOME": str(tmp_path)})
    assert_one_line(done, "signed by a key you do not trust", "llmos trust add")
    added = call("trust", "add", done.stderr.split()[-1], env={"LLMOS_HOME": str(tmp_path)})
    assert added.returncode == 0
    assert call("run", artifact, env={"LLMOS_HOME": str(tmp_path)}).returncode == 0


@pytest.mark.sample(1)
@pytest.mark.parametrize("missing_bytes", [100, 10_000_000], ids=["for the artifact", "for temporary files too"])
def test_a_full_disk(missing_bytes: int, artifact: Path, source: Path, tmp_path: Path) -> None:
    limit = max(1024, artifact.stat().st_size - missing_bytes)

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    before = tmp_path / "model.llmos"
    before.write_bytes(b"the old one")
    done = call("compile", source, "-o", before, "-q", "--no-cache", *NATIVE, preexec_fn=small_files, cwd=tmp_path)
    assert_one_line(done, "can't write")
    assert [path.name for path in tmp_path.iterdir()] == ["model.llmos"] and before.read_bytes() == b"the old one"


def test_a_folder_that_is_not_there_is_said_before_any_work(source: Path, tmp_path: Path, call_here: Callable[..., Done]) -> None:
    assert_one_line(call_here("compile", source, "-o", tmp_path / "nowhere" / "model.llmos"), "no such directory")


def test_check_lists_what_does_not_compile_and_exits_with_1(tmp_path: Path, call_here: Callable[..., Done]) -> None:
    path = unknown_onnx_op(tmp_path, tmp_path)
    done = call_here("check", path)
    assert done.returncode == 1
    assert "Frobnicate" in done.stdout and "the_node" in done.stdout and "1 place that does not compile" in done.stdout
    assert json.loads(call_here("check", path, "--json").stdout)[0]["supported"] is False


def test_without_a_c_compiler_compile_says_what_to_install(source: Path, tmp_path: Path) -> None:
    assert shutil.which("cc")
    done = call("compile", source, "-o", tmp_path / "m.llmos", "-q", "--no-cache", *NATIVE, env={"PATH": str(tmp_path)})
    assert_one_line(done, "C compiler")
    assert_empty(tmp_path)
