"""Weights rounded on data: better than to nearest in whole models, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import llmos
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.backends.planning import before_quantizing
from llmos.compiler.backends.registry import backend_of
from llmos.compiler.calibration import rounding
from llmos.compiler.calibration.statistics import Observation
from llmos.compiler.driver import Artifact
from llmos.compiler.frontend.torch import import_torch
from llmos.compiler.quant.scheme import parse_scheme
from llmos.compiler.support.progress import Progress
from llmos.passes.quant._candidates import weight_products_of
from llmos.runtime.artifact.reader import Artifact as Opened
from llmos.runtime.cli.command import run
from llmos.runtime.errors import UserError

WIDTH = 64


class Net(torch.nn.Module):
    """Products that share an activation, one whose weight is transposed, and one weight that two activations meet."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.shared = (torch.nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.down = torch.nn.Parameter(torch.randn(WIDTH, WIDTH) / 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.gelu(self.query(x)) * torch.sigmoid(self.key(x))
        return self.shared(torch.relu(self.shared(x @ self.down)))


def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def rows(count: int, seed: int) -> torch.Tensor:
    """Few directions, and channels of different sizes, as activations of trained models have them."""
    rng = np.random.default_rng(0)
    mix, sizes = rng.standard_normal((12, WIDTH)), np.exp(rng.standard_normal(WIDTH))
    rng = np.random.default_rng(seed)
    made = rng.standard_normal((count, 12)) @ mix + 0.2 * rng.standard_normal((count, WIDTH))
    return torch.from_numpy((made * sizes / 4).astype(np.float32))


def compiled(quant: str, calibrate: Any) -> Artifact:
    shapes = ({0: torch.export.Dim("batch", min=1, max=512)},)
    options = CompileOptions(target="native", repro=None, quant=quant, calibrate=calibrate, min_cosine=0.9)
    return llmos.compile(net(), (rows(8, 1),), dynamic_shapes=shapes, options=options)


def error(artifact: Artifact, path: Path, x: torch.Tensor) -> float:
    """1 - cosine of the outputs."""
    artifact.save(path)
    got, want = llmos.load(path)(x.numpy()).ravel().astype(np.float64), net()(x).detach().numpy().ravel().astype(np.float64)
    return float(1 - got @ want / np.linalg.norm(got) / np.linalg.norm(want))


def weight_bytes(path: Path) -> int:
    return sum(each.num_bytes for each in Opened.open(path).manifest.weights)


@pytest.mark.slow
def test_a_net_is_nearer_to_floats_than_by_rounding_to_nearest(tmp_path: Path) -> None:
    data, fresh, path = [(rows(64, seed),) for seed in range(4)], rows(300, 99), tmp_path / "m.llmos"
    nearest = error(compiled("w4a16:g32", None), path, fresh)
    size = weight_bytes(path)
    assert error(compiled("w4a16:g32:gptq", data), path, fresh) < 0.5 * nearest
    manifest = Opened.open(path).manifest
    assert manifest.metadata["quant"] == "w4a16:g32:gptq"
    assert weight_bytes(path) == size  # neither floats nor bytes stay behind
    assert error(compiled("w4a16:g32:awq", data), path, fresh) < 0.9 * nearest
    assert Opened.open(path).manifest.metadata["quant"] == "w4a16:g32:awq"
    assert error(compiled("w4a8:g32:gptq", data), path, fresh) < 0.5 * nearest
    assert Opened.open(path).manifest.metadata["quant"] == "w4a8:g32:gptq"


def test_weights_of_eight_bits_are_nearer_to_floats_too(tmp_path: Path) -> None:
    """Beside the same products by weights that are rounded to nearest; most of what is left is the rounding of activations."""
    data, fresh, path = [(rows(64, seed),) for seed in range(4)], rows(300, 99), tmp_path / "m.llmos"
    nearest = error(compiled("w8a8", data), path, fresh)
    size = weight_bytes(path)
    assert error(compiled("w8a8:gptq", data), path, fresh) < 0.8 * nearest
    assert Opened.open(path).manifest.metadata["quant"] == "w8a8:gptq"
    assert weight_bytes(path) == size


