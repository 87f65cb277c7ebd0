"""Long reductions keep their digits: error within a few units in the last place times log2 of the number of terms.

Sums are of blocks whose ends depend on sizes alone, so every variant of a kernel gives the same bits. LLMOS_LONG_REDUCTIONS is how many
elements the inputs have as a power of two (22 if it isn't set).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import llmos
from llmos.compiler.codegen.sums import BLOCK, CHAIN
from llmos.compiler.driver import compile as compile_model
from llmos.runtime.artifact.bfloat16 import from_bfloat16
from llmos.runtime.native.binding import num_threads, set_num_threads
from llmos.runtime.program import Program
from tests.codegen.programs import V3, V4, Returns, compile_torch, dim, options, run, runnable

Tensor = torch.Tensor
Function = Callable[[Tensor], Tensor]
LENGTH = 1 << int(os.environ.get("LLMOS_LONG_REDUCTIONS", "22"))

# over all of a long vector, in the ways that kernels walk it: as rows, down columns, over dims that don't lie together
FUNCTIONS: dict[str, Function] = {
    "sum": lambda x: x.sum(),
    "mean": lambda x: x.mean(),
    "std": lambda x: x.std(),
    "norm": lambda x: x.norm(),
    "norm1": lambda x: torch.linalg.vector_norm(x, 1),
    "norm3": lambda x: torch.linalg.vector_norm(x, 3),
    "log_sum_exp": lambda x: x.logsumexp(0),
    "softmax": lambda x: x.softmax(0),
    "log_softmax": lambda x: x.log_softmax(0),
    "product": lambda x: (x * x.flip(0)).sum(),
    "rows": lambda x: x.reshape(4, -1).sum(1),
    "columns": lambda x: x.reshape(-1, 8).mean(0),
    "narrow_columns": lambda x: x.reshape(-1, 2).sum(0),
    "column_variance": lambda x: x.reshape(-1, 4).var(0),
    "running_sum": lambda x: x.cumsum(0)[:: x.numel() // 64],
    "middle": lambda x: x.reshape(2, -1, 16).sum(1),
    "apart": lambda x: x.reshape(64, 4, -1).sum((0, 2)),
    "apart_cut": lambda x: x.reshape(64, 4, -1)[:, :, 3:].sum((0, 2)),
    "pool": lambda x: torch.nn.functional.avg_pool1d(x.reshape(1, 1, -1), x.numel() // 4),
    "pool_2d": lambda x: torch.nn.functional.avg_pool2d(x.reshape(1, 2, 1024, -1), (1023, x.numel() // 2048)),
    "global_pool": lambda x: torch.nn.functional.adaptive_avg_pool2d(x.reshape(1, 2, 1024, -1), 1),
    "with_index": lambda x: torch.stack([x.sum(), x.argmax().to(x.dtype)]),
    "matrix": lambda x: x.reshape(2, -1) @ x.reshape(2, -1).transpose(0, 1),
    "vector": lambda x: x.reshape(8, -1) @ x.reshape(8, -1)[0],
}


def inputs(length: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(length, generator=generator)
    return {"uniform": uniform, "near 100": 100 + uniform, "constant": torch.full((length,), 0.1), "ones": torch.ones(length)}


def assert_precise(program: Program, x: Tensor, kind: str) -> None:
    """Within a few units in the last place times log2(n) of float64; more for a constant, whose roundings all go one way."""
    wide = x.double().reshape(-1)
    for name, found in run(program, x).items():
        want = FUNCTIONS[name](wide).numpy()
        spread = np.abs(want).max() if np.abs(want).max() > 1e-6 else x.abs().max().item()  # of a constant's deviation: its mean's rounding
        error = np.abs(found.astype(np.float64) - want).max() / (2.0**-23 * spread)
        limit = 2 * math.log2(x.numel()) * (16 if kind == "constant" else 1)
        assert error <= limit, f"{name} of {x.numel()} {kind}: {error:.0f} units in the last place"


def test_float32() -> None:
    program = compile_torch(Returns(**FUNCTIONS), [torch.rand(LENGTH)], target=V3)
    for kind, x in inputs(LENGTH).items():
        assert_precise(program, x, kind)


def test_dynamic_sizes() -> None:
    names = ("sum", "std", "softmax", "columns", "narrow_columns", "rows", "apart", "matrix", "with_index")
    functions = {name: lambda x, name=name: FUNCTIONS[name](x.reshape(-1)) for name in names}
    program = compile_torch(Returns(**functions), [torch.rand(4, 1024)], [{0: dim("n", 2, 1 << 18)}], target=V3)
    for length in (2048, 3 * CHAIN * 1024, LENGTH):
        for kind, x in inputs(length).items():
            assert_precise(program, x.reshape(-1, 1024), kind)


def test_accumulated_half_types_are_float32() -> None:
    names = ("sum", "mean", "columns", "rows", "pool")
    for dtype in (torch.float16, torch.bfloat16):
        program = compile_torch(Returns(**{n: FUNCTIONS[n] for n in names}), [torch.rand(1 << 16).to(dtype)], target=V3)
        x = (torch.rand(1 << 16, generator=torch.Generator().manual_seed(1)) / 16).to(dtype)
        for name, found in run(program, x).items():
            array = from_bfloat16(found) if dtype is torch.bfloat16 else found
            want = FUNCTIONS[name](x.double()).numpy()
            np.testing.assert_allclose(array.astype(np.float64), want, rtol=2.0**-8 if dtype is torch.bfloat16 else 2.0**-10, err_msg=name)


def test_attention_over_many_keys() -> None:
    """The denominators of a softmax, and the values that it weighs."""
    x = torch.rand(1, 1, 1 << 15, 16, generator=torch.Generator().manual_seed(4))
    for values in (x, torch.full_like(x, 0.1)):
        args = [x[:, :, :8].clone(), x, values]
        program = compile_torch(Attention(), args, target=V3)
        (found,) = run(program, *args).values()
        want = Attention()(*[each.double() for each in args]).numpy()
        assert np.abs(found - want).max() <= 64 * 2.0**-23 * np.abs(want).max()


class Attention(torch.nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value)


def test_infinite_and_undefined_terms() -> None:
    """An infinite total has no rest that would make it NaN."""
    names = ("sum", "columns", "rows", "apart", "matrix", "pool")
    length = 1 << 17
    program = compile_torch(Returns(**{n: FUNCTIONS[n] for n in names}), [torch.rand(length)], target=V3)
    for place, value in ((0, math.inf), (5000, -math.inf), (length - 1, math.inf), (70000, math.nan), (3, 3e38)):
        x = torch.rand(length, generator=torch.Generator().manual_seed(2))
        x[place] = value
        for name, found in run(program, x).items():
            np.testing.assert_allclose(found, FUNCTIONS[name](x).numpy(), rtol=1e-4, err_msg=f"{name} with {value} at {place}")


class Products(torch.nn.Module):
    """Contractions whose k is a little more than two blocks: with a weight, by windows, without weights."""

    def __init__(self, k: int, precision: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(k, 70)
        self.conv = torch.nn.Conv2d(k // 8, 40, (4, 2)) if precision == "fp32" else None

    def forward(self, x: Tensor, image: Tensor) -> dict[str, Tensor]:
        y = torch.relu(self.linear(x))
        return {"linear": y} if self.conv is None else {"linear": y, "conv": self.conv(image), "product": x @ x.transpose(0, 1)}


def products(k: int, rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(rows, k, generator=generator), torch.rand(rows, k // 8, 5, 6, generator=generator)


# Kernels that take a panel in parts and that do not, extend bfloat16, multiply pairs, multiply tiles.
KERNELS = {"fp32": (V3, V4), "bf16": (V3, "x86-64-v4-bf16", "x86-64-v4-amx")}


@pytest.mark.sample(1)
@pytest.mark.parametrize("precision", KERNELS)
def test_every_variant_of_a_tile_ends_blocks_at_the_same_k(precision: str, tmp_path: Path) -> None:
    """Rows alone and together, on one thread and two, on every kind of processor."""
    k = 2 * BLOCK + 96
    shapes = ({0: dim("rows")}, {0: dim("images")})
    x, image = (each.numpy() for each in products(k, 23))
    found: list[list[np.ndarray]] = []
    for target in KERNELS[precision]:
        chosen = replace(options(runnable(target)), precision=precision)
        module = Products(k, precision).eval()
        compile_model(module, products(k, 3), dynamic_shapes=shapes, options=chosen).save(tmp_path / "m.llmos")
        program = llmos.load(tmp_path / "m.llmos", poison_arena=True)
        together = list(as_tuple(program(x, image)))
        found.append(together)
        for i, alone in rows_alone(program, x, image):
            for one, all_rows in zip(alone[:2], together, strict=False):
                np.testing.assert_array_equal(one[0], all_rows[i], err_msg=target)
        wanted = module.double()(torch.from_numpy(x).double(), torch.from_numpy(image).double())
        for array, want in zip(together, wanted.values(), strict=True):
            limit = 64 * 2.0**-23 if precision == "fp32" else 2e-2
            assert np.abs(array - want.detach().numpy()).max() <= limit * np.abs(want.detach().numpy()).max(), target
    for other in found[1:2]:  # matrix tiles add even and odd k apart
        for array, wanted_bits in zip(other, found[0], strict=True):
            np.testing.assert_array_equal(array, wanted_bits)


def as_tuple(outputs: np.ndarray | tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def rows_alone(program: Program, x: np.ndarray, image: np.ndarray) -> list[tuple[int, tuple[np.ndarray, ...]]]:
    """Some rows by themselves, on one thread."""
    before = num_threads()
    try:
        set_num_threads(1)
        return [(i, as_tuple(program(x[i : i + 1], image[i : i + 1]))) for i in range(0, 23, 11)]
    finally:
        set_num_threads(before)
