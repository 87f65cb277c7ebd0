"""Code for machines that the tests don't run on, and what a shared object may need from outside."""

from __future__ import annotations

import re

import pytest
import torch

from llmos.compiler.backends.cpu.backend import CpuBackend
from llmos.compiler.backends.cpu.target import CpuTarget, resolve
from llmos.compiler.backends.lowering import lower
from llmos.compiler.backends.planning import run_passes
from llmos.compiler.codegen.elf import EM_AARCH64, machine, symbols, undefined_symbols
from llmos.compiler.codegen.llvm import LIBC_SYMBOLS, compile_object, emit_assembly
from llmos.compiler.driver.sources import import_source

from .programs import dim, options

NAMES = ("x86-64-v4", "x86-64-v3", "aarch64")


class Encoder(torch.nn.Module):
    """One layer of a MiniLM, smaller."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(50, 48)
        self.layer = torch.nn.TransformerEncoderLayer(48, 4, 96, batch_first=True, activation="gelu")

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        heads = x.unflatten(-1, (4, 12)).transpose(1, 2)
        attended = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=(mask != 0)[:, None, None])
        y = self.layer(x + attended.transpose(1, 2).flatten(2))
        weights = mask.unsqueeze(-1).float()
        return torch.nn.functional.normalize((y * weights).sum(1) / weights.sum(1).clamp(min=1e-9), dim=-1)


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    b, t = dim("batch", 1, 64), dim("tokens", 1, 512)
    example = (torch.zeros(2, 7, dtype=torch.int64), torch.ones(2, 7, dtype=torch.int64))
    chosen, backend = options(",".join(NAMES)), CpuBackend()
    imported = import_source(Encoder().eval(), example, ({0: b, 1: t}, {0: b, 1: t}), chosen)
    planned = run_passes(imported, chosen, backend)
    return {target.name: str(lower(planned, target, chosen, backend, until="ll")) for target in resolve(chosen.target)}


def test_aarch64_code_is_an_aarch64_object(texts: dict[str, str]) -> None:
    code = compile_object(texts["aarch64"], CpuTarget.parse("aarch64"))
    assert machine(code) == EM_AARCH64
    exported = {symbol.name for symbol in symbols(code) if symbol.is_defined and not symbol.is_local}
    assert {"__tvm_ffi_main", "__llmos_shapes_main"} <= exported
    assert undefined_symbols(code) <= LIBC_SYMBOLS


@pytest.mark.parametrize(
    ("name", "multiply_add"),
    [("aarch64", r"\bfmla\s+v\d+\.4s"), ("x86-64-v3", r"vfmadd\d+ps.*%ymm"), ("x86-64-v4", r"vfmadd\d+ps.*%zmm")],
)
def test_kernels_use_the_vectors_of_their_target(texts: dict[str, str], name: str, multiply_add: str) -> None:
    assert len(re.findall(multiply_add, emit_assembly(texts[name], CpuTarget.parse(name)))) >= 24
