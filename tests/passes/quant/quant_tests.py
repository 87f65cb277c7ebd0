"""What tests of quantization share: W8A8 arithmetic in torch, and modules run by the interpreter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from llmos.compiler.execution.interpreter import Interpreter
from llmos.compiler.ir.bindings import ir


def quantized(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric numbers in -127..127 as int32, with a scale for each row of the last axis [..., 1]."""
    scale = x.abs().amax(-1, keepdim=True) / 127
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return torch.clamp(torch.round(x / scale), -127, 127).to(torch.int32), scale


def w8a8(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x [..., k] times w [n, k] by 8-bit numbers, in the order of operations of quantize-contractions."""
    (qx, sx), (qw, sw) = quantized(x), quantized(w)
    sums = (qx.to(torch.int64) @ qw.to(torch.int64).T).to(torch.float32)
    return (sums * sx) * sw[:, 0]


def run(module: ir.Module, inputs: Sequence[torch.Tensor], weights: Sequence[torch.Tensor] = ()) -> list[np.ndarray]:
    """The outputs of a module whose weights are those of `ir_tests.Call`."""
    named = {f"weights.{i}": weight.numpy() for i, weight in enumerate(weights)}
    with module.context:
        return list(Interpreter(module).run([x.numpy() for x in inputs], named).outputs)
