"""Random numbers that follow from a seed: the generator's published answers, distributions, streams, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import helper

import llmos
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver import compile as compile_model
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.frontend.onnx import import_onnx
from llmos.compiler.frontend.philox import philox, random_words
from llmos.compiler.frontend.torch import import_torch
from llmos.runtime.errors import UnsupportedError, UserError
from tests.conformance.inprocess import Compiled

Tensor = torch.Tensor
AUTO = torch.export.Dim.AUTO
ALL = 0xFFFFFFFF
# kat_vectors of Random123: counter, key, words.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ALL, ALL, ALL, ALL), (ALL, ALL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter: Any, key: Any, words: Any) -> None:
    found = philox([np.array([word], np.uint64) for word in counter], [np.array([word], np.uint64) for word in key])
    assert tuple(int(word[0]) for word in found) == words


def _module(function: Callable[..., Any]) -> torch.nn.Module:
    return type("Module", (torch.nn.Module,), {"forward": staticmethod(function)})()


def _imported(function: Callable[[Tensor], Any], x: Tensor) -> ImportedModel:
    return import_torch(_module(function), (x,), (dict.fromkeys(range(x.dim()), AUTO),), random="seed")


def _drawn(function: Callable[[Tensor], Any], seed: int = 1, shape: tuple[int, ...] = (100, 200)) -> np.ndarray:
    (found,) = Compiled(_imported(function, torch.zeros(3, 4)))([np.zeros(shape, np.float32), np.array(seed)])
    return found


def test_a_compiled_program_gives_the_generators_own_bits() -> None:
    """Two streams, at another size than the traced one; element i has counter i."""
    model = _imported(lambda x: (torch.rand(x.shape, dtype=torch.float64), torch.rand(x.shape[1])), torch.zeros(3, 4))
    compiled = Compiled(model)
    for seed in (0, 7, -1, 2**63 - 1, -(2**63)):
        doubles, floats = compiled([np.zeros((5, 9), np.float32), np.array(seed)])
        first, second = random_words(seed, 0, 45), random_words(seed, 1, 9)
        assert np.array_equal(doubles.reshape(-1), ((first >> 11) & (2**53 - 1)) * 2.0**-53)
        assert np.array_equal(floats, (((second & ALL) >> 8) * 2.0**-24).astype(np.float32))


def _kolmogorov_smirnov(sample: np.ndarray, distribution: Callable[[np.ndarray], np.ndarray]) -> float:
    """sqrt(n) times the largest distance between the sample's distribution and the given one; above 1.95 in one case of a thousand."""
    ordered = np.sort(sample.reshape(-1).astype(np.float64))
    n, expected = len(ordered), distribution(ordered)
    ranks = np.arange(n + 1) / n
    return math.sqrt(n) * float(max((ranks[1:] - expected).max(), (expected - ranks[:-1]).max()))


def _normal(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + torch.erf(torch.from_numpy(x) / math.sqrt(2)).numpy())


