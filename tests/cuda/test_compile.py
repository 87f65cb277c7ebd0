"""Artifacts of the CUDA backend: what is in them, for which chips, and what is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

import llmos
from llmos.compiler.backends.cuda.llvm import assemble, compile_ptx, find_ptxas
from llmos.compiler.backends.cuda.target import parse_target
from llmos.compiler.backends.options import CompileOptions
from llmos.runtime.artifact.manifest import Manifest
from llmos.runtime.artifact.reader import Artifact
from llmos.runtime.errors import ArtifactError, PassError, UserError
from llmos.runtime.native.abi import FORMAT
from llmos.runtime.program import load


class Gelu(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(x)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cuda") / "gelu.llmos"
    options = CompileOptions(target="cuda:sm_80,cuda:sm_90a", repro=None)
    batch = {0: torch.export.Dim("batch", min=1, max=1024)}
    llmos.compile(Gelu(), (torch.zeros(3, 64),), dynamic_shapes=(batch,), options=options).save(path)
    return path


def manifest_of(path: Path) -> Manifest:
    return Artifact.open(path).manifest


def test_each_target_has_host_functions_and_ptx(artifact: Path) -> None:
    manifest = manifest_of(artifact)
    assert [code.target for code in manifest.code] == ["cuda:sm_90a", "cuda:sm_80"]
    assert [code.features for code in manifest.code] == [("sm_90a",), ("sm_80",)]
    assert all(code.modules["ptx"] == f"code/{code.target}.ptx" for code in manifest.code)
    with zipfile.ZipFile(artifact) as file:
        ptx = file.read("code/cuda:sm_90a.ptx").decode()
    assert ".target sm_90a" in ptx and ".visible .entry d0_elementwise" in ptx
    assert "ld.global.nc.v4" in ptx and "st.global.v4" in ptx  # 16 bytes an access


def test_an_earlier_runtime_refuses_modules_by_the_format(artifact: Path) -> None:
    assert manifest_of(artifact).format == FORMAT


def test_a_cpu_runs_no_variant_of_a_gpu(artifact: Path) -> None:
    with pytest.raises(ArtifactError, match="needs sm_90a"):
        load(artifact)


def test_unknown_targets_are_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"did you mean cuda:sm_90a\?"):
        llmos.compile(Gelu(), (torch.zeros(2),), options=CompileOptions(target="cuda:sm_90", repro=None))


def test_a_kernel_that_calls_a_library_is_refused() -> None:
    text = "declare float @expf(float)\ndefine ptx_kernel void @k(ptr %p) {\n  %x = load float, ptr %p\n  %y = call float @expf(float %x)\n"
    with pytest.raises(PassError, match="expf"):
        compile_ptx(text + "  store float %y, ptr %p\n  ret void\n}\n", parse_target("cuda:sm_80"))


def test_ptx_assembles_without_spills(artifact: Path) -> None:
    ptxas = find_ptxas()
    if ptxas is None:
        pytest.skip("no ptxas here: CUDA's, or that of the package nvidia-cuda-nvcc")
    with zipfile.ZipFile(artifact) as file:
        for chip in ("sm_80", "sm_90a"):
            cubin, reports = assemble(file.read(f"code/cuda:{chip}.ptx").decode(), chip, ptxas)
            assert file.read(f"code/cuda:{chip}.cubin") == cubin
            assert [report.name for report in reports] == ["d0_elementwise"]
            assert all(report.spilled_bytes == 0 and 0 < report.registers <= 255 for report in reports)
