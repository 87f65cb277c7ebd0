"""Fitting to data: statistics beside torch's hooks, what smoothing and the plan of `auto` gain, and plans that are refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import llmos
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.backends.planning import before_quantizing
from llmos.compiler.backends.registry import backend_of
from llmos.compiler.calibration import fit as fitting
from llmos.compiler.calibration.advisor import require_faster, speedup
from llmos.compiler.calibration.statistics import MAX_ROWS, Observation, activation_statistics
from llmos.compiler.driver import Artifact
from llmos.compiler.frontend.torch import import_torch
from llmos.compiler.ir.functions import EntryFunc
from llmos.compiler.support.progress import Progress
from llmos.passes.quant._candidates import products_of
from llmos.runtime.artifact.deviation import Tolerance
from llmos.runtime.artifact.reader import Artifact as Opened
from llmos.runtime.cli.command import run
from llmos.runtime.errors import UnsupportedError, UserError

WIDTH = 64


class Layer(torch.nn.Module):
    """Half of a transformer's layer, with a product whose weight is transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, WIDTH)
        self.up, self.down = torch.nn.Linear(WIDTH, 2 * WIDTH), torch.nn.Parameter(torch.randn(2 * WIDTH, WIDTH) / 10)
        self.norm = torch.nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.query(x) * torch.sigmoid(self.key(x)) + x)
        return torch.nn.functional.gelu(self.up(x)) @ self.down


