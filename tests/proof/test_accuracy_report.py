"""Accuracy reports: what a compile records, when it fails, and what `llmos verify` says later."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import llmos
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.driver import Artifact, ModelWarning
from llmos.compiler.driver import compile as compile_model
from llmos.compiler.frontend.torch import import_torch
from llmos.compiler.verify.samples import _one_value
from llmos.runtime.artifact.accuracy import ACCURACY_MEMBER, AccuracyReport, accuracy_report_of
from llmos.runtime.artifact.deviation import Deviation, Tolerance, measure
from llmos.runtime.artifact.fields import Fields
from llmos.runtime.artifact.recorded import RandomInput
from llmos.runtime.cli.command import run
from llmos.runtime.errors import ToleranceError
from tests.proof.miscompiles import InPass, swap_operands

TABLE = 50


class Tagger(torch.nn.Module):
    """Ids and a mask to logits [batch, tokens, 4]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(TABLE, 16)
        self.norm = torch.nn.LayerNorm(16)
        self.head = torch.nn.Linear(16, 4)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.norm(self.table(ids)) * mask[..., None]
        return {"logits": self.head(hidden - hidden.mean(1, keepdim=True))}


def options(**changes: Any) -> CompileOptions:
    return CompileOptions(**{"target": "native", "cache": False, "repro": None, **changes})


def tagger(**changes: Any) -> Artifact:
    shape = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("tokens", max=128)}
    ids = torch.tensor([[1, TABLE - 1, 3, 4, 5, 6]] * 3)
    return compile_model(
        Tagger().eval(), (ids, torch.ones(3, 6, dtype=torch.int64)), dynamic_shapes=(shape, dict(shape)), options=options(**changes)
    )


def parsed(artifact: Artifact) -> AccuracyReport:
    return AccuracyReport.parse(artifact.contents.extras[ACCURACY_MEMBER])


def test_a_report_covers_other_sizes_with_inputs_that_the_model_takes() -> None:
    accuracy_report = parsed(tagger())
    assert accuracy_report.reference == "torch eager" and accuracy_report.budget == Tolerance(1e-4)
    sizes = [dict(case.sizes) for case in accuracy_report.cases]
    assert sizes[0] == {"batch": 3, "tokens": 6} and len(sizes) == 3
    assert all(each["batch"] not in (1, 3) and each["tokens"] not in (1, 6) for each in sizes[1:])
    for case in accuracy_report.cases[1:]:
        ids, mask = (each.load() for each in case.inputs)
        assert ids.min() >= 1 and ids.max() < TABLE and len(np.unique(ids)) > 2
        assert mask[-1, -1] == 0 and mask[0].all()
    [verdict] = accuracy_report.targets
    assert verdict.verdict == "passed" and all(each.deviation.max_error < 1e-5 for each in verdict.findings)
    assert all(each.deviation.top1 == 1.0 and each.deviation.kl < 1e-9 for each in verdict.findings)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tagger().save(tmp_path / f"{name}.llmos")
    assert (tmp_path / "a.llmos").read_bytes() == (tmp_path / "b.llmos").read_bytes()


def test_a_report_is_read_back_as_it_was_written() -> None:
    accuracy_report = parsed(tagger())
    assert AccuracyReport.parse(accuracy_report.to_json()) == accuracy_report


def test_a_miscompile_fails_the_compile_and_a_budget_lets_it_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    InPass("label-dispatches", swap_operands("arith.subf")).plant(monkeypatch)
    with pytest.raises(
        ToleranceError, match=r"output 'logits' .* is off by .* over the budget of 0.0001.*against torch eager.*llmos bisect"
    ):
        tagger()
    assert parsed(tagger(budget=1e6)).worst().deviation.max_error > 1e-2  # type: ignore[union-attr]
    assert ACCURACY_MEMBER not in tagger(accuracy_report=False).contents.extras


