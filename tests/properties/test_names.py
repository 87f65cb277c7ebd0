"""What a model calls its dimensions, tensors and weights is any text: nothing is merged, mistaken or lost for its name."""

from __future__ import annotations

import keyword
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import llmos
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver import compile as compile_model
from llmos.compiler.frontend.names import identifiers
from llmos.compiler.ir.sizes import Symbol, SymbolTable

OPTIONS = CompileOptions(target="native", cache=False, repro=None, accuracy_report=False)
ODD = ["seq len", "seq-len", "seq_len", "", "größe", "grö ße", "lambda", "min", "日本", "n" * 200]
MORE = ["Mod", "1", "a*b", "a+b", "本日", "x\ny"]
TEXTS = st.lists(
    st.text(max_size=12) | st.sampled_from([*ODD, *MORE, *keyword.kwlist, "floor", "max", "d", "d_2", "seq_len_2"]), max_size=12
)


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.sets(st.sampled_from(["d", "seq_len", "d_2", "n"])))
def test_names_are_told_apart_and_readable_as_sizes(texts: list[str], taken: set[str]) -> None:
    found = identifiers(texts, taken)
    assert set(found) == set(texts)
    assert len(set(found.values()) | taken) == len(set(texts)) + len(taken)
    table = SymbolTable(tuple(Symbol(name, 1, 9) for name in found.values()))
    for symbol in table.symbols:
        assert table.parse(f"min({symbol.name}, 7)//2 + {symbol.name}").free_symbols == {symbol.expr}
    for text, name in found.items():
        if text == "seq_len" and text not in taken:
            assert name == text


def test_an_onnx_model_of_odd_names(tmp_path: Path) -> None:
    """Inputs, each with a dim of its own name, which the sizes of a call keep apart; weights and tensors of such names too."""
    inputs = [f"{name}/../in" for name in ODD]
    weights = {
        name: np.full((3, 2), i + 1, np.float32) for i, name in enumerate(["w eight", "weight", "w#packed[1][0]", "__metadata__", "fold.0"])
    }
    nodes, outputs = [], []
    for i, name in enumerate(inputs):
        weight = list(weights)[i % len(weights)]
        nodes.append(helper.make_node("MatMul", [name, weight], [f"out\n{i}"], name='"quoted" name/é'))
        outputs.append(helper.make_tensor_value_info(f"out\n{i}", TensorProto.FLOAT, None))
    given_inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [d or None, 3]) for n, d in zip(inputs, ODD, strict=True)]
    graph = helper.make_graph(nodes, "odd", given_inputs, outputs, [numpy_helper.from_array(w, name) for name, w in weights.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "odd.onnx")
    compile_model(str(tmp_path / "odd.onnx"), options=OPTIONS).save(tmp_path / "odd.llmos")
    program = llmos.load(tmp_path / "odd.llmos")
    spec = program.manifest.entries[0]
    assert [each.name for each in spec.inputs] == inputs
    assert [each.name for each in spec.outputs] == [f"out\n{i}" for i in range(len(ODD))]
    assert len(program.manifest.symbols) == len(ODD)
    arrays = [np.random.default_rng(i).standard_normal((i + 1, 3)).astype(np.float32) for i in range(len(ODD))]
    for i, found in enumerate(program(**dict(zip(inputs, arrays, strict=True)))):
        np.testing.assert_allclose(found, arrays[i] @ weights[list(weights)[i % len(weights)]], rtol=1e-5)


class Names(torch.nn.Module):
    """Weights by names that the compiler gives to what it computes and packs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fold = torch.nn.ParameterList([torch.nn.Parameter(torch.randn(5, 20)) for _ in range(2)])
        for name in ("w eight", "weight", "__metadata__", "__padding__"):
            self.register_parameter(name, torch.nn.Parameter(torch.randn(5, 20)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        packed = x @ getattr(self, "w eight") - x @ self.weight
        folded = x @ self.fold[0] + x @ (self.fold[1] * 2).relu() + x @ (self.weight * 3).sin()
        return packed + folded * self.__metadata__[0]


def test_weights_by_names_that_the_compiler_uses_itself(tmp_path: Path) -> None:
    model, x = Names(), torch.randn(3, 5)
    compile_model(model, (x,), options=OPTIONS).save(tmp_path / "names.llmos")
    found = llmos.load(tmp_path / "names.llmos")(x.numpy())
    np.testing.assert_allclose(found, model(x).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_text_that_no_file_can_hold_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    artifact = compile_model(torch.nn.ReLU(), (torch.randn(2),), options=OPTIONS)
    entry = artifact.contents.entries[0]
    odd = type(entry)(entry.name, entry.symbol, entry.shapes, (type(entry.inputs[0])(name, "float32", (2,)),), entry.outputs)
    object.__setattr__(artifact.contents, "entries", (odd,))
    with pytest.raises(llmos.ArtifactError, match="is no text that an artifact can hold"):
        artifact.save(tmp_path / "odd.llmos")


@pytest.mark.parametrize("sizes", [(3, 0, 4), (0, 3, 4), (3, 4, 0), (0, 0, 4), (0, 0, 0)])
def test_products_over_sizes_of_0(tmp_path: Path, sizes: tuple[int, int, int]) -> None:
    m, k, n = sizes

    class Products(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.right = torch.nn.Parameter(torch.randn(k, n))
            self.linear = torch.nn.Parameter(torch.randn(n, k))
            self.kernel = torch.nn.Parameter(torch.randn(n, k, 1))

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return x @ y, x @ self.right, torch.nn.functional.linear(x, self.linear), (x @ self.right).relu() + 1, x[None] @ y[None]

    model = Products()
    given = torch.randn(m, k), torch.randn(k, n)
    for number, shapes in enumerate((None, ({0: torch.export.Dim.DYNAMIC}, None))):
        if shapes is not None and m < 2:
            continue  # torch takes a dim of 0 or 1 for a fixed one
        compile_model(model, given, dynamic_shapes=shapes, options=OPTIONS).save(tmp_path / f"{number}.llmos")
        for found, expected in zip(llmos.load(tmp_path / f"{number}.llmos")(*[g.numpy() for g in given]), model(*given), strict=True):
            np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-5)
