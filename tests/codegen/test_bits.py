"""The same request gives the same bits: alone or in a batch, on one thread or two, and where the design says so on every target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

import llmos
from llmos.compiler.backends.cpu.backend import CpuBackend
from llmos.compiler.backends.cpu.planned import CpuPlanned
from llmos.compiler.backends.cpu.target import resolve
from llmos.compiler.backends.planning import run_passes
from llmos.compiler.driver import compile as compile_model
from llmos.compiler.driver.sources import import_source
from llmos.compiler.ir.tiling import NO_TILINGS, Tiling, Tilings
from llmos.passes.tile_dispatches import tiling_key
from llmos.runtime.native.binding import num_threads, set_num_threads

from .programs import V3, V4, Returns, dim, options, runnable, to_array

F = torch.nn.functional
WIDTH = 200


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = torch.nn.Linear(WIDTH, 300), torch.nn.Linear(300, WIDTH)
        self.norm = torch.nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.norm(x + self.outer(F.gelu(self.inner(x))))
        heads = y.unflatten(-1, (5, 40)).transpose(1, 2)
        attended = F.scaled_dot_product_attention(heads, heads, heads)
        return {"y": y, "attended": attended, "probabilities": torch.softmax(self.inner(x), -1)}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bits") / "block.llmos"
    shapes = ({0: dim("b"), 1: dim("t")},)
    compile_model(
        Block().eval(), (torch.randn(2, 3, WIDTH),), dynamic_shapes=shapes, options=options(f"{runnable(V3)},{runnable(V4)}")
    ).save(path)
    return path


@pytest.mark.parametrize("target", [V3, V4])
def test_a_request_alone_and_in_a_batch(artifact: Path, target: str) -> None:
    program = llmos.load(artifact, target=runnable(target), poison_arena=True)
    rng = np.random.default_rng(0)
    for tokens in (1, 7, 33):
        x = rng.standard_normal((9, tokens, WIDTH), np.float32)
        together = program(x)
        for row in (0, 4, 8):
            for alone, batched in zip(program(x[row : row + 1]), together, strict=True):
                np.testing.assert_array_equal(alone[0], batched[row])


def test_one_thread_and_two(artifact: Path) -> None:
    x = np.random.default_rng(1).standard_normal((5, 30, WIDTH), np.float32)
    program = llmos.load(artifact)
    before, found = num_threads(), []
    try:
        for threads in (1, 2):
            set_num_threads(threads)
            found.append(program(x))
    finally:
        set_num_threads(before)
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)


def test_row_kernels_give_the_same_bits_on_every_target(tmp_path: Path) -> None:
    """Rows are reduced by 16 lanes everywhere, and their functions are our own."""
    narrow, wide = runnable(V3), runnable(V4)
    module = Returns(
        softmax=lambda x: torch.softmax(x, -1),
        norm=lambda x: F.layer_norm(x, (WIDTH,)),
        gelu=lambda x: F.gelu(x),
        total=lambda x: x.sum(-1),
        down=lambda x: x.sum(0),
        length=lambda x: F.normalize(x, dim=-1),
    )
    shapes = {"inputs": ({0: dim("b")},)}
    compile_model(module, (torch.randn(3, WIDTH),), dynamic_shapes=shapes, options=options(f"{narrow},{wide}")).save(tmp_path / "m")
    x = to_array(torch.randn(17, WIDTH))
    first, second = (llmos.load(tmp_path / "m", target=target)(x) for target in (narrow, wide))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


TILINGS = (
    "columns=16+rows=5",
    "columns=64+lines=0+ahead=0",
    "columns=32+rows=64+lines=2",
    "rows=1",
    "columns=48+lines=5+ahead=64",
    "depth=24+rows=16",
    "columns=32+depth=4",
)


class Products(torch.nn.Module):
    """A linear layer, a convolution with zeros around its image, a product without weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.conv = torch.nn.Linear(70, 100), torch.nn.Conv2d(10, 60, 3, padding=1)

    def forward(self, x: torch.Tensor, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = torch.relu(self.linear(x))
        return y, torch.relu(self.conv(image)), y @ y.transpose(-1, -2)


@pytest.mark.sample(0, 3)
@pytest.mark.parametrize(("precision", "tilings"), [*product(("fp32", "bf16"), (TILINGS[::2], TILINGS[1::2]))])
def test_no_choice_of_tiles_changes_a_bit(precision: str, tilings: Sequence[str], tmp_path: Path) -> None:
    inputs = (torch.randn(2, 37, 70), torch.randn(2, 10, 9, 7))
    exported = torch.export.export(Products().eval(), inputs, dynamic_shapes=({0: dim("b")}, {0: dim("images")}))
    plain = replace(options("native"), precision=precision)

    def outputs(tilings: Tilings) -> list[np.ndarray]:
        compile_model(exported, options=replace(plain, tilings=tilings)).save(tmp_path / "m.llmos")
        return list(llmos.load(tmp_path / "m.llmos", poison_arena=True)(*map(to_array, inputs)))

    planned = run_passes(import_source(exported, None, None, plain), plain, CpuBackend())
    assert isinstance(planned, CpuPlanned)
    target = resolve(plain.target)[0].name
    with planned.module.context:
        keys = [tiling_key(each.func) for each in planned.program.dispatches if each.kind == "contraction"]
    expected = outputs(NO_TILINGS)
    assert len(keys) == 3
    for text in tilings:
        tiling = Tiling.parse(f"target={target}+{text}")
        for found, wanted in zip(outputs(Tilings(tuple((key, tiling) for key in keys))), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
