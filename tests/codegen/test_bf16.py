"""--precision bf16: programs against eager float32, on targets that multiply bfloat16 and on those that extend it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from llmos.compiler.backends.cpu.packing import PANEL, pack_words, packed_words_shape
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver import compile as compile_model
from llmos.runtime.artifact.bfloat16 import from_bfloat16, to_bfloat16
from llmos.runtime.program import Program

from .programs import V3, V4, dim, load, runnable, to_array

AMX, NATIVE = "x86-64-v4-amx", "x86-64-v4-bf16"
TARGETS = (NATIVE, V4, V3)  # the same arithmetic in the same order: equal bits, so that one of them stands for all
ALL_TARGETS = (AMX, *(pytest.param(target, marks=pytest.mark.slow) for target in (NATIVE, V4)), V3)
BUDGET = 2e-2  # of the output's scale: 8 bits of mantissa through a whole network


def compiled(module: torch.nn.Module, example: Sequence[torch.Tensor], dynamic: Sequence[Mapping[int, Any]], target: str) -> Program:
    options = CompileOptions(precision="bf16", target=runnable(target), cache=False, repro=None, accuracy_report=False)
    return load(compile_model(module.eval(), tuple(example), dynamic_shapes=tuple(dict(d) for d in dynamic), options=options))


def error(program: Program, module: torch.nn.Module, *inputs: torch.Tensor) -> float:
    """Largest error of any output, relative to that output's scale."""
    found = program(*[to_array(each) for each in inputs])
    with torch.no_grad():
        expected = module(*inputs)
    pairs = zip(*(value if isinstance(value, tuple) else (value,) for value in (found, expected)), strict=True)
    return max(float(np.abs(f - e.numpy()).max() / np.abs(e.numpy()).max()) for f, e in pairs)


def linear_chain(*sizes: int) -> torch.nn.Module:
    torch.manual_seed(sum(sizes))
    layers = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    return torch.nn.Sequential(*[step for layer in layers for step in (layer, torch.nn.ReLU())][:-1])


@pytest.mark.sample(0, 3)
@pytest.mark.parametrize("target", [AMX, NATIVE, pytest.param(V4, marks=pytest.mark.slow), V3])
def test_every_tail(target: str) -> None:
    """Depths odd, even, 1 and whole matrix tiles; widths around a panel; rows in blocks of 32, 16, 8, 4, 2 and 1."""
    sizes = (16, 1, 48, 63, 50, 64, 96, 64, 2, 7, 100, 33)
    module = linear_chain(*sizes)
    program = compiled(module, [torch.randn(3, sizes[0])], [{0: dim("batch", high=64)}], target)
    for batch in (1, 2, 7, 16, 17, 43, 64):
        assert error(program, module, torch.randn(batch, sizes[0], generator=torch.Generator().manual_seed(batch))) < BUDGET


@pytest.mark.parametrize("target", ALL_TARGETS)
def test_rows_have_the_same_bits_alone_and_in_a_batch(target: str) -> None:
    program = compiled(linear_chain(16, 63, 64, 50), [torch.randn(3, 16)], [{0: dim("batch", high=64)}], target)
    rows = np.random.default_rng(0).standard_normal((29, 16), np.float32)
    together = np.asarray(program(rows))
    for row in range(29):
        np.testing.assert_array_equal(np.asarray(program(rows[row : row + 1])), together[row : row + 1])


def test_dot_products_and_widening_give_the_same_bits() -> None:
    module, rows = linear_chain(16, 63, 64, 50), np.random.default_rng(1).standard_normal((13, 16), np.float32)
    results = [np.asarray(compiled(module, [torch.randn(3, 16)], [{0: dim("batch", high=64)}], target)(rows)) for target in TARGETS]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


