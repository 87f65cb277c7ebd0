"""The pass manager: what runs, what is checked, what is dumped and what a failure leaves behind."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from llmos.compiler.ir.bindings import context, ir
from llmos.passes import Pass, PassContext, PassObserver, PassRun, PipelineOptions, Property, Upstream, run_pipeline
from llmos.passes._property import ONLY_LINALG_GENERICS, TENSORS_ONLY, operations
from llmos.runtime.errors import PassError, UnsupportedError

ADD = """
func.func @main(%a: tensor<4xf32>, %b: tensor<4xf32>) -> tensor<4xf32> {
  %e = tensor.empty() : tensor<4xf32>
  %0 = linalg.add ins(%a, %b : tensor<4xf32>, tensor<4xf32>) outs(%e : tensor<4xf32>) -> tensor<4xf32>
  return %0 : tensor<4xf32>
}
"""

NO_REPRO = PipelineOptions(repro=None)


def parse(text: str) -> ir.Module:
    with context():
        return ir.Module.parse(text)


@dataclass(frozen=True)
class RenameMain(Pass):
    to: str = "renamed"

    def run(self, module: ir.Module, context: PassContext) -> None:
        module.body.operations[0].attributes["sym_name"] = ir.StringAttr.get(self.to)


@dataclass(frozen=True)
class DropTheReturn(Pass):
    def run(self, module: ir.Module, context: PassContext) -> None:
        module.body.operations[0].regions[0].blocks[0].operations[2].erase()


@dataclass(frozen=True)
class RefuseTheModel(Pass):
    def run(self, module: ir.Module, context: PassContext) -> None:
        raise UnsupportedError("no complex numbers yet; remove them")


@dataclass(frozen=True)
class RaiseKeyError(Pass):
    def run(self, module: ir.Module, context: PassContext) -> None:
        raise KeyError("lost")


@dataclass(frozen=True)
class PromiseGenerics(Pass):
    ensures: ClassVar[frozenset[Property]] = frozenset({ONLY_LINALG_GENERICS})

    def run(self, module: ir.Module, context: PassContext) -> None:
        pass


@dataclass(frozen=True)
class NeedGenerics(Pass):
    requires: ClassVar[frozenset[Property]] = frozenset({ONLY_LINALG_GENERICS, TENSORS_ONLY})

    def run(self, module: ir.Module, context: PassContext) -> None:
        pass


def test_runs_our_passes_and_upstream_ones_in_order() -> None:
    module = parse(ADD)
    report = run_pipeline(module, [RenameMain(to="other"), Upstream("linalg-generalize-named-ops")], options=NO_REPRO)
    assert "@other" in str(module)
    assert "linalg.generic" in str(module)
    assert [str(run.step) for run in report.runs] == ["rename-main{to=other}", "linalg-generalize-named-ops"]
    assert report.seconds > 0
    assert "linalg-generalize-named-ops" in report.table()


def test_a_pipeline_by_name() -> None:
    module = parse(ADD)
    run_pipeline(module, "linalg-generalize-named-ops,canonicalize{max-iterations=3}", options=NO_REPRO)
    assert "linalg.generic" in str(module)


def test_invalid_ir_names_the_pass_and_those_before_it() -> None:
    with pytest.raises(PassError, match="drop-the-return failed after rename-main: "):
        run_pipeline(parse(ADD), [RenameMain(), DropTheReturn()], options=NO_REPRO)


def test_an_exception_in_a_pass_is_a_pass_error() -> None:
    with pytest.raises(PassError, match="raise-key-error failed after no other pass: 'lost'"):
        run_pipeline(parse(ADD), [RaiseKeyError()], options=NO_REPRO)


def test_an_unsupported_model_stays_a_user_error(tmp_path: Path) -> None:
    options = PipelineOptions(repro=tmp_path / "repro")
    with pytest.raises(UnsupportedError, match="no complex numbers yet"):
        run_pipeline(parse(ADD), [RefuseTheModel()], options=options)
    assert not (tmp_path / "repro").exists()


def test_a_broken_promise_is_found() -> None:
    with pytest.raises(PassError, match=r"promise-generics promises only-linalg-generics.*linalg\.add"):
        run_pipeline(parse(ADD), [PromiseGenerics()], options=NO_REPRO)


def test_a_requirement_is_checked_before_the_pass() -> None:
    with pytest.raises(PassError, match=r"need-generics requires only-linalg-generics.*linalg\.add"):
        run_pipeline(parse(ADD), [NeedGenerics()], options=NO_REPRO)
    run_pipeline(parse(ADD), [Upstream("linalg-generalize-named-ops"), NeedGenerics()], options=NO_REPRO)


def test_dumps_are_numbered_and_hold_only_what_changed(tmp_path: Path) -> None:
    passes = [Upstream("canonicalize"), RenameMain(), Upstream("cse"), Upstream("linalg-generalize-named-ops")]
    run_pipeline(parse(ADD), passes, options=PipelineOptions(dump_ir=tmp_path, repro=None))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "00-input.mlir",
        "02-rename-main.mlir",
        "04-linalg-generalize-named-ops.mlir",
    ]
    assert "@renamed" in str(parse((tmp_path / "02-rename-main.mlir").read_text()))


def test_dumps_can_leave_large_constants_out(tmp_path: Path) -> None:
    values = ", ".join(f"{value}.0" for value in range(64))
    module = parse(
        f"func.func @main() -> tensor<64xf32> {{ %0 = arith.constant dense<[{values}]> : tensor<64xf32> return %0 : tensor<64xf32> }}"
    )
    run_pipeline(module, [], options=PipelineOptions(dump_ir=tmp_path, repro=None, elide_above=8))
    assert "63" not in (tmp_path / "00-input.mlir").read_text()


def test_a_failure_leaves_what_reproduces_it(tmp_path: Path) -> None:
    repro = tmp_path / "repro"
    passes = [RenameMain(), Upstream("linalg-generalize-named-ops"), RaiseKeyError(), Upstream("cse")]
    with pytest.raises(PassError) as caught:
        run_pipeline(parse(ADD), passes, options=PipelineOptions(repro=repro))
    command = shlex.split(str(caught.value).partition("reproduce it with: ")[2])
    assert command == ["llmos", "opt", str(repro / "before.mlir"), "-p", "raise-key-error"]
    before = str(parse((repro / "before.mlir").read_text()))
    assert "@renamed" in before and "linalg.generic" in before
    assert (repro / "pipeline.txt").read_text() == "raise-key-error,cse\n"
    assert json.loads((repro / "versions.json").read_text())["torch-mlir"]
    with pytest.raises(PassError, match=r"repro-2/before\.mlir"):
        run_pipeline(parse(ADD), passes, options=PipelineOptions(repro=repro))


def test_the_observer_sees_every_pass() -> None:
    class Recorder(PassObserver):
        def __init__(self) -> None:
            self.seen: list[tuple[str, bool]] = []
            self.total = 0

        def pass_started(self, index: int, total: int, step: Pass) -> None:
            self.total = total

        def pass_finished(self, run: PassRun, module: ir.Module) -> None:
            self.seen.append((run.step.name, any(op.name == "linalg.generic" for op in operations(module))))

    recorder = Recorder()
    run_pipeline(parse(ADD), "cse,linalg-generalize-named-ops", options=NO_REPRO, observer=recorder)
    assert recorder.seen == [("cse", False), ("linalg-generalize-named-ops", True)]
    assert recorder.total == 2
