"""Kernels by TVM: what torch gives, what the CPU backend gives, the same bits for a row alone and among others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import llmos
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver import Artifact
from llmos.compiler.driver import compile as compile_model
from llmos.runtime.errors import UserError
from llmos.runtime.program import Program

pytest.importorskip("tvm", reason="TVM is not installed: pip install 'llmos[tvm]'")

OPTIONS = CompileOptions(target="native", backend="tvm", repro=None, accuracy_report=False)
Array = np.ndarray[Any, Any]


class Module(torch.nn.Module):
    """A function, with weights by their names."""

    def __init__(self, function: Callable[..., torch.Tensor], **weights: torch.Tensor) -> None:
        super().__init__()
        self.function = function
        self.names = list(weights)
        for name, weight in weights.items():
            self.register_buffer(name, weight)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.function(*inputs, *[getattr(self, name) for name in self.names])


def weight(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) / shape[-1] ** 0.5


def compiled(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], backend: str = "tvm") -> Artifact:
    batch = torch.export.Dim("batch", min=1, max=64)
    return compile_model(module, inputs, dynamic_shapes=(tuple({0: batch} for _ in inputs),), options=replace(OPTIONS, backend=backend))


def loaded(artifact: Artifact, folder: Path) -> Program:
    artifact.save(folder / "program.llmos")
    return llmos.load(folder / "program.llmos", poison_arena=True)


def compilers(program: Program) -> list[str]:
    return [kernel.details.get("compiler", "") for kernel in program.artifact.manifest.kernels]


CASES: dict[str, tuple[Module, tuple[int, ...]]] = {
    "gelu": (Module(lambda x: torch.nn.functional.gelu(x) * 2 + 1), (5, 33)),
    "one element": (Module(lambda x: torch.sqrt(x.abs())), (3, 1)),
    "many elements": (Module(lambda x: torch.exp(-x.abs())), (2, 3000)),
    "transposed": (Module(lambda x: (x.transpose(1, 2) * 3).tanh()), (3, 17, 20)),
    "softmax": (Module(lambda x: torch.softmax(x, -1)), (4, 3, 37)),
    "layer_norm": (Module(lambda x, w: torch.nn.functional.layer_norm(x, (48,), w), w=weight(48)), (3, 5, 48)),
    "sum of few": (Module(lambda x: x.sum(-1) + 1), (3, 6)),
    "largest": (Module(lambda x: x.amax(-1)), (3, 70)),
    "pooled": (Module(lambda x: x.mean(1).relu()), (3, 9, 35)),
    "matmul": (Module(lambda x, w: x @ w, w=weight(40, 96)), (13, 40)),
    "linear": (Module(lambda x, w, b: torch.relu(torch.nn.functional.linear(x, w, b)), w=weight(50, 30), b=weight(50)), (9, 7, 30)),
    "narrow": (Module(lambda x, w: torch.nn.functional.linear(x, w), w=weight(3, 30)), (9, 30)),
    "heads": (Module(lambda x, w: torch.einsum("bk,khd->bhd", x, w) + 1, w=weight(24, 3, 32)), (9, 24)),
    "convolution": (Module(lambda x, w: torch.nn.functional.conv2d(x, w, stride=2, padding=1), w=weight(20, 8, 3, 3)), (2, 8, 11, 9)),
}


@pytest.mark.parametrize("name", CASES)
def test_torch_and_the_cpu_backend_give_the_same(name: str, tmp_path: Path) -> None:
    module, shape = CASES[name]
    program = loaded(compiled(module, (torch.randn(shape),)), tmp_path)
    ours = loaded(compiled(module, (torch.randn(shape),), backend="cpu"), tmp_path)
    assert "tvm" in compilers(program), program.artifact.manifest.kernels
    for batch in (1, 2, 8, 19):
        x = torch.randn((batch, *shape[1:]), generator=torch.Generator().manual_seed(batch))
        found, want = program(x.numpy()), module(x).numpy()
        np.testing.assert_allclose(found, want, rtol=2e-5, atol=2e-6 * max(1.0, np.abs(want).max()))
        np.testing.assert_allclose(found, ours(x.numpy()), rtol=2e-5, atol=2e-6 * max(1.0, np.abs(want).max()))
        alone = np.concatenate([program(x[i : i + 1].numpy()) for i in range(batch)])
        assert found.tobytes() == alone.tobytes(), f"{batch} rows differ from each alone"
    program.check_integrity()


SPECIAL = [0.0, -0.0, 1.0, -1.0, 2.5, -2.5, float("inf"), float("-inf"), float("nan"), 1e-42, 3e38, -3e38]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x + 1.0) - x,
        lambda x: x - x,
        lambda x: (x != x).float(),
        lambda x: torch.where(~(x < 1), x, -x),
        lambda x: torch.relu(x),
        lambda x: torch.sqrt(x) + torch.floor(x) * torch.ceil(x) - torch.trunc(x) + torch.round(x),
        lambda x: torch.maximum(x, 2 - x),
        lambda x: torch.copysign(torch.ones_like(x), x),
    ],
    ids=["sum less a term", "nothing", "NaN", "not less", "relu", "sqrt", "maximum", "copysign"],
)
def test_special_numbers_keep_their_bits(function: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path) -> None:
    """What TVM would simplify as if floats were reals."""
    x = torch.tensor([SPECIAL, SPECIAL[::-1]])
    program = loaded(compiled(Module(function), (x,)), tmp_path)
    assert "tvm" in compilers(program)
    np.testing.assert_array_equal(program(x.numpy()), function(x).numpy())
    assert (np.signbit(program(x.numpy())) == np.signbit(function(x).numpy()))[~np.isnan(function(x).numpy())].all()


def test_bools_are_read_and_written_as_bytes(tmp_path: Path) -> None:
    """Sums of bools along rows are the CPU backend's, their elements are not."""
    x = torch.arange(-40.0, 40.0).reshape(2, 40)

    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([(x > 3) & ~(x > 20), (x < 0) ^ (x > -7), (x > -100).all(-1, keepdim=True).expand_as(x)], 1)

    program = loaded(compiled(Module(function), (x,)), tmp_path)
    np.testing.assert_array_equal(program(x.numpy()), function(x).numpy())