DISTRIBUTIONS: dict[str, tuple[Callable[[Tensor], Tensor], float, float, Callable[[np.ndarray], np.ndarray]]] = {
    "uniform": (lambda x: torch.rand_like(x), 0.5, 1 / 12, lambda v: v),
    "uniform of other ends": (lambda x: x.clone().uniform_(-1, 3), 1.0, 16 / 12, lambda v: (v + 1) / 4),
    "normal": (lambda x: torch.randn_like(x), 0.0, 1.0, _normal),
    "normal of a mean": (lambda x: torch.normal(x + 2, 3.0), 2.0, 9.0, lambda v: _normal((v - 2) / 3)),
    "exponential": (lambda x: x.clone().exponential_(2.0), 0.5, 0.25, lambda v: 1 - np.exp(-2 * v)),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distributions(name: str) -> None:
    function, mean, variance, distribution = DISTRIBUTIONS[name]
    drawn = _drawn(function).astype(np.float64)
    assert abs(drawn.mean() - mean) < 4 * math.sqrt(variance / drawn.size)
    assert abs(drawn.var() / variance - 1) < 0.06
    assert _kolmogorov_smirnov(drawn, distribution) < 1.95


def test_discrete_numbers() -> None:
    counts = {
        "bernoulli": (lambda x: torch.bernoulli(x, 0.3), [0.7, 0.3]),
        "bernoulli of a tensor": (lambda x: torch.bernoulli(x + 0.25), [0.75, 0.25]),
        "integers": (lambda x: torch.randint(2, 6, x.shape) - 2, [0.25] * 4),
        "kept by dropout": (lambda x: F.dropout(x + 1, 0.4, True) > 0, [0.4, 0.6]),
        "categories": (lambda x: torch.multinomial(torch.tensor([1.0, 2.0, 5.0]).expand(x.shape[0], 3), 50, True), [0.125, 0.25, 0.625]),
    }
    for name, (function, shares) in counts.items():
        found = np.bincount(_drawn(function).reshape(-1).astype(np.int64), minlength=len(shares))
        total = found.sum()
        assert len(found) == len(shares), name
        assert all(abs(n / total - p) < 4.5 * math.sqrt(p * (1 - p) / total) for n, p in zip(found, shares, strict=True)), name


def test_draws_without_replacement_and_permutations_hold_each_once() -> None:
    picked = _drawn(lambda x: torch.multinomial(torch.ones(x.shape[0], 9), 4), shape=(50, 4))
    assert picked.shape == (50, 4) and all(len(set(row)) == 4 for row in picked.tolist())
    assert sorted(_drawn(lambda x: torch.randperm(x.shape[1]), shape=(2, 64)).tolist()) == list(range(64))


def test_the_reference_draws_the_same_numbers() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        dropped = F.dropout(x, 0.3, True), F.dropout2d(x[:, :, None, None], 0.3, True), F.alpha_dropout(x, 0.3, True)
        return *dropped, F.rrelu(x, training=True), x.clone().geometric_(0.3), torch.rand(x.shape, dtype=torch.float16)

    model = _imported(function, torch.randn(3, 4))
    assert model.reference is not None
    inputs = [np.random.default_rng(0).standard_normal((6, 11), np.float32), np.array(5)]
    for got, want in zip(Compiled(model)(inputs), model.reference(inputs), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_seeds_and_ops_give_different_numbers_and_calls_the_same() -> None:
    compiled = Compiled(_imported(lambda x: (torch.rand_like(x), torch.rand_like(x)), torch.zeros(3, 4)))
    x = np.zeros((8, 8), np.float32)
    one, other = compiled([x, np.array(3)])
    again, _ = compiled([x, np.array(3)])
    apart, _ = compiled([x, np.array(4)])
    wider, _ = compiled([np.zeros((9, 8), np.float32), np.array(3)])
    assert np.array_equal(one, again) and np.array_equal(one, wider[:8])
    assert not np.isin(one, other).any() and not np.isin(one, apart).any()


def test_without_a_seed_draws_are_refused_and_a_taken_name_too() -> None:
    noise = _module(lambda seed: seed + torch.rand_like(seed))
    with pytest.raises(UnsupportedError, match=r"draws random numbers: .*random=\"seed\" \(--random seed\)"):
        import_torch(noise, (torch.zeros(3),))
    with pytest.raises(UserError, match="already: choose another name"):
        import_torch(noise, (torch.zeros(3),), random="seed")
    with pytest.raises(UserError, match="is not a name"):
        CompileOptions(random="the seed")


def test_a_model_that_draws_nothing_gets_no_seed() -> None:
    model = import_torch(_module(lambda x: F.dropout(x, 0.5, False) + 1), (torch.zeros(3),), random="seed")
    assert len(model.examples[0]) == 1


NODES = {
    "RandomUniform": ([], {"shape": [400, 3], "low": -1.0, "high": 3.0}, 1.0),
    "RandomUniformLike": (["x"], {"high": 2.0}, 1.0),
    "RandomNormal": ([], {"shape": [400, 3], "mean": 2.0}, 2.0),
    "RandomNormalLike": (["x"], {"scale": 0.5}, 0.0),
    "Bernoulli": (["x"], {}, 0.25),
    "Multinomial": (["x"], {"sample_size": 3, "dtype": onnx.TensorProto.INT64}, 1.0),
    "Dropout": (["x", "", "training"], {}, 0.25),
}


@pytest.mark.parametrize("name", NODES)
def test_onnx_ops(name: str) -> None:
    inputs, attributes, mean = NODES[name]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3])
    kind = onnx.TensorProto.INT64 if name == "Multinomial" else onnx.TensorProto.FLOAT
    y = helper.make_tensor_value_info("y", kind, None)
    nodes = [helper.make_node(name, inputs, ["y"], **attributes)]
    constants = [helper.make_tensor("training", onnx.TensorProto.BOOL, [], [True])]
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    given = np.full((400, 3), 0.25, np.float32)
    source = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = import_onnx(source, random="seed")

    compiled = Compiled(model)
    (drawn,) = compiled([given, np.array(1)])
    assert abs(drawn.astype(np.float64).mean() - mean) < 0.15
    assert not np.array_equal(drawn, compiled([given, np.array(2)])[0])
    assert model.reference is not None
    np.testing.assert_allclose(drawn, model.reference([given, np.array(1)])[0], rtol=1e-5, atol=1e-6)


def test_from_a_module_to_the_answer(tmp_path: Path) -> None:
    """The accuracy report compares with the same numbers; the seed is an input like any other."""
    module = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Dropout(0.5)).train()
    options = CompileOptions(target="native", random="seed", cache=False, repro=None)
    artifact = compile_model(module, (torch.randn(3, 8),), dynamic_shapes=({0: torch.export.Dim("batch")},), options=options)
    artifact.save(tmp_path / "noise.llmos")

    program = llmos.load(tmp_path / "noise.llmos")
    x = np.ones((64, 8), np.float32)
    first, again, other = (program(x, np.array(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert 0.3 < (first == 0).mean() < 0.7


def test_a_model_that_draws_may_hold_ops_that_are_decomposed() -> None:
    def run(x: Tensor) -> Tensor:
        return torch.cdist(F.dropout(x, 0.5, True), x)

    x = torch.ones(4, 3)
    (found,) = Compiled(import_torch(_module(run), (x,), random="seed"))([x.numpy(), np.asarray(3)])
    kept = 3 - np.round(found[:, 0].astype(np.float64) ** 2)  # a factor that is dropped lies 1 from its row, one that is kept as well
    assert found.shape == (4, 4)
    np.testing.assert_array_equal(kept, 0)