class Cancelling(torch.nn.Module):
    """The second product takes a small difference of large numbers: no scale and no smoothing of its left side helps it in 8 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.third = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, WIDTH)
        half = torch.randn(WIDTH, WIDTH) / 8
        self.second = torch.nn.Parameter(torch.cat([half, -half], 1))

    def forward(self, x: torch.Tensor, large: torch.Tensor) -> torch.Tensor:
        small = self.first(x)
        return self.third(torch.nn.functional.linear(torch.cat([large + small, large - small], -1), self.second))


def outliers(rows: int) -> torch.Tensor:
    """Rows in which a few channels are much larger than the others."""
    x = torch.randn(rows, WIDTH)
    x[:, [3, 17, 40]] *= 60
    return x


def compiled(module: torch.nn.Module, inputs: Sequence[torch.Tensor], **options: Any) -> Artifact:
    batch = torch.export.Dim("batch", min=1, max=512)
    chosen = CompileOptions(target="native", repro=None, accuracy_report=False, **options)
    return llmos.compile(module.eval(), tuple(inputs), dynamic_shapes=tuple({0: batch} for _ in inputs), options=chosen)


def error(artifact: Artifact, path: Path, module: torch.nn.Module, x: torch.Tensor) -> float:
    """1 - cosine of the output."""
    artifact.save(path)
    got, want = llmos.load(path)(x.numpy()).ravel().astype(np.float64), module(x).detach().numpy().ravel().astype(np.float64)
    return float(1 - got @ want / np.linalg.norm(got) / np.linalg.norm(want))


def test_statistics_are_those_of_hooks() -> None:
    torch.manual_seed(0)
    module, seen = Layer().eval(), dict[str, list[torch.Tensor]]()
    for name in ("query", "up"):
        hook = lambda _, args, name=name: seen.setdefault(name, []).append(args[0].reshape(-1, WIDTH))  # noqa: E731
        getattr(module, name).register_forward_pre_hook(hook)
    calls = [torch.randn(batch, 5, WIDTH) for batch in (2, 3, 200)]
    imported = import_torch(module, (calls[0],), ({0: torch.export.Dim("batch", min=1, max=512)},), name="m")
    seen.clear()
    for x in calls:
        module(x)
    options = CompileOptions(quant="w8a8:smooth", repro=None)
    prepared = before_quantizing(imported, options, backend_of(options))
    arrays = [(x.numpy(),) for x in calls]
    steps: list[tuple[int, int]] = []
    costs = backend_of(options).context(options).costs
    observed = Observation.of(prepared, options, partial(products_of, costs=costs))
    found = activation_statistics(observed, arrays, lambda *step: steps.append(step))
    assert steps == [(1, 3), (2, 3), (3, 3)] and sorted(found) == [0, 1, 2]
    for number, name in enumerate(("query", "up")):
        want = torch.cat(seen[name]).detach().numpy()
        np.testing.assert_allclose(found[number].largest, np.abs(want).max(0), rtol=1e-4)
        assert len(found[number].rows) == MAX_ROWS
        nearest = np.abs(want[None, :, :8] - found[number].rows[::50, None, :8]).max(2).min(1)
        assert nearest.max() < 1e-4  # each is a row of the activation
    np.testing.assert_array_equal(found[0].weights[1], module.key.weight.detach().numpy())
    np.testing.assert_array_equal(found[2].weights[3], module.down.detach().numpy().T)


def test_smoothing_lowers_the_error_of_outlier_channels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(WIDTH, 128), torch.nn.ReLU(), torch.nn.Linear(128, 40)).eval()
    with torch.no_grad():
        module[0].weight[:, [3, 17, 40]] /= 60
    data, fresh = [(outliers(64),) for _ in range(4)], outliers(200)
    plain = error(compiled(module, data[0], quant="w8a8", min_cosine=0.9), tmp_path / "p.llmos", module, fresh)
    smooth = error(compiled(module, data[0], quant="w8a8", min_cosine=0.9, calibrate=data), tmp_path / "s.llmos", module, fresh)
    assert smooth < plain / 10
    manifest = Opened.open(tmp_path / "s.llmos").manifest
    assert manifest.metadata["quant"] == "w8a8:smooth"
    assert not [weight.name for weight in manifest.weights if weight.name.startswith("quant.smooth")]  # folded


def test_an_earlier_fit_is_replaced_and_smoothing_adds_no_corrections() -> None:
    torch.manual_seed(0)
    imported = import_torch(Layer().eval(), (outliers(8),), None, name="m")
    names = []
    for scheme in ("w8a8:smooth", "w8a8:smooth"):
        imported, _ = fitting.fit(imported, CompileOptions(quant=scheme, repro=None), Progress())
        names.append([each.name for each in EntryFunc.of(imported.module).arguments if each.name.startswith("quant.")])
    assert names[0] == names[1] and "quant.smooth.0" in names[0] and not [each for each in names[0] if "correct" in each]
    assert not [each for each in names[0] if "numbers" in each]


def test_smoothing_by_the_examples_of_the_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Layer().eval()
    x = torch.randn(4, WIDTH)
    assert error(compiled(module, (x,), quant="w8a8:smooth"), tmp_path / "m.llmos", module, torch.randn(9, WIDTH)) < 1e-3


def test_auto_keeps_the_product_that_must_stay_in_float(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fitting, "speedup", lambda *_: 1.5)
    torch.manual_seed(0)
    module = Cancelling().eval()
    data = [(torch.randn(16, WIDTH), 200 * torch.rand(16, WIDTH)) for _ in range(6)]
    artifact = compiled(module, data[0], quant="auto", min_cosine=0.999, calibrate=data)
    artifact.save(tmp_path / "m.llmos")
    plan = Opened.open(tmp_path / "m.llmos").manifest.metadata["quant_plan"]
    assert [(each["label"], each["kept"]) for each in plan["products"]] == [
        ("first.weight", False),
        ("second", True),
        ("third.weight", False),
    ]
    assert plan["products"][1]["error"] > 1e-3 > max(plan["products"][0]["error"], plan["products"][2]["error"])
    x, large = torch.randn(50, WIDTH), 200 * torch.rand(50, WIDTH)
    got, want = llmos.load(tmp_path / "m.llmos")(x.numpy(), large.numpy()), module(x, large).detach().numpy()
    assert np.sum(got * want) / np.linalg.norm(got) / np.linalg.norm(want) >= 0.999
    assert run(["inspect", str(tmp_path / "m.llmos")]) == 0
    shown = capsys.readouterr().out
    assert "1 of 3 products stay in float" in shown and "budget cosine>=0.999; 1.50 times as fast as float" in shown
    (line,) = [line for line in shown.splitlines() if line.split()[:2] == ["1", "second"]]
    assert line.split()[2] == "float"
    json.dumps(plan)


def test_a_plan_that_is_slower_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "speedup", lambda *_: 0.97)
    torch.manual_seed(0)
    message = "within cosine>=0.99 0 of 4 products stay in float, and the plan has 0.97 times the speed of float"
    with pytest.raises(UserError, match=message):
        compiled(Layer(), (torch.randn(4, WIDTH),), quant="auto")


def test_a_budget_that_no_product_meets_is_refused() -> None:
    torch.manual_seed(0)
    with pytest.raises(UserError, match="no product can be quantized within an error of 1e-09"):
        compiled(Layer(), (torch.randn(4, WIDTH),), quant="auto", budget=1e-9)


def test_speed_is_compared_on_the_largest_calls() -> None:
    class Timed:
        def __init__(self, factor: float) -> None:
            self.factor = factor

        def seconds(self, call: Sequence[np.ndarray]) -> float:
            return self.factor * call[0].size

    calls = [(np.zeros(size),) for size in (3, 1, 2)]
    assert speedup(Timed(3.0), Timed(1.0), calls) == 3.0  # type: ignore[arg-type]
    require_faster(1.01, 0, 1, Tolerance(1e-3))
    with pytest.raises(UserError, match="within an error of 1e-06 0 of 1"):
        require_faster(1.0, 0, 1, Tolerance(1e-6))


def test_what_makes_infinite_activations_is_refused() -> None:
    torch.manual_seed(0)
    with pytest.raises(UserError, match="calibration inputs make NaN or infinite values in front of"):
        compiled(Layer(), (torch.randn(4, WIDTH),), quant="w8a8", calibrate=[(torch.full((4, WIDTH), 3e38),)])


def test_a_model_without_products_is_refused() -> None:
    with pytest.raises(UserError, match="no product of activations and weights that is large enough"):
        compiled(torch.nn.Linear(8, 8), (torch.randn(4, 8),), quant="auto")


def test_models_with_state_are_refused() -> None:
    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count += 1
            return x * self.count

    with pytest.raises(UnsupportedError, match="models with state aren't calibrated yet"):
        compiled(Counting(), (torch.randn(4, 8),), quant="w8a8:smooth")


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, WIDTH)
    torch.export.save(torch.export.export(Layer().eval(), (x,)), tmp_path / "m.pt2")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((6, 4, WIDTH), np.float32))
    np.save(tmp_path / "y.npy", np.zeros((4, 3), np.float32))
    words = ["compile", str(tmp_path / "m.pt2"), "-o", str(tmp_path / "m.llmos"), "--target", "native", "--quant", "w8a8"]
    assert run([*words, "--calibrate", str(tmp_path / "x.npy")]) == 0
    progress = capsys.readouterr().err
    assert "calibration: " in progress and "smoothing: " in progress
    assert run(["inspect", str(tmp_path / "m.llmos")]) == 0
    assert "compiled with --quant w8a8:smooth" in capsys.readouterr().out
    assert run([*words, "-q", "--calibrate", str(tmp_path / "y.npy")]) == 2
    error = capsys.readouterr().err.strip()
    assert error.endswith(f"[4, 3] where the model takes [4, {WIDTH}]") and "\n" not in error
    bisect = ["bisect", str(tmp_path / "m.pt2"), "--quant", "w8a8", "--calibrate", str(tmp_path / "x.npy"), "--quiet"]
    assert run([*bisect, "--budget", "cosine>=0.99"]) == 0


def test_several_entries_are_refused() -> None:
    x = torch.randn(4, 64)
    with pytest.raises(UserError, match="calibration is of one entry"):
        llmos.compile({"a": torch.nn.Linear(64, 64)}, {"a": (x,)}, quant="auto")
