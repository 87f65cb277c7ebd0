"""Trained models with kernels by TVM: right, and run by a process that has no TVM."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Compile, compiled, minilm_source, models

pytest.importorskip("tvm", reason="TVM is not installed: pip install 'llmos[tvm]'")

__all__ = ["compiled", "minilm_source", "models"]

# Compiling has compared the model with its reference within the fp32 budget; the samples of that comparison are run once more.
_VERIFY = """
import sys
from pathlib import Path
from llmos.runtime.cli.command import run
code = run(["verify", sys.argv[1]])
loaded = {name.partition(".")[0] for name in sys.modules} & {"tvm", "tvm_ffi", "torch", "llvmlite"}
mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if "tvm" in line.rpartition("/")[2]]
print(code, sorted(loaded), mapped)
"""


def verify(artifact: Path) -> None:
    result = subprocess.run([sys.executable, "-c", _VERIFY, str(artifact)], capture_output=True, text=True, check=False)
    assert result.stdout.splitlines()[-1] == "0 [] []", result.stdout + result.stderr


def kernels(artifact: Path) -> str:
    command = [sys.executable, "-c", "from llmos.runtime.cli import main; main()", "inspect", "--kernels", str(artifact)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_minilm(minilm_source: Path, compiled: Compile) -> None:
    artifact = compiled(minilm_source, "minilm", "--backend", "tvm", "--target", "native")
    verify(artifact)
    listed = kernels(artifact)
    assert listed.count("compiler=tvm") > 40
    assert "compiler=cpu because=attention is the CPU backend's alone" in listed


@pytest.mark.parametrize("name", ["magika", "sbd-lstm"])
def test_models_from_onnx(name: str, models: Path, compiled: Compile) -> None:
    artifact = compiled(models / name / "model.onnx", name, "--backend", "tvm", "--target", "native")
    verify(artifact)
    assert "compiler=tvm" in kernels(artifact)


@pytest.mark.slow
def test_resnet18(compiled: Compile, tmp_path: Path) -> None:
    from benchmarks.networks import export

    artifact = compiled(export("resnet18", tmp_path), "resnet18", "--backend", "tvm", "--target", "native")
    verify(artifact)
    assert "compiler=tvm" in kernels(artifact)
