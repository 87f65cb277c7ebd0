"""`--device` and LLMOS(device=...): a GPU by its name, and one line where that can't be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from llmos.compiler.cli.bench import command as bench
from llmos.models.causal_lm import CausalLMOptions, import_model
from llmos.runtime.cli.run import command as run
from llmos.runtime.device.cpu import CpuDevice
from llmos.runtime.device.cuda import CudaDevice
from llmos.runtime.device.select import open_device
from llmos.runtime.errors import ArtifactError, ExecutionError, UserError
from llmos.runtime.llm import LLMOS
from llmos.runtime.server.core.language import LanguageModel, load_served
from tests.models.test_causal_lm import model_of

from . import fake


class Add(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


@pytest.fixture(autouse=True)
def machine() -> Iterator[None]:
    """A fresh fake machine for each test."""
    fake.driver().fake_cuda_reset()
    yield
    fake.driver().fake_cuda_reset()


@pytest.fixture(scope="module")
def artifact() -> Path:
    fake.driver()
    return fake.compiled(Add(), (torch.zeros(2, 3),))


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "cuda:0x", "CUDA", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"there is no device '{name}': it must be cpu, cuda or cuda:N"):
        open_device(name)


def test_devices_by_name() -> None:
    fake.driver().fake_cuda_machine(12080, 2, 8, 6, 1 << 30)
    assert isinstance(open_device("cpu"), CpuDevice)
    first, second = open_device("cuda"), open_device("cuda:1")
    assert isinstance(first, CudaDevice) and isinstance(second, CudaDevice)
    assert (first.name, second.name, second.target) == ("cuda:0", "cuda:1", "cuda:sm_80")
    with pytest.raises(ExecutionError, match="there is no GPU 2, only 0 to 1"):
        open_device("cuda:2")


def test_run_takes_a_device(artifact: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 3), np.float32))
    given = [str(artifact), "--input", f"x={tmp_path / 'x.npy'}", "--output", str(tmp_path / "out"), "--device", "cuda:0"]
    done = CliRunner().invoke(run, given, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (found,) = (tmp_path / "out").iterdir()
    np.testing.assert_array_equal(np.load(found), np.full((2, 3), 2, np.float32))
    assert any(line.startswith("cuLaunchKernel") for line in fake.calls())


def test_an_artifact_without_code_for_the_gpu_says_what_to_compile(artifact: Path) -> None:
    fake.driver().fake_cuda_machine(12080, 1, 12, 0, 1 << 30)
    with pytest.raises(ArtifactError, match=r"Fake GPU, sm_120\): cuda:sm_90a needs sm_90a; compile it with --target cuda:sm_100$"):
        load_served(artifact, device="cuda")


def test_a_machine_without_a_driver_says_so_in_one_line(artifact: Path) -> None:
    command = [sys.executable, "-m", "llmos.runtime.cli", "run", str(artifact), "--device", "cuda"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "NVIDIA driver" not in done.stderr:
        pytest.skip(f"this machine has a driver: {done.stderr}")
    assert (done.returncode, done.stderr) == (1, "error: no NVIDIA driver: libcuda.so.1 can't be loaded on this machine\n")


def test_bench_has_no_profile_of_a_gpu(artifact: Path) -> None:
    done = CliRunner().invoke(bench, [str(artifact), "--against", "", "--profile", "--device", "cuda"])
    assert isinstance(done.exception, UserError) and "--profile" in str(done.exception)


def test_a_language_model_is_served_from_a_gpu() -> None:
    path = fake.compiled(import_model(model_of("llama"), CausalLMOptions("bf16"), name="model"), ())
    model = load_served(path, device="cuda:0")
    assert isinstance(model, LanguageModel) and model.step.new_caches(2)[0].__dlpack_device__() == (2, 0)
    model.close()
    with pytest.raises(UserError, match="there is no device 'tpu'"):
        LLMOS(path, device="tpu")