def fitted(scheme: str, calls: list[torch.Tensor]) -> rounding.Fitted:
    imported = import_torch(net(), (rows(8, 1),), ({0: torch.export.Dim("batch", min=1, max=512)},), name="m")
    options = CompileOptions(quant=scheme, repro=None)
    prepared, costs = before_quantizing(imported, options, backend_of(options)), backend_of(options).context(options).costs
    chosen = parse_scheme(scheme)
    observed = Observation.of(prepared, options, lambda entry: weight_products_of(entry, costs, chosen.group))
    return rounding.fitted_rounding(observed, [(x.numpy(),) for x in calls], chosen, Progress())


@pytest.mark.slow
def test_hessians_that_do_not_fit_take_further_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, runs = [rows(64, seed) for seed in range(2)], []
    original = Observation.run
    monkeypatch.setattr(Observation, "run", lambda *arguments: (runs.append(len(arguments[2])), original(*arguments)))
    whole = fitted("w4a16:g32:gptq", calls)
    monkeypatch.setattr(rounding, "HESSIAN_BYTES", 1)
    parts = fitted("w4a16:g32:gptq", calls)
    assert runs == [4, 1, 1, 2]  # collectors: of the input, what gelu gives, and both sides of the shared product
    assert [sorted(arrays) for arrays in whole.values()] == [[0, 1, 2, 3]] * 3
    for prefix, arrays in whole.items():
        for number, array in arrays.items():
            np.testing.assert_array_equal(array, parts[prefix][number])


@pytest.mark.parametrize(
    ("quant", "calibrate", "message"),
    [
        (
            "w4a16:g32:gptq",
            None,
            "--quant w4a16:g32:gptq rounds weights by what the model sees: give texts or arrays with --calibrate FILE",
        ),
        ("w4a16:g64:awq", None, "--quant w4a16:g64:awq rounds weights by what the model sees"),
        ("w8a8:gptq", None, "--quant w8a8:gptq rounds weights by what the model sees"),
        ("w4a16:g32:gptq", [(torch.zeros(4, 3),)], "has the shape [4, 3] where the model takes"),
        ("w4a16:g32:gptq", [], "calibrate is empty"),
        ("w4a16:g32:gptq", [(torch.full((4, WIDTH), 3e38),)], "calibration inputs make NaN or infinite values in front of"),
        ("w4a16:g32", [(torch.zeros(4, WIDTH),)], "takes no --calibrate; with data there are w4a16:g32:gptq and w4a16:g32:awq"),
        ("w4a8", [(torch.zeros(4, WIDTH),)], "--quant w4a8 rounds to nearest and takes no --calibrate"),
        ("w8a16", [(torch.zeros(4, WIDTH),)], "--quant w8a16 rounds to nearest and takes no --calibrate"),
    ],
)
def test_data_that_is_missing_or_does_not_fit_is_refused_in_a_line(quant: str, calibrate: Any, message: str) -> None:
    with pytest.raises(UserError) as raised:
        compiled(quant, calibrate)
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.slow
def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.export.save(torch.export.export(net(), (rows(8, 1),)), tmp_path / "m.pt2")
    np.save(tmp_path / "x.npy", np.stack([rows(8, seed).numpy() for seed in range(16)]))
    words = ["compile", str(tmp_path / "m.pt2"), "-o", str(tmp_path / "m.llmos"), "--target", "native", "--budget", "cosine>=0.9"]
    for scheme, phase in (("w4a16:g32:gptq", "GPTQ"), ("w4a16:g32:awq", "scale search")):
        assert run([*words, "--quant", scheme, "--calibrate", str(tmp_path / "x.npy")]) == 0
        progress = capsys.readouterr().err
        assert "calibration: " in progress and f"{phase}: " in progress
        assert run(["inspect", str(tmp_path / "m.llmos")]) == 0
        assert f"compiled with --quant {scheme}" in capsys.readouterr().out
    assert run([*words, "-q", "--quant", "w4a16:g32:gptq"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
