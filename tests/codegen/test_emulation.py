"""Instructions that this machine may lack: the emulated ones against numpy, and against the real ones where the machine has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import llmos
from llmos.compiler.backends.cpu.emulation import emulate
from llmos.compiler.backends.cpu.target import CpuTarget, resolve
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.codegen.llvm import compile_object
from llmos.compiler.driver import compile as compile_model
from llmos.runtime.errors import UserError

from .programs import V3, load, runnable

DOTS, TILES = "x86-64-v4-bf16", "x86-64-v4-amx"


class Layers(torch.nn.Module):
    """Contractions with depths and widths that leave partial tiles, and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(100, 144), torch.nn.Linear(144, 72)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.first(x)
        query, key, value = hidden.unflatten(-1, (3, 48)).unbind(-2)
        return self.second(torch.nn.functional.gelu(hidden)), torch.nn.functional.scaled_dot_product_attention(query, key, value)


def outputs(target: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What the layers give on a target, and in eager float32."""
    torch.manual_seed(0)
    layers, x = Layers().eval(), torch.randn(2, 37, 100)
    options = CompileOptions(precision="bf16", target=target, cache=False, repro=None, accuracy_report=False)
    program: llmos.Program = load(compile_model(layers, (x,), options=options))
    with torch.no_grad():
        return list(program(x.numpy())), [each.numpy() for each in layers(x)]


@pytest.mark.parametrize("kernels", [DOTS, TILES])
def test_emulated_kernels_are_within_the_precision_of_bfloat16(kernels: str) -> None:
    for found, want in zip(*outputs(f"{kernels}@{V3}"), strict=True):
        assert 0 < np.abs(found - want).max() <= 2e-2 * np.abs(want).max()


@pytest.mark.parametrize("kernels", [DOTS, TILES])
def test_they_give_the_bits_of_the_instructions(kernels: str) -> None:
    if not CpuTarget.parse(kernels).runs_here():
        pytest.skip(f"this machine has no {kernels} to compare with")
    for emulated, real in zip(outputs(f"{kernels}@{V3}")[0], outputs(kernels)[0], strict=True):
        np.testing.assert_array_equal(emulated, real)


def test_nothing_of_the_missing_features_is_left() -> None:
    text = """
    declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
    define void @__llmos_f(ptr %p, ptr %q) {
      %a = load <16 x float>, ptr %p
      %b = load <32 x bfloat>, ptr %q
      %c = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %a, <32 x bfloat> %b, <32 x bfloat> %b)
      store <16 x float> %c, ptr %p
      ret void
    }"""
    assert "llvm.x86" not in emulate(text)
    assert compile_object(emulate(text), CpuTarget.parse(f"{DOTS}@{V3}")).startswith(b"\x7fELF")


def test_text_without_such_instructions_is_left_alone() -> None:
    text = "define float @f(float %x) {\n  %y = call float @llvm.x86.something.else(float %x)\n  ret float %y\n}\n"
    assert emulate(text) == text


def test_emulated_targets_by_name() -> None:
    (found,) = resolve(f"{TILES}@{V3}")
    assert (found.name, found.cpu, found.required) == (f"{TILES}@{V3}", V3, CpuTarget.parse(V3).required)
    assert found.has("amx-bf16") and found.vector_bits == 512
    assert found.code_target(()).name == f"x86-64-v4@{V3}"
    assert [each.name for each in resolve(f"{V3},x86-64-v4@{V3}")] == [f"x86-64-v4@{V3}", V3]
    with pytest.raises(UserError, match="can't be emulated on aarch64"):
        resolve("x86-64-v4@aarch64")


def test_a_target_that_runs_here_is_not_emulated() -> None:
    native = resolve("native")[0].name
    assert runnable(native) == native
