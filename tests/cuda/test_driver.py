"""What the C core asks of the driver, and what becomes of the driver's errors, on the fake one (fake_cuda.c)."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from llmos.runtime.device.cuda import CudaDevice
from llmos.runtime.errors import ArtifactError, ExecutionError
from llmos.runtime.program import load

from .fake import calls, compiled, driver, folder, program

OUT_OF_MEMORY, ILLEGAL = 2, 700


class Scale(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(8.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


X = torch.ones(2, 8)


@pytest.fixture(autouse=True)
def machine() -> Iterator[None]:
    """A fresh fake machine for each test."""
    driver().fake_cuda_reset()
    yield
    driver().fake_cuda_reset()


def fail(name: str, code: int, after: int = 0) -> None:
    driver().fake_cuda_fail(name.encode(), code, after)


OPEN = """
from llmos.runtime.device.cuda import CudaDevice
try:
    print(CudaDevice().product)
except Exception as error:
    print(type(error).__name__, error)
"""


def said_by_a_process(before: str = "") -> str:
    result = subprocess.run([sys.executable, "-c", before + OPEN], capture_output=True, text=True, check=True)
    assert len(result.stdout.splitlines()) == 1
    return result.stdout


def test_a_machine_without_a_driver_says_so() -> None:
    said = said_by_a_process()
    if not said.startswith("ExecutionError"):
        pytest.skip(f"this machine has {said}")
    assert said == "ExecutionError no NVIDIA driver: libcuda.so.1 can't be loaded on this machine\n"


def test_a_driver_that_is_too_old_is_refused() -> None:
    fake = f"ctypes.CDLL({str(folder() / 'libcuda.so.1')!r}, mode=ctypes.RTLD_GLOBAL)"
    old = f"import ctypes\n{fake}.fake_cuda_machine(11080, 1, 9, 0, 1 << 20)\n"
    assert said_by_a_process(old) == "ExecutionError the NVIDIA driver is too old: it is for CUDA 11.8 and 12.0 is needed\n"


def test_gpus_are_known_by_index() -> None:
    device = CudaDevice()
    assert (device.name, device.chip, device.product) == ("cuda:0", "sm_90", "Fake GPU")
    with pytest.raises(ExecutionError, match="there is no GPU 3, only 0 to 0"):
        CudaDevice(3)
    driver().fake_cuda_machine(12080, 0, 9, 0, 1 << 30)
    with pytest.raises(ExecutionError, match="the NVIDIA driver has no GPU"):
        CudaDevice()


@pytest.mark.parametrize(("major", "minor", "target", "runs"), [(9, 0, "sm_90a", True), (12, 0, "sm_90a", False), (8, 6, "sm_80", True)])
def test_a_chip_takes_the_variant_that_it_runs(major: int, minor: int, target: str, runs: bool) -> None:
    path = compiled(Scale(), (X,), target=f"cuda:{target}")
    driver().fake_cuda_machine(12080, 1, major, minor, 1 << 30)
    if runs:
        assert load(path, device=CudaDevice()).target == f"cuda:{target}"
    else:
        with pytest.raises(ArtifactError, match=f"Fake GPU, sm_120.*needs {target}"):
            load(path, device=CudaDevice())


def test_a_cubin_comes_first_and_ptx_where_it_does_not_fit() -> None:
    loaded = program(Scale(), (X,))
    modules = [line for line in calls() if line.startswith("cuModuleLoadDataEx")]
    assert modules[-1] == "cuModuleLoadDataEx ptx" and set(modules) <= {"cuModuleLoadDataEx cubin", "cuModuleLoadDataEx ptx"}
    np.testing.assert_array_equal(loaded(X), (X * torch.arange(8.0)).numpy())


def test_a_call_launches_once_a_dispatch_and_gives_its_memory_back() -> None:
    loaded = program(Scale(), (X,))
    loaded(X)
    before = driver().fake_cuda_live()
    driver().fake_cuda_reset()
    loaded(X)
    made = calls()
    assert [line for line in made if line.startswith("cuLaunchKernel")] == ["cuLaunchKernel d0_elementwise 1 256 0"]
    assert sum(line.startswith("cuMemAllocAsync") for line in made) == sum(line.startswith("cuMemFreeAsync") for line in made) == 2
    assert driver().fake_cuda_live() == before
    order = [line.split()[0] for line in made]
    assert order.index("cuLaunchKernel") < max(at for at, name in enumerate(order) if name == "cuStreamSynchronize")


def test_all_memory_is_given_back_when_a_program_is_closed() -> None:
    gc.collect()
    before = driver().fake_cuda_live()
    loaded = program(Scale(), (X,))
    loaded(X)
    assert driver().fake_cuda_live() > before
    loaded.close()
    del loaded
    gc.collect()
    assert driver().fake_cuda_live() == before


@pytest.mark.parametrize("after", range(2))
def test_a_request_without_memory_fails_and_the_next_one_runs(after: int) -> None:
    loaded = program(Scale(), (X,))
    loaded(X)
    before = driver().fake_cuda_live()
    fail("cuMemAllocAsync", OUT_OF_MEMORY, after)
    with pytest.raises(ExecutionError, match="out of memory"):
        loaded(X)
    driver().fake_cuda_reset()
    assert driver().fake_cuda_live() == before
    np.testing.assert_array_equal(loaded(X), (X * torch.arange(8.0)).numpy())


@pytest.mark.parametrize("name", ["cuLaunchKernel", "cuMemcpyAsync", "cuStreamSynchronize", "cuMemsetD8Async"])
def test_a_failure_of_the_gpu_is_an_error_of_the_call(name: str) -> None:
    loaded = program(Scale(), (X,))
    loaded(X)
    fail(name, ILLEGAL)
    with pytest.raises(ExecutionError, match=r"an illegal memory access was encountered \(CUDA error 700\)"):
        loaded(X)


@pytest.mark.parametrize("name", ["cuModuleLoadDataEx", "cuModuleGetFunction", "cuStreamCreate", "cuMemAllocAsync", "cuMemAllocHost"])
def test_a_failure_while_loading_leaves_nothing_behind(name: str) -> None:
    path, device = compiled(Scale(), (X,)), CudaDevice()
    gc.collect()
    before = driver().fake_cuda_live()
    fail(name, OUT_OF_MEMORY)
    with pytest.raises((ArtifactError, ExecutionError), match="out of memory"):
        load(path, device=device)(X)
    gc.collect()
    assert driver().fake_cuda_live() == before


def lives(path: Path, x: torch.Tensor) -> np.ndarray:
    """Open the GPU, load, call twice with a buffer between, and close."""
    device = CudaDevice()
    with load(path, device=device) as loaded:
        loaded(x)
        device.copy(device.allocate(64), device.allocate(64))
        device.synchronize()
        return np.asarray(loaded(x))


def test_each_call_of_the_driver_may_fail_without_a_leak() -> None:
    path = compiled(Scale(), (X,))
    gc.collect()
    before = driver().fake_cuda_all_live()
    driver().fake_cuda_reset()
    lives(path, X)
    gc.collect()
    num_calls, survived = driver().fake_cuda_num_calls(), []
    assert driver().fake_cuda_all_live() == before and num_calls > 50
    for number in range(num_calls):
        driver().fake_cuda_reset()
        driver().fake_cuda_fail_nth(number, ILLEGAL)
        try:
            np.testing.assert_array_equal(lives(path, X), (X * torch.arange(8.0)).numpy())
            survived.append(calls()[number].split()[0])
        except (ArtifactError, ExecutionError) as error:
            said = str(error)
            assert "\n" not in said and "an illegal memory access was encountered (CUDA error 700)" in said, (calls()[number], said)
        gc.collect()
        lost, before = driver().fake_cuda_all_live() - before, driver().fake_cuda_all_live()
        is_unreachable = calls()[number] == "cuCtxPushCurrent 1" and survived[-1:] == ["cuCtxPushCurrent"]  # before something is given back
        assert lost == 0 or is_unreachable, calls()[number]
        assert driver().fake_cuda_current() == -1, calls()[number]
    # Only what gives something back may fail unseen, and a cubin, whose PTX is loaded then.
    giving_back = {"cuMemFreeAsync", "cuMemFreeHost", "cuStreamDestroy", "cuModuleUnload", "cuDevicePrimaryCtxRelease", "cuCtxPopCurrent"}
    assert set(survived) <= giving_back | {"cuModuleLoadDataEx", "cuStreamSynchronize", "cuCtxPushCurrent"}
    assert survived.count("cuModuleLoadDataEx") <= 1


def test_a_driver_that_fails_to_start_is_asked_again() -> None:
    library = str(folder() / "libcuda.so.1")
    said = [
        said_by_a_process(f"import ctypes\nctypes.CDLL({library!r}, mode=ctypes.RTLD_GLOBAL).fake_cuda_fail_nth({n}, 100)\n")
        for n in (0, 1)
    ]
    assert said[0] == "ExecutionError the GPU: its driver has no version: no CUDA-capable device is detected (CUDA error 100)\n"
    assert said[1] == "ExecutionError the GPU: it can't be started: no CUDA-capable device is detected (CUDA error 100)\n"


def test_each_gpu_has_its_own_streams_and_memory() -> None:
    path = compiled(Scale(), (X,))
    driver().fake_cuda_machine(12080, 2, 9, 0, 1 << 30)
    first, second = (load(path, device=CudaDevice(index)) for index in (0, 1))
    for loaded in (second, first, second):
        np.testing.assert_array_equal(loaded(X), (X * torch.arange(8.0)).numpy())
    assert {line for line in calls() if line.startswith("cuCtxPushCurrent")} == {"cuCtxPushCurrent 1", "cuCtxPushCurrent 2"}
    with pytest.raises(ExecutionError, match="there is no GPU 2, only 0 to 1"):
        CudaDevice(2)


def test_weights_larger_than_the_memory_are_refused() -> None:
    path = compiled(Scale(), (X,))
    driver().fake_cuda_machine(12080, 1, 9, 0, 4)
    with pytest.raises((ArtifactError, ExecutionError), match="no memory for the weights: out of memory"):
        load(path, device=CudaDevice())


def test_a_large_tensor_goes_through_pinned_memory_in_parts() -> None:
    class Add(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :1] + 1

    x = torch.arange(3.0 * (1 << 20)).reshape(12, -1)  # 12 MiB: three parts of the pinned memory
    loaded = program(Add(), (x,))
    np.testing.assert_array_equal(loaded(x), (x[:, :1] + 1).numpy())


def test_small_tensors_share_the_pinned_memory_and_large_ones_wait() -> None:
    class Sum(torch.nn.Module):
        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            return torch.stack([each.flatten()[-7] for each in inputs])

    sizes = (10, 1 << 20, 8, 3 << 19, 1000, 1 << 19, 1 << 19, 9)  # of which some fill the pinned memory, or are larger
    inputs = [torch.full((size,), float(number)) for number, size in enumerate(sizes)]
    loaded = program(Sum(), tuple(inputs))
    for _ in range(2):
        np.testing.assert_array_equal(loaded(*inputs), np.arange(len(sizes), dtype=np.float32))


def test_a_profile_has_each_launch() -> None:
    profile = program(Scale(), (X,)).default.profile(X)
    assert [(each.name, each.num_tiles) for each in profile.dispatches] == [("d0_elementwise", 1)]
    assert all(each.duration_s > 0 for each in profile.dispatches)


def test_buffers_of_a_device() -> None:
    device = CudaDevice()
    first, second = device.allocate(64), device.allocate(64)
    device.copy(second, first)
    device.synchronize()
    assert "cuMemcpyAsync 64" in calls()
    del first, second
    gc.collect()
    fail("cuMemAllocAsync", OUT_OF_MEMORY)
    with pytest.raises(ExecutionError, match="out of memory"):
        device.allocate(64)
