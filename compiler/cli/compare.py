"""`llmos compare`: an artifact beside its source, dispatch by dispatch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np

from llmos.compiler.bench.peers import PEERS
from llmos.compiler.calibration.fit import fit
from llmos.compiler.cli.model_options import binding, parse_dynamic
from llmos.compiler.driver.sources import import_source
from llmos.compiler.support.progress import progress_for_terminal
from llmos.compiler.verify.accuracy import AccuracyCheck, as_stored, gather, smallest
from llmos.compiler.verify.compare import Compared, DispatchRow, compare, options_of
from llmos.runtime.artifact.deviation import Deviation, Tolerance, measure
from llmos.runtime.artifact.reader import Artifact
from llmos.runtime.errors import UserError


@click.command("compare")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--source", required=True, type=click.Path(path_type=Path), help="What the artifact was compiled from.")
@click.option(
    "--against", type=click.Choice(["eager", "onnxruntime"]), help="What the outputs are compared with; default the source's own reference."
)
@click.option("--dynamic", default="", metavar="NAME[=SIZE],...", help="As it was given to `llmos compile`.")
@click.option("--bind", multiple=True, metavar="NAME=NUMBER", help="As it was given to `llmos compile`.")
@click.option("--calibrate", type=click.Path(path_type=Path), metavar="FILE", help="As it was given to `llmos compile`.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(
    artifact: Path, source: Path, against: str | None, dynamic: str, bind: tuple[str, ...], calibrate: Path | None, as_json: bool
) -> int:
    """Run each dispatch of ARTIFACT beside the reference interpreter: alone, on right operands, and after the ones before it.

    The interpreter runs what the passes made: of a quantized model its quantized form, and outputs are then shown against that as well as
    against the source's reference. What nobody reads any more is overwritten with NaN meanwhile. Exit code 1 where a dispatch or an output
    is over budget.
    """
    opened = Artifact.open(artifact)
    opened.require_trust()
    names, sizes = parse_dynamic(dynamic)
    options = replace(options_of(opened), dynamic=names, sizes=sizes, bind=dict(map(binding, bind)), calibrate=calibrate)
    imported = import_source(source, None, None, options)
    with progress_for_terminal(as_json) as progress:
        imported, options = fit(imported, options, progress)
    check = gather(imported, options, lambda note: click.echo(note, err=True))
    if not check.samples:
        raise UserError(f"nothing to compare with: {check.note}")
    sample = smallest(check.samples)
    compared = compare(opened, imported, sample, options)
    want = sample.outputs if against is None else PEERS[against](source, len(os.sched_getaffinity(0)))(list(sample.inputs))
    sides = [_side(check, compared, want, against or check.engine)]
    quantized = check.quantized
    if quantized is not None and quantized.samples:
        own = _side(quantized, compared, quantized.samples[0].outputs)
        sides.append(own if own.passed else _side(quantized.with_sensitivities(), compared, quantized.samples[0].outputs))
    limits = _Limits((quantized if len(sides) > 1 and quantized else check).budget.max_error, check.budget.max_error)
    _show(compared, sides, limits, as_json)
    wrong = any(limits.exceeded(row) or row.overwritten for row in compared.rows)
    return 1 if wrong or not all(side.passed for side in sides) else 0


@dataclass(frozen=True)
class _Limits:
    """What a dispatch may be off by: by an element of floats, or of integers, which may have been rounded the other way."""

    floats: float
    integers: float

    def exceeded(self, row: DispatchRow) -> bool:
        return (row.alone or 0.0) > (self.integers if row.is_exact else self.floats)


@dataclass(frozen=True)
class _Side:
    """What the artifact's outputs are compared with: the source's reference, or the quantized one."""

    engine: str
    budgets: Sequence[Tolerance]
    outputs: Mapping[str, Deviation]

    @property
    def passed(self) -> bool:
        return all(each.within(budget) for each, budget in zip(self.outputs.values(), self.budgets, strict=True))


def _side(check: AccuracyCheck, compared: Compared, wanted: Sequence[np.ndarray], engine: str = "") -> _Side:
    specs, golden = check.signature.outputs, smallest(check.samples)
    outputs = {
        spec.name: measure(got, as_stored(np.asarray(theirs), spec.dtype), spec.dtype)
        for spec, got, theirs in zip(specs, compared.outputs, wanted, strict=True)
    }
    return _Side(engine or check.engine, [check.budget.loosened(golden.sensitivity(number)) for number in range(len(specs))], outputs)


def _show(compared: Compared, sides: Sequence[_Side], limits: _Limits, as_json: bool) -> None:
    first = next((row.name for row in compared.rows if row.non_finite), None)
    if as_json:
        found, *quantized = [{name: each.to_json() for name, each in side.outputs.items()} for side in sides]
        fields = {
            "target": compared.target,
            "dispatches": [row.to_json() for row in compared.rows],
            "first_non_finite": first,
            "outputs": found,
            **({"quantized_outputs": quantized[0]} if quantized else {}),
        }
        click.echo(json.dumps(fields, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    beside = "the interpreter of the quantized model" if len(sides) > 1 else "the interpreter"
    table = Table("", "dispatch", "computes", "from", "alone", "accumulated", "", title=f"{compared.target} beside {beside}", box=None)
    for row in compared.rows:
        table.add_row(
            str(row.number), row.name, row.label, _shortened(row.source), _figure(row.alone), _figure(row.accumulated), _remark(row, limits)
        )
    console = Console(width=None if os.isatty(1) else 160)
    console.print(table)
    for side in sides:
        for name, each in side.outputs.items():
            console.print(
                f"output {name} against {side.engine}: max error {each.max_error:.2e}, mean {each.mean_error:.2e}, cosine {each.cosine:.7f}"
            )
    console.print(f"first NaN or Inf: {first or 'none'}")


def _shortened(source: tuple[str, ...]) -> str:
    return source[-1] if source else ""


def _figure(error: float | None) -> str:
    return "" if error is None else f"{error:.1e}"


def _remark(row: DispatchRow, limits: _Limits) -> str:
    if row.overwritten:
        return f"reads overwritten memory: {row.overwritten}"
    if row.non_finite:
        return "NaN or Inf"
    return "over budget" if limits.exceeded(row) else ""