def test_several_entries_keep_the_names_of_their_tiles_apart(tmp_path: Path) -> None:
    module, other = CASES["linear"][0], CASES["layer_norm"][0]
    inputs = {"first": (torch.randn(2, 7, 30),), "second": (torch.randn(3, 5, 48),)}
    llmos.compile({"first": module, "second": other}, inputs, options=OPTIONS).save(tmp_path / "two.llmos")
    program = llmos.load(tmp_path / "two.llmos")
    for name, made in (("first", module), ("second", other)):
        found = program[name](inputs[name][0].numpy())
        np.testing.assert_allclose(found, made(*inputs[name]).numpy(), rtol=2e-5, atol=1e-5)


def test_a_relax_module_is_refused() -> None:
    import tvm

    with pytest.raises(UserError, match="give the ExportedProgram"):
        compile_model(tvm.IRModule(), ())


@pytest.mark.parametrize("name", ["gelu", "softmax", "linear"])
def test_inputs_lie_where_their_elements_may(name: str, tmp_path: Path) -> None:
    module, shape = CASES[name]
    program = loaded(compiled(module, (torch.zeros(shape),)), tmp_path)
    x = torch.randn((8, *shape[1:]))
    storage = np.zeros(x.numel() * 4 + 64, np.uint8)
    first = -storage.ctypes.data % 64 + 4
    moved = storage[first : first + x.numel() * 4].view(np.float32).reshape(x.shape)
    moved[...] = x.numpy()
    assert moved.ctypes.data % 64 == 4
    assert program(moved).tobytes() == program(x.numpy()).tobytes()


def test_integers_wrap(tmp_path: Path) -> None:
    x = torch.tensor([[2**31 - 1, -(2**31), 0], [5, -1, 2**31 - 2]], dtype=torch.int32)

    def function(x: torch.Tensor) -> torch.Tensor:
        return ((x + 1) > x).int() + x * 3

    program = loaded(compiled(Module(function), (x,)), tmp_path)
    assert "tvm" in compilers(program)
    np.testing.assert_array_equal(program(x.numpy()), function(x).numpy())


def test_what_tvm_is_not_given_says_why(tmp_path: Path) -> None:
    table = weight(50, 16)
    program = loaded(compiled(Module(lambda i, t: t[i] * 2, t=table), (torch.tensor([[1, 2], [3, 4]]),)), tmp_path)
    (kernel,) = program.artifact.manifest.kernels
    assert kernel.details["compiler"] == "cpu"
    assert "data decides" in kernel.details["because"]
    with pytest.raises(llmos.LlmosError):  # our kernel checks what it is asked for
        program(np.array([[1, 50]]))


def test_the_same_model_gives_the_same_code() -> None:
    module, shape = CASES["layer_norm"]
    first, second = (_code(compiled(module, (torch.zeros(shape),))) for _ in range(2))
    assert first == second


def _code(artifact: Artifact) -> list[bytes]:
    return [variant.data for variant in artifact.contents.code]


def test_without_tvm_the_backend_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util
    import sys

    from llmos.compiler.backends import registry

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "tvm" else find(name, *rest))
    monkeypatch.delitem(sys.modules, "llmos.compiler.backends.tvm.backend", raising=False)
    registry._loaded.cache_clear()
    with pytest.raises(UserError, match=r"llmos\[tvm\]"):
        registry.get_backend("tvm")
