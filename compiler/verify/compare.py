"""Comparison of an artifact with its source, dispatch by dispatch (docs/proof.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from llmos.compiler.backends.base import CompiledModel, precision_of, quant_of
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.execution.interpreter import OpCache
from llmos.compiler.execution.native import CompiledCode, aligned_copy
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.ir.functions import EntryFunc, functions_of
from llmos.compiler.verify.bisect import describe, units_of
from llmos.compiler.verify.checked_run import CheckedRun, Observed
from llmos.compiler.verify.samples import GoldenSample
from llmos.compiler.verify.snapshots import Runner, snapshots_of
from llmos.runtime.artifact.manifest import QUANT, Manifest
from llmos.runtime.artifact.reader import Artifact
from llmos.runtime.device import cpu
from llmos.runtime.errors import UserError


@dataclass(frozen=True)
class DispatchRow:
    """One dispatch: the artifact's beside the interpreter's; errors relative to the result's scale.

    alone: on the interpreter's values; None for loops. accumulated: on the results of the artifact's own dispatches. is_exact: whether
    `alone` is of integers.
    """

    number: int
    name: str
    label: str
    source: tuple[str, ...]
    alone: float | None
    is_exact: bool
    accumulated: float | None
    non_finite: bool
    overwritten: str

    def to_json(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Compared:
    """Every dispatch in order, and the artifact's outputs."""

    target: str
    rows: tuple[DispatchRow, ...]
    outputs: tuple[np.ndarray, ...]


def options_of(artifact: Artifact, target: str = "") -> CompileOptions:
    """Return the options that an artifact was compiled with, as far as its metadata and passes record them."""
    names = {str(step).split("{")[0] for step in artifact.manifest.passes}
    return CompileOptions(
        precision=precision_of(artifact.manifest.passes),
        quant=artifact.manifest.metadata.get(QUANT) or quant_of(artifact.manifest.passes),
        target=target or "native",
        winograd="winograd" in names,
        repro=None,
    )


def compare(artifact: Artifact, imported: ImportedModel, sample: GoldenSample, options: CompileOptions) -> Compared:
    """Compare an artifact's code with the interpreter on one set of inputs.

    imported: its source after the front end and `fit`. options: those of `options_of`, as `fit` leaves them. Of a quantized model the
    interpreter has the quantized form, so that what dispatches are off by is no rounding.

    Raises UserError if this compiler didn't make the artifact from that source.
    """
    manifest = artifact.manifest
    if len(manifest.entries) > 1:
        raise UserError(f"{artifact.path} has {len(manifest.entries)} entries, and only artifacts of one are compared: compile them apart")
    passed = snapshots_of(imported, options)
    with imported.module.context:
        runner = Runner(sample.inputs, imported.weights, imported.module.context, OpCache())
        module = runner.module(passed.stages[-1].text)
        main = EntryFunc.of(module).op
        units = units_of(main)
        functions = functions_of(module)
        described = [describe(op, functions) for op in units]
        _check_same(manifest, [name for name, _, _ in described])
        variant = manifest.code[cpu.choose(artifact)]
        checked_run = CheckedRun(main, runner.trace(module), [kernel.name for kernel in manifest.kernels])
        weights = [aligned_copy(array) for array in artifact.weights.values()]
        model = CompiledModel(manifest.entries, manifest.symbols, {}, manifest.kernels)
        outputs = checked_run.run(CompiledCode(bytes(artifact.member(variant.member))), model, weights, sample.inputs, sample.sizes)
    rows = [_row(number, *both) for number, both in enumerate(zip(checked_run.observed, described, strict=True))]
    return Compared(variant.target, tuple(rows), tuple(outputs))


def _check_same(manifest: Manifest, names: Sequence[str]) -> None:
    """Raise UserError for the first kernel that differs, which means another source or compiler."""
    own = [kernel.name for kernel in manifest.kernels if kernel.kind != "loop"]
    if own != [name for name in names if name != "scf.for"]:
        raise UserError("the artifact was not compiled from this source with this version and these options: compile it again first")


def _row(number: int, seen: Observed, described: tuple[str, str, tuple[str, ...]]) -> DispatchRow:
    _, label, source = described
    overwritten = f"{seen.overwritten} by {seen.overwritten_by}" if seen.overwritten else ""
    alone, accumulated = (each.max_error if each else None for each in (seen.alone, seen.accumulated))
    is_exact = seen.alone is not None and seen.alone.differing is not None
    return DispatchRow(number, seen.name, label, source, alone, is_exact, accumulated, seen.non_finite, overwritten)
