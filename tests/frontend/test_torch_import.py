"""The contract of the linalg stage: names, symbols, weights; what is left in the module; what is refused and how."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llmos.compiler.frontend.coverage import check as coverage
from llmos.compiler.frontend.torch import import_torch
from llmos.runtime.errors import InputError, UnsupportedError, UserError
from tests.frontend.harness import BATCH, TOKENS, X, arrays, check, dynamic_shapes, imported, module_of, op_names
from tests.frontend.resnet20 import ResNet20
from tests.reference import run


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 4)).eval()


def test_a_linear_layer_is_one_contraction_and_one_bias_add() -> None:
    model = check(nn.Linear(8, 4))
    counts = Counter(op_names(model))
    assert counts["linalg.generic"] == 2 and counts["tensor.dim"] == 2
    assert not any("shape" in name or "transpose" in name for name in counts)
    assert "(d0, d1, d2, d3) -> (d2, d3)" in str(model.module)  # the weight is read as it is stored


def test_attention_needs_no_copies_and_the_mask_is_never_broadcast() -> None:
    def attend(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q = x.view(x.shape[0], x.shape[1], 2, 4).transpose(1, 2)
        seen = mask[:, None, None, :].expand(-1, -1, mask.shape[1], -1)
        return F.scaled_dot_product_attention(q, q, q, attn_mask=seen).transpose(1, 2).flatten(2)

    model = check(attend, (X[0], ("bool", "B", "T")))
    # two products, scale, mask, max, exp, sum, quotient
    assert Counter(op_names(model))["linalg.generic"] == 8


def test_sizes_come_from_arguments_only() -> None:
    model = imported(lambda x: F.pad(x.reshape(-1, 4), (0, 0, 1, 0)).reshape(-1).cumsum(0))
    assert all("tensor.dim %arg" in line for line in str(model.module).splitlines() if "tensor.dim" in line)


def test_names_symbols_and_ranges() -> None:
    x = torch.randn(3, 5, 8)
    model = import_torch(mlp(), (x,), ({0: BATCH, 1: TOKENS},), input_names=["x"], output_names=["y"], name="mlp")
    text = str(model.module)
    assert "llmos.symbols = {batch = array<i64: 1, 64>, tokens = array<i64: 1, 128>}" in text
    assert 'llmos.name = "x", llmos.shape = ["batch", "tokens", 8]' in text
    assert 'llmos.dtype = "float32", llmos.name = "y"' in text
    assert list(model.weights) == ["0.weight", "0.bias", "2.weight", "2.bias", "3.weight", "3.bias"]
    assert model.weights["3.weight"].array.shape == (4, 16)
    np.testing.assert_array_equal(model.examples[0][0], x.numpy())
    with pytest.raises(InputError, match="input_names has 2 names"):
        import_torch(mlp(), (x,), input_names=["x", "z"])


def test_unnamed_dimensions_are_numbered() -> None:
    auto = torch.export.Dim.AUTO
    model = import_torch(mlp(), (torch.randn(3, 5, 8),), ({0: auto, 1: auto},))
    assert 'llmos.shape = ["s0", "s1", 8]' in str(model.module)


def test_weights_are_shared_when_tied_and_dropped_when_unused() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.unused = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.second.weight = self.first.weight
            self.register_buffer("scale", torch.tensor([2.0]), persistent=False)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x)) * self.scale * torch.tensor([3.0, 1.0] * 4)

    model = check(Tied(), (X[0], X[0]))
    assert sum(name.endswith("weight") for name in model.weights) == 1
    assert "scale" in model.weights and not any("unused" in name for name in model.weights)
    assert 'llmos.name = "y"' in str(model.module)  # an input stays, used or not


def test_exported_programs_and_files(tmp_path: Path) -> None:
    program = torch.export.export(mlp(), tuple(torch.from_numpy(a) for a in arrays(X, 3, 7)), dynamic_shapes=dynamic_shapes(X))
    path = tmp_path / "mlp.pt2"
    torch.export.save(program, path)
    inputs = arrays(X, 2, 4)
    want = mlp()(torch.from_numpy(inputs[0])).detach().numpy()
    for source in (program, path, str(path)):
        np.testing.assert_allclose(run(import_torch(source), inputs)[0], want, atol=1e-6)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"not a readable \.pt2"):
        import_torch(path)


def test_resnet20() -> None:
    torch.manual_seed(0)
    model = check(ResNet20(blocks=1), (("B", 3, 32, 32),), sizes=((2, 1), (1, 1)))
    assert not any("func.call" in name for name in op_names(model))


def test_what_depends_on_data_is_refused_with_its_line() -> None:
    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x.sum().item()

    with pytest.raises(UnsupportedError, match=r"aten._local_scalar_dense.default: .*test_torch_import.py:\d+: .*item"):
        imported(Scaled())
    with pytest.raises(UnsupportedError, match=r"model\.eval\(\)"):
        import_torch(nn.Dropout(0.5).train(), (torch.randn(3, 4),))


def test_coverage_lists_every_unsupported_op_at_once() -> None:
    def forward(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = torch.bernoulli(x)
        noise = torch.randn_like(x)
        return found.float() + 1, noise, x.diagonal(0, 1, 2), x @ x.mT

    rows = coverage(module_of(forward), (torch.randn(3, 7, 8),), dynamic_shapes(X))
    bad = [row for row in rows if not row.supported]
    assert [row.op for row in bad] == ["aten.bernoulli.default", "aten.randn_like.default"]
    assert all("test_torch_import.py" in row.where for row in bad)
    ways = {row.op: row.how for row in rows if row.supported}
    assert ways["aten.diagonal.default"] == "torch-mlir" and ways["aten.matmul.default"] == "linalg"


def test_coverage_of_a_supported_model_has_no_bad_row() -> None:
    assert all(row.supported for row in coverage(mlp(), (torch.randn(3, 7, 8),), dynamic_shapes(X)))


def test_weights_and_examples_that_are_negated_when_read() -> None:
    class Negated(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            values = torch.view_as_complex(torch.arange(8, dtype=torch.float32).reshape(4, 2))
            self.register_buffer("plain", values.imag)
            self.register_buffer("negated", values.conj().imag)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.negated + self.plain

    model = Negated()
    x = torch.view_as_complex(torch.randn(4, 2)).conj().imag
    made = import_torch(model, (x,))
    np.testing.assert_array_equal(made.examples[0][0], x.resolve_neg().numpy())
    weights = {name: weight.load() for name, weight in made.weights.items()}
    np.testing.assert_array_equal(weights["negated"], -weights["plain"])
    assert weights["plain"].tolist() == [1, 3, 5, 7]
