"""`llmos compare`: an artifact beside its source, dispatch by dispatch."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from llmos.compiler.bench.peers import PEERS
from llmos.compiler.cli.model_options import binding, parse_dynamic
from llmos.compiler.driver.sources import import_source
from llmos.compiler.verify.accuracy import as_stored, gather
from llmos.compiler.verify.compare import Compared, DispatchRow, compare, options_of
from llmos.runtime.artifact.deviation import Deviation, measure
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
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(artifact: Path, source: Path, against: str | None, dynamic: str, bind: tuple[str, ...], as_json: bool) -> int:
    """Run each dispatch of ARTIFACT beside the reference interpreter: alone, on right operands, and after the ones before it.

    What nobody reads any more is overwritten with NaN meanwhile. Exit code 1 where a dispatch or an output is over budget.
    """
    opened = Artifact.open(artifact)
    opened.require_trust()
    names, sizes = parse_dynamic(dynamic)
    options = replace(options_of(opened), dynamic=names, sizes=sizes, bind=dict(map(binding, bind)))
    imported = import_source(source, None, None, options)
    check = gather(imported, options, lambda note: click.echo(note, err=True))
    if not check.samples:
        raise UserError(f"nothing to compare with: {check.note}")
    sample = min(check.samples, key=lambda each: sum(array.size for array in each.inputs))
    compared = compare(opened, imported, sample)
    want = sample.outputs if against is None else PEERS[against](source, len(os.sched_getaffinity(0)))(list(sample.inputs))
    outputs = {
        spec.name: measure(got, as_stored(np.asarray(theirs), spec.dtype), spec.dtype)
        for spec, got, theirs in zip(check.signature.outputs, compared.outputs, want, strict=True)
    }
    limit = check.budget.max_error
    engine = against or check.engine
    _show(compared, outputs, engine, limit, as_json)
    wrong = any((row.alone or 0.0) > limit or row.overwritten for row in compared.rows)
    return 1 if wrong or any(not each.within(check.budget) for each in outputs.values()) else 0


def _show(compared: Compared, outputs: dict[str, Deviation], engine: str, limit: float, as_json: bool) -> None:
    first = next((row.name for row in compared.rows if row.non_finite), None)
    if as_json:
        found = {name: each.to_json() for name, each in outputs.items()}
        rows = [row.to_json() for row in compared.rows]
        click.echo(json.dumps({"target": compared.target, "dispatches": rows, "first_non_finite": first, "outputs": found}, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "", "dispatch", "computes", "from", "alone", "accumulated", "", title=f"{compared.target} beside the interpreter", box=None
    )
    for row in compared.rows:
        table.add_row(
            str(row.number), row.name, row.label, _shortened(row.source), _figure(row.alone), _figure(row.accumulated), _remark(row, limit)
        )
    console = Console(width=None if os.isatty(1) else 160)
    console.print(table)
    for name, each in outputs.items():
        console.print(
            f"output {name} against {engine}: max error {each.max_error:.2e}, mean {each.mean_error:.2e}, cosine {each.cosine:.7f}"
        )
    console.print(f"first NaN or Inf: {first or 'none'}")


def _shortened(source: tuple[str, ...]) -> str:
    return source[-1] if source else ""


def _figure(error: float | None) -> str:
    return "" if error is None else f"{error:.1e}"


def _remark(row: DispatchRow, limit: float) -> str:
    if row.overwritten:
        return f"reads overwritten memory: {row.overwritten}"
    if row.non_finite:
        return "NaN or Inf"
    return "over budget" if (row.alone or 0.0) > limit else ""
