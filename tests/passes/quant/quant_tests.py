"""What tests of quantization share: W8A8 arithmetic in torch, and modules run by the interpreter."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from llmos.compiler.analysis.contraction import contraction_of
from llmos.compiler.execution.interpreter import Interpreter, OpCache
from llmos.compiler.frontend.torch import import_torch
from llmos.compiler.ir.bindings import ir
from llmos.passes import run_pipeline
from tests.passes.ir_tests import CONTEXT, PRELUDE, QUIET


def examples(few: int, many: int) -> int:
    """How many examples a property is tried on: few in `make test`, many with LLMOS_PROPERTY_CASES=1."""
    return many if os.environ.get("LLMOS_PROPERTY_CASES") else few


def quantized(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric numbers in -127..127 as int32, with a scale for each row of the last axis [..., 1]."""
    scale = x.abs().amax(-1, keepdim=True) / 127
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return torch.clamp(torch.round(x / scale), -127, 127).to(torch.int32), scale


def shifted(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Asymmetric numbers less their zero points, -255..255 as int32, with a scale for each row of the last axis [..., 1]."""
    low, high = (each.reshape(*x.shape[:-1], 1) for each in (x.amin(-1).clamp(max=0), x.amax(-1).clamp(min=0)))
    scale = high / 255 - low / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.clamp(torch.round(-low / scale), 0, 255)
    return (torch.clamp(torch.round(x / scale) + zero, 0, 255) - zero).to(torch.int32), scale


def w8a8(x: torch.Tensor, w: torch.Tensor, *, symmetric: bool = False) -> torch.Tensor:
    """x [..., k] times w [n, k] by 8-bit numbers, in the order of operations of quantize-contractions."""
    (qx, sx), (qw, sw) = quantized(x) if symmetric else shifted(x), quantized(w)
    sums = (qx.to(torch.int64) @ qw.to(torch.int64).T).to(torch.float32)
    return (sums * sx) * sw[:, 0]


def run(
    module: ir.Module,
    inputs: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor] = (),
    more: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> list[np.ndarray]:
    """The outputs of a module whose weights are those of `ir_tests.Call`, and `more` by name."""
    named = {**{f"weights.{i}": weight.numpy() for i, weight in enumerate(weights)}, **more}
    with module.context:
        return list(Interpreter(module, OpCache(opt_level=0)).run([x.numpy() for x in inputs], named).outputs)


class OfIntegers(torch.nn.Module):
    """A function of integer weights, given first, as buffers `weight0`, ..., and of inputs."""

    def __init__(self, function: Any, *weights: torch.Tensor) -> None:
        super().__init__()
        self.function = function
        self.names = [f"weight{number}" for number in range(len(weights))]
        for name, weight in zip(self.names, weights, strict=True):
            self.register_buffer(name, weight)

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*(getattr(self, name) for name in self.names), *inputs)


@dataclass(frozen=True)
class Program:
    """An imported function of integers, as linalg.generic ops, with its weights and inputs."""

    module: ir.Module
    weights: Mapping[str, Any]
    inputs: tuple[torch.Tensor, ...]

    @staticmethod
    def of(function: Any, weights: Sequence[torch.Tensor], *inputs: torch.Tensor, dynamic: bool = True) -> Program:
        shapes = (tuple({0: torch.export.Dim("batch", min=1, max=64)} for _ in inputs),) if dynamic else None
        imported = import_torch(OfIntegers(function, *weights).eval(), inputs, shapes, name="m")
        run_pipeline(imported.module, PRELUDE, options=QUIET, context=CONTEXT)
        return Program(imported.module, imported.weights, inputs)

    def run(self) -> list[np.ndarray]:
        with self.module.context:
            return list(Interpreter(self.module, OpCache(opt_level=0)).run([x.numpy() for x in self.inputs], self.weights).outputs)


def kernel_forms(module: ir.Module) -> int:
    """How many contractions of u8 and s8 without zero points a module has; every other integer contraction fails the test."""
    ops = module.body.operations[0].operation.regions[0].blocks[0].operations
    found = [each for op in ops if (each := contraction_of(op.operation)) is not None and not each.is_float]
    for each in found:
        assert [str(kind) for kind in each.types] == ["i8", "i8", "i32"]
        assert (each.lhs_factor.is_unsigned, each.rhs_factor.is_unsigned) == (True, False)
        assert each.lhs_factor.zero_point is None and each.rhs_factor.zero_point is None
    return len(found)