def test_verify_runs_the_stored_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tagger.llmos"
    artifact = tagger()
    artifact.save(path)
    assert run(["verify", str(path), "--poison"]) == 0
    assert "3 outputs within budget" in capsys.readouterr().out
    assert run(["verify", str(path), "--json", "--budget", "0"]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert [each["case"] for each in findings] == [0, 1, 2] and not all(each["passed"] for each in findings)
    assert run(["inspect", str(path)]) == 0
    assert "of 0.0001 against torch eager, 3 cases" in capsys.readouterr().out


def test_verify_sees_numbers_that_differ_from_the_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = tagger()
    accuracy_report = parsed(artifact)
    [output] = accuracy_report.cases[1].outputs
    changed = output.sample.load().copy()
    changed[0, 0] += 0.01
    wrong = replace(output, sample=output.sample.of("logits", "float32", changed))
    cases = (accuracy_report.cases[0], replace(accuracy_report.cases[1], outputs=(wrong,)), accuracy_report.cases[2])
    contents = replace(artifact.contents, extras={ACCURACY_MEMBER: replace(accuracy_report, cases=cases).to_json()})
    Artifact(contents).save(tmp_path / "wrong.llmos")
    assert run(["verify", str(tmp_path / "wrong.llmos")]) == 1
    out = capsys.readouterr().out
    assert out.count("OVER BUDGET") == 1 and "1 of 3 outputs over budget" in out


def test_an_artifact_without_a_report_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tagger(accuracy_report=False).save(tmp_path / "none.llmos")
    assert run(["verify", str(tmp_path / "none.llmos")]) == 2
    assert "holds no accuracy report" in capsys.readouterr().err


def test_large_inputs_are_kept_as_recipes(tmp_path: Path) -> None:
    pool = torch.nn.AvgPool2d(4).eval()
    artifact = compile_model(pool, (torch.rand(2, 3, 224, 224),), options=options())
    [case] = parsed(artifact).cases
    assert case.inputs[0].random_input is not None and case.inputs[0].random_input.low >= 0 and case.inputs[0].random_input.high <= 1
    assert case.outputs[0].sample.shape[0] * case.outputs[0].sample.shape[1] <= 8192
    assert len(artifact.contents.extras[ACCURACY_MEMBER]) < 1 << 16
    artifact.save(tmp_path / "pool.llmos")
    assert run(["verify", str(tmp_path / "pool.llmos")]) == 0


class WritesRows(torch.nn.Module):
    """Rows to slots of a cache: what lies in a slot that two rows write is not defined."""

    def forward(self, cache: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return cache.index_copy(0, slots, rows).sum(0, keepdim=True) + rows


@pytest.mark.parametrize(
    ("dtype", "values", "is_made"),
    [
        ("float32", [0.0, 0.0], True),
        ("float32", [-0.0, -0.0], False),
        ("float32", [0.0, -0.0], False),
        ("float32", [0.1, 0.1], True),
        ("float32", [np.nan, np.nan], False),
        ("float32", [np.inf, np.inf], False),
        ("float16", [0.1, 0.1], True),
        ("int64", [-7, -7], True),
        ("int64", [2**60, 2**60], False),
        ("uint8", [255, 255], True),
        ("bool", [True, True], True),
        ("int8", [1, 2], False),
        ("float64", [], False),
    ],
)
def test_an_input_of_one_value_is_made_again_bit_for_bit_or_stored(dtype: str, values: list[Any], is_made: bool) -> None:
    array = np.array(values, dtype)
    found = _one_value(array, dtype)
    assert (found is not None) == is_made
    assert found is None or found.make(dtype, array.shape).tobytes() == array.tobytes()


@pytest.mark.parametrize("value", [0.0, 1.5])
def test_examples_with_a_large_input_of_one_value_are_recorded(value: float) -> None:
    """As a language model's: made-up slots would meet one another, and only the examples' own don't."""
    numbers = torch.export.Dim("rows", max=1024)
    examples = [(torch.full((1024, 128), value), torch.randperm(1024)[:size], torch.randn(size, 128)) for size in (300, 40, 90)]
    imported = import_torch(WritesRows(), examples[0], [None, {0: numbers}, {0: numbers}], name="writes")
    imported = replace(imported, examples=tuple(tuple(each.numpy() for each in example) for example in examples))
    cases = parsed(compile_model(imported, options=options())).cases
    assert [case.inputs[1].shape for case in cases] == [(300,), (40,), (90,)]
    for case, example in zip(cases, imported.examples, strict=True):
        assert all(np.array_equal(each.load(), wanted) for each, wanted in zip(case.inputs, example, strict=True))
        assert case.inputs[0].random_input is not None and case.inputs[1].random_input is None


def test_mlir_text_is_its_own_reference(tmp_path: Path) -> None:
    text = """
    func.func @main(%x: tensor<?x8xf32>, %y: tensor<?x8xf32>) -> tensor<?x8xf32> {
      %z = arith.subf %x, %y : tensor<?x8xf32>
      return %z : tensor<?x8xf32>
    }
    """
    (tmp_path / "sub.mlir").write_text(text)
    accuracy_report = parsed(compile_model(tmp_path / "sub.mlir", options=options()))
    assert accuracy_report.reference == "MLIR's reference lowering"
    assert accuracy_report.worst().deviation.max_error == 0.0  # type: ignore[union-attr]


def test_a_reference_that_runs_on_nothing_leaves_an_empty_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Picky(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not torch.compiler.is_compiling():
                raise RuntimeError("never eager")
            return x + 1

    with pytest.warns(ModelWarning, match="never eager"):
        artifact = compile_model(Picky(), (torch.ones(3),), options=options())
    assert parsed(artifact).cases == ()
    artifact.save(tmp_path / "picky.llmos")
    assert run(["verify", str(tmp_path / "picky.llmos")]) == 2
    assert "never eager" in capsys.readouterr().err


def test_bfloat16_gets_a_wider_budget() -> None:
    accuracy_report = parsed(tagger(precision="bf16"))
    assert accuracy_report.budget.max_error == 2e-2
    assert 0 < accuracy_report.worst().deviation.max_error < 2e-2  # type: ignore[union-attr]


def test_the_report_is_found_in_an_artifact(tmp_path: Path) -> None:
    artifact = tagger()
    artifact.save(tmp_path / "tagger.llmos")
    assert accuracy_report_of(llmos.Artifact.open(tmp_path / "tagger.llmos")) == parsed(artifact)


@pytest.mark.parametrize(
    ("got", "want", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([np.nan, 2.0], [np.nan, 2.0], 0.0),
        ([np.nan, 2.0], [1.0, 2.0], np.inf),
        ([1.0, 2.0], [np.inf, 2.0], np.inf),
        ([-np.inf, 2.0], [-np.inf, 2.0], 0.0),
        ([-np.inf, 2.0], [np.inf, 2.0], np.inf),
        ([0.0], [0.0], 0.0),
        ([1e-7], [0.0], 1e-4),
    ],
)
def test_errors_are_relative_to_the_output(got: list[float], want: list[float], expected: float) -> None:
    assert measure(np.array(got, np.float32), np.array(want, np.float32), "float32").max_error == pytest.approx(expected)


NUMBERS = st.lists(st.tuples(*[st.floats(width=32) | st.sampled_from([np.nan, np.inf, -np.inf, 3e38])] * 2), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(NUMBERS, st.booleans())
def test_figures_of_any_numbers_are_json_and_come_back(pairs: list[tuple[float, float]], logits: bool) -> None:
    """A NaN or an infinity on both sides agrees; on one side it is over any budget, and counted."""
    got, want = (np.array(side, np.float32).reshape(1, -1) for side in zip(*pairs, strict=True))
    found = measure(got, want, "float32", logits=logits)
    one_sided = sum(not (a == b or (np.isnan(a) and np.isnan(b))) for a, b in pairs if not (np.isfinite(a) and np.isfinite(b)))
    assert found.unmatched == one_sided
    assert found.within(Tolerance(1e100)) == (one_sided == 0)
    text = json.dumps(found.to_json(), allow_nan=False)
    again = Deviation.parse(Fields("deviation", json.loads(text)))
    assert (again.unmatched, again.within(Tolerance(1e100))) == (found.unmatched, found.within(Tolerance(1e100)))
    assert json.dumps(again.to_json(), allow_nan=False) == text


def test_a_difference_of_huge_numbers_is_a_number() -> None:
    found = measure(np.array([1e308, 1.0]), np.array([-1e308, 1.0]), "float64")
    assert found.unmatched == 0 and np.isfinite(found.max_error) and not found.within(Tolerance(1.0))


class Logarithm(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log(x) * 3


def test_a_report_of_inputs_and_outputs_that_are_not_finite(tmp_path: Path) -> None:
    x = torch.tensor([[0.0, -1.0, float("inf"), float("nan"), 2.0, float("-inf")]] * 2)
    artifact = compile_model(Logarithm(), (x,), dynamic_shapes=({0: torch.export.Dim("n", max=64)},), options=options())
    worst = parsed(artifact).worst()
    assert worst is not None and worst.deviation.unmatched == 0 and worst.deviation.max_error < 1e-5
    artifact.save(tmp_path / "log.llmos")
    assert run(["verify", str(tmp_path / "log.llmos")]) == 0


def test_a_nan_that_the_reference_does_not_have_is_said_in_words() -> None:
    def divided(arrays: list[np.ndarray]) -> list[np.ndarray]:
        return [np.zeros_like(arrays[0])]

    imported = replace(import_torch(Logarithm(), (torch.zeros(2, 3),)), reference=divided)
    with pytest.raises(ToleranceError, match="is NaN or infinite in 6 of its elements where the reference is not, or the other way round"):
        compile_model(imported, options=options())


def test_integers_are_counted() -> None:
    found = measure(np.array([1, 2, 3, 9]), np.array([1, 2, 3, 4]), "int64")
    assert found.differing == 0.25 and not found.within(Tolerance(100.0))


def test_recipes_give_the_same_numbers_everywhere() -> None:
    assert RandomInput("integers", 7, 3, 9).make("int64", (6,)).tolist() == [6, 7, 5, 6, 5, 3]
    normal = RandomInput("normal", 7, -2.0, 2.0, 0.5, 1.0).make("float32", (1000,))
    assert abs(float(normal.mean()) - 0.5) < 0.1 and abs(float(normal.std()) - 0.95) < 0.1 and normal.max() <= 2.0
