"""`llmos bench`: its arithmetic, its made-up inputs, and a whole run on a small model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.bench import peak
from llmos.compiler.bench.inputs import make_inputs, parse_shape
from llmos.compiler.bench.measure import Measurement
from llmos.compiler.bench.peak import MOST, Limits, measure_limits, settled
from llmos.compiler.bench.profile import profile_call, profile_lines
from llmos.compiler.bench.work import arithmetic_s, evaluate, total_flops
from llmos.compiler.driver import compile as compile_model
from llmos.runtime.artifact.manifest import EntrySpec, KernelSpec, Manifest, Symbol, TensorSpec
from llmos.runtime.cli.command import run
from llmos.runtime.errors import ArtifactError, InputError

MANIFEST = Manifest(
    "m",
    entries=(
        EntrySpec(
            "main",
            "__tvm_ffi_main",
            "__llmos_shapes_main",
            (
                TensorSpec("input_ids", "int64", ("batch", "tokens")),
                TensorSpec("attention_mask", "int64", ("batch", "tokens")),
                TensorSpec("pixels", "float32", ("batch", "2*tokens + 1")),
            ),
            (),
        ),
    ),
    symbols=(Symbol("batch", 1, 64), Symbol("tokens", 2, 100)),
    kernels=(KernelSpec("k0", "contraction", {"flops": "2*batch*tokens*384"}), KernelSpec("k1", "gather")),
)


@pytest.mark.parametrize(
    ("expression", "value"),
    [("7", 7), ("2*batch*tokens", 60), ("(tokens + 1)//2", 5), ("min(tokens, 4)", 4), ("floor(tokens/4)", 2), ("-batch + tokens**2", 97)],
)
def test_sizes_are_arithmetic_of_the_symbols(expression: str, value: float) -> None:
    assert evaluate(expression, {"batch": 3, "tokens": 10}) == value


@pytest.mark.parametrize("expression", ["__import__('os')", "batch.real", "unknown", "9**9**9", "[1]", "1/0", "print(1)", "'a'*9"])
def test_anything_else_is_refused_and_never_run(expression: str) -> None:
    with pytest.raises(ArtifactError, match="is no size"):
        evaluate(expression, {"batch": 3})


def test_operations_on_bytes_and_halves_have_a_peak_of_their_own() -> None:
    kernels = (KernelSpec("k0", "contraction", {"flops": "1000*tokens", "arithmetic": "int8"}), KernelSpec("k1", "x", {"flops": "30"}))
    manifest = replace(MANIFEST, kernels=kernels)
    assert arithmetic_s(manifest, {"tokens": 5}, Limits(10.0, 1.0, 100.0)) == 53.0
    assert arithmetic_s(manifest, {"tokens": 5}, Limits(10.0, 1.0)) == 503.0  # no peak of bytes is known
    halves = (KernelSpec("k0", "attention", {"flops": "1000*tokens", "arithmetic": "bf16"}),)
    assert arithmetic_s(replace(MANIFEST, kernels=halves), {"tokens": 5}, Limits(10.0, 1.0, 100.0, 20.0)) == 250.0
    assert arithmetic_s(replace(MANIFEST, kernels=()), {}, Limits(1.0, 1.0)) is None


def test_flops_are_summed_where_kernels_declare_them() -> None:
    assert total_flops(MANIFEST, {"batch": 2, "tokens": 3}) == 2 * 2 * 3 * 384


def test_sizes_that_are_not_given_are_usual_ones_within_the_range() -> None:
    assert parse_shape("", MANIFEST) == {"batch": 1, "tokens": 100}
    assert parse_shape("tokens=7,batch=2", MANIFEST) == {"batch": 2, "tokens": 7}


@pytest.mark.parametrize(
    ("text", "message"), [("rows=1", "no dimension is called 'rows'"), ("tokens=101", "from 2 to 100"), ("batch=x", "from 1")]
)
def test_bad_sizes(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_shape(text, MANIFEST)


def test_made_up_inputs_have_the_declared_shapes_and_are_the_same_each_time(tmp_path: Path) -> None:
    sizes = {"batch": 2, "tokens": 3}
    ids, mask, pixels = make_inputs(MANIFEST.entries[0], sizes, {})
    assert ids.shape == (2, 3) and ids.dtype == np.int64 and ids.min() >= 0
    assert (mask == 1).all()
    assert pixels.shape == (2, 7) and pixels.dtype == np.float32
    np.testing.assert_array_equal(make_inputs(MANIFEST.entries[0], sizes, {})[2], pixels)
    np.save(tmp_path / "pixels.npy", np.zeros((2, 7), np.float32))
    assert (make_inputs(MANIFEST.entries[0], sizes, {"pixels": tmp_path / "pixels.npy"})[2] == 0).all()


def test_errors_are_the_largest_difference_or_none_for_other_shapes() -> None:
    one = Measurement("a", (1.0,), [np.array([1.0, 2.0])])
    assert one.error_against([np.array([1.0, 2.5])]) == 0.5
    assert one.error_against([np.zeros(3)]) is None


def test_the_peak_is_measured_until_it_is_stable() -> None:
    """A machine that is busy at first, and then is not."""
    rates = iter([1.0, 1.4, 1.2, 3.0, 2.0, 3.01, 2.9, 9.0])
    assert settled(lambda: Limits(next(rates), 1.0)) == Limits(3.01, 1.0)
    growing = iter(range(1, 100))
    assert settled(lambda: Limits(1.0, float(next(growing)))) == Limits(1.0, float(MOST))


def test_the_peak_is_that_of_a_processor_of_this_century(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "MOST", 1)
    limits = measure_limits(1)
    assert 1e9 < limits.flops_per_s < 1e13
    assert 1e8 < limits.bytes_per_s < 1e12
    assert limits.int8_ops_per_s == 0 or limits.flops_per_s < limits.int8_ops_per_s < 1e14


class Layers(torch.nn.Module):
    """Enough arithmetic that what lies between dispatches is little beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(*[torch.nn.Linear(768, 768) for _ in range(4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.layers(x), -1)


def test_the_times_of_dispatches_sum_to_that_of_the_call(tmp_path: Path) -> None:
    artifact = tmp_path / "layers.llmos"
    shapes = ({0: torch.export.Dim("rows", min=1, max=1024)},)
    options = CompileOptions(target="native")
    compile_model(Layers().eval(), (torch.randn(3, 768),), dynamic_shapes=shapes, options=options).save(artifact)
    x = np.random.default_rng(0).standard_normal((512, 768), np.float32)
    limits = Limits(flops_per_s=1e12, bytes_per_s=1e10)
    profile = profile_call(artifact, [x], {"rows": 512}, num_threads=1, num_runs=20, limits=limits)
    assert [cost.kind for cost in profile.dispatches] == ["contraction"] * 4 + ["row_reduction"]
    assert 0.95 < profile.sum_s / profile.total_s <= 1.0
    first = profile.dispatches[0]
    assert first.flops == 2 * 512 * 768 * 768
    assert first.limit_s == pytest.approx(max(first.flops / 1e12, first.num_bytes / 1e10))
    assert profile.record()["dispatches"][0]["of_limit"] == pytest.approx(first.limit_s / first.seconds)
    text = "\n".join(profile_lines(profile))
    assert "matmul+bias" in text and "softmax" in text and "of a call" in text


@pytest.mark.slow
def test_a_small_model_against_torch_onnxruntime_and_tvm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tvm", reason="TVM is not installed: pip install 'llmos[tvm]'")
    monkeypatch.setenv("LLMOS_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "linear.pt2"
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.export.save(torch.export.export(torch.nn.Linear(64, 32).eval(), (torch.randn(3, 64),), dynamic_shapes=({0: batch},)), source)
    arguments = [
        "bench",
        str(source),
        "--against",
        "eager,onnxruntime,tvm",
        "--input-shape",
        "s0=5",
        "--threads",
        "1",
        "--runs",
        "20",
        "--json",
    ]
    assert run(arguments) == 0
    measured = {record["engine"]: record for record in json.loads(capsys.readouterr().out)["measurements"]}
    assert list(measured) == ["llmos", "eager", "onnxruntime", "tvm"]
    assert all(record["num_runs"] >= 20 and 0 < record["median_s"] <= record["p95_s"] <= record["p99_s"] for record in measured.values())
    assert all(measured[engine]["max_error"] < 1e-4 for engine in ("llmos", "onnxruntime", "tvm"))
    assert measured["llmos"]["flops_per_s"] == pytest.approx(2 * 5 * 64 * 32 / measured["llmos"]["median_s"])