class LastHiddenState(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> Any:
        return self.model(input_ids=ids, attention_mask=mask).last_hidden_state


def encoder() -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    config = transformers.BertConfig(**sizes, vocab_size=100, max_position_embeddings=90)
    return LastHiddenState(transformers.BertModel(config, add_pooling_layer=False)).eval()


@pytest.mark.sample(0)
@pytest.mark.parametrize("target", ALL_TARGETS)
def test_an_encoder_with_padding(target: str) -> None:
    module = encoder()
    example = (torch.randint(5, 90, (2, 9)), torch.ones(2, 9, dtype=torch.int64))
    sizes = {0: dim("batch", high=16), 1: dim("tokens", high=80)}
    program = compiled(module, example, [sizes, sizes], target)
    for batch, tokens in ((1, 1), (2, 7), (3, 70)):
        ids = torch.randint(5, 90, (batch, tokens), generator=torch.Generator().manual_seed(tokens))
        mask = torch.ones(batch, tokens, dtype=torch.int64)
        mask[-1, tokens // 2 + 1 :] = 0
        assert error(program, module, ids, mask) < BUDGET


class SelfAttention(torch.nn.Module):
    """Two heads over masked keys."""

    def __init__(self, head: int) -> None:
        super().__init__()
        self.head, self.project = head, torch.nn.ModuleList(torch.nn.Linear(2 * head, 2 * head) for _ in range(3))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = (each(x).reshape(*x.shape[:2], 2, self.head).transpose(1, 2) for each in self.project)
        weighted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        return weighted.transpose(1, 2).flatten(2)


@pytest.mark.sample(0, 2, 3)
@pytest.mark.parametrize(("head", "target"), [(64, AMX), (32, AMX), (32, NATIVE), (64, NATIVE), (32, V3)])
def test_attention_around_blocks_of_queries_and_keys(head: int, target: str) -> None:
    """A sequence has the same bits alone and padded in a batch, odd and even numbers of keys included."""
    torch.manual_seed(head)
    module, sizes = SelfAttention(head).eval(), {0: dim("batch", high=8), 1: dim("tokens", high=140)}
    example = (torch.randn(2, 9, 2 * head), torch.ones(2, 9, dtype=torch.bool))
    program = compiled(module, example, [sizes, {0: sizes[0], 1: sizes[1]}], target)
    for tokens in (1, 2, 31, 33, 64, 65, 130):
        x, mask = torch.randn(2, tokens + 7, 2 * head), torch.zeros(2, tokens + 7, dtype=torch.bool)
        mask[0, :tokens] = mask[1, :3] = True
        assert error(program, module, x, mask) < BUDGET
        alone = np.asarray(program(to_array(x[:1, :tokens]), to_array(mask[:1, :tokens])))
        np.testing.assert_array_equal(alone, np.asarray(program(to_array(x), to_array(mask)))[:1, :tokens])


class CrossAttention(SelfAttention):
    """Queries of one sequence over keys of another."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        sources = zip(self.project, (x, keys, keys), strict=True)
        q, k, v = (each(source).reshape(*source.shape[:2], 2, self.head).transpose(1, 2) for each, source in sources)
        weighted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        return weighted.transpose(1, 2).flatten(2)


@pytest.mark.slow
@pytest.mark.parametrize(("head", "target"), [(32, AMX), (96, NATIVE), (128, NATIVE)])
def test_attention_over_other_numbers_of_keys_than_of_queries(head: int, target: str) -> None:
    """The rows of a sequence that has no key are zeros."""
    torch.manual_seed(head)
    module, batch, queries, keys = CrossAttention(head).eval(), dim("batch", high=8), dim("queries", high=140), dim("keys", high=140)
    example = (torch.randn(2, 9, 2 * head), torch.ones(2, 7, dtype=torch.bool), torch.randn(2, 7, 2 * head))
    program = compiled(module, example, [{0: batch, 1: queries}, {0: batch, 1: keys}, {0: batch, 1: keys}], target)
    assert [kernel.kind for kernel in program.manifest.kernels].count("attention") == 1
    for num_queries, num_keys in itertools.product((1, 2, 33, 130), (1, 2, 31, 64, 129)):
        x, y, mask = torch.randn(3, num_queries, 2 * head), torch.randn(3, num_keys, 2 * head), torch.rand(3, num_keys) > 0.3
        mask[0], mask[1] = False, True
        assert error(program, module, x, mask, y) < BUDGET
        assert not np.asarray(program(*map(to_array, (x, mask, y))))[0].any()


class Mixed(torch.nn.Module):
    """Products of activations, transposed rows, statistics as outputs, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(33, 40)
        self.matrix = torch.nn.Parameter(torch.randn(40, 40) / 6)
        self.conv = torch.nn.Conv1d(7, 9, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = torch.tanh(self.first(x))
        scores = (y @ y.transpose(-1, -2)).softmax(-1)
        return scores @ (y @ self.matrix), y.mean(-1), self.conv(y).relu(), y.transpose(1, 2) @ torch.ones(7, 5)


@pytest.mark.parametrize("target", ALL_TARGETS)
def test_products_of_activations_and_convolutions(target: str) -> None:
    torch.manual_seed(0)
    module = Mixed()
    program = compiled(module, [torch.randn(2, 7, 33)], [{0: dim("batch", high=8)}], target)
    assert error(program, module, torch.randn(5, 7, 33, generator=torch.Generator().manual_seed(3))) < BUDGET


def test_matrices_are_stored_in_bfloat16() -> None:
    module = linear_chain(512, 512, 512)
    example, sizes = [torch.randn(2, 512)], [{0: dim("batch", high=8)}]
    program = compiled(module, example, sizes, V3)
    assert [weight.dtype for weight in program.manifest.weights if len(weight.shape) > 1] == ["bfloat16", "bfloat16"]


def test_panels_of_pairs() -> None:
    array = np.arange(5 * 50, dtype=np.uint16).reshape(5, 50)
    panels = pack_words(array, [1], [0], 2)
    assert panels.shape == packed_words_shape((5, 50), [1], [0], 2) == (2, 3, PANEL, 2)
    for k in range(5):
        np.testing.assert_array_equal(panels[:, k // 2, :, k % 2].reshape(-1)[:50], array[k])
    assert not panels[:, 2, :, 1].any() and not panels[1, :, 2:].any()


def test_weights_are_rounded_as_torch_rounds() -> None:
    values = torch.cat([torch.randn(4096), torch.tensor([0.0, -0.0, float("inf"), float("nan"), 3.4e38, 1.00390625, 1.01171875, 1e-40])])
    expected = values.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    found = to_bfloat16(values.numpy())
    is_nan = np.isnan(values.numpy())
    np.testing.assert_array_equal(found[~is_nan], expected[~is_nan])
    assert np.isnan(from_bfloat16(found[is_nan])).all()


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0, 3), (2, 3)])
def test_rounding_keeps_shapes(shape: tuple[int, ...]) -> None:
    values = np.full(shape, 1.5, np.float32)
    bits = to_bfloat16(values)
    assert (bits.shape, bits.dtype) == (shape, np.uint16)
    np.testing.assert_array_equal(from_bfloat16(bits), values)
