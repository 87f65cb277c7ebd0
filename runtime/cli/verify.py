"""`llmos verify`"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmos.runtime.cli.tables import plural, table
from llmos.runtime.errors import ArtifactError

if TYPE_CHECKING:
    from llmos.runtime.artifact.accuracy import AccuracyReport, Case, Finding
    from llmos.runtime.artifact.deviation import Tolerance
    from llmos.runtime.program import Program

_HEADER = ("case", "output", "max error", "mean", "cosine", "differing", "KL", "top-1", "budget", "")


@click.command(name="verify")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--target", metavar="NAME", help="The code variant to run; default the best for this machine.")
@click.option("--budget", metavar="ERROR", help="Largest relative error, or cosine>=NUMBER, to allow, instead of the accuracy report's.")
@click.option("--poison", is_flag=True, help="Fill temporaries with NaN before each run: code that reads what it didn't write shows.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(artifact: Path, target: str | None, budget: str | None, poison: bool, as_json: bool) -> int:
    """Run ARTIFACT on the inputs of its accuracy report and compare with the reference's outputs. Exit code 1 where one is over budget."""
    from llmos.runtime.artifact.accuracy import accuracy_report_of
    from llmos.runtime.program import load

    program = load(artifact, target=target, poison_arena=poison)
    accuracy_report = accuracy_report_of(program.artifact)
    if accuracy_report is None:
        raise ArtifactError(f"{artifact}: it holds no accuracy report: compile it again without --no-accuracy-report")
    if not accuracy_report.cases:
        raise ArtifactError(f"{artifact}: its accuracy report holds no case ({accuracy_report.note}): compile it again with example inputs")
    asked = None if budget is None else accuracy_report.budget.asked(budget)
    checked = [Checked(each, asked or accuracy_report.allowed(each)) for each in findings_of(program, accuracy_report.cases)]
    click.echo((_json if as_json else _render)(accuracy_report, program.target, checked))
    return 0 if all(each.passed for each in checked) else 1


@dataclass(frozen=True)
class Checked:
    """A finding and its budget."""

    finding: Finding
    budget: Tolerance

    @property
    def passed(self) -> bool:
        return self.finding.deviation.within(self.budget)


def findings_of(program: Program, cases: Sequence[Case]) -> Iterator[Finding]:
    """Yield the deviation of each output of each case on this machine. Raises InputError and ExecutionError as a call does."""
    from llmos.runtime.artifact.accuracy import Finding

    for number, case in enumerate(cases):
        arrays = program[case.entry].with_states(*[each.load() for each in case.inputs])
        if len(arrays) != len(case.outputs):
            raise ArtifactError(f"its accuracy report has {plural(len(case.outputs), 'output')}, entry {case.entry} {len(arrays)}")
        for output, array in zip(case.outputs, arrays, strict=True):
            yield Finding(number, output.name, output.deviation(array))


def _render(accuracy_report: AccuracyReport, target: str, checked: Sequence[Checked]) -> str:
    rows = [(_sizes(accuracy_report.cases[each.finding.case]), each.finding.output, *_figures(each)) for each in checked]
    failed, count = sum(1 for each in checked if not each.passed), plural(len(checked), "output")
    verdict = f"{failed} of {count} over budget" if failed else f"{count} within budget"
    return f"{target} against {accuracy_report.reference}; errors relative to an output's scale\n{table(rows, header=_HEADER)}\n{verdict}"


def _sizes(case: Case) -> str:
    return ",".join(f"{name}={size}" for name, size in case.sizes.items()) or "static"


def _figures(checked: Checked) -> tuple[str, ...]:
    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    found, exact = checked.finding.deviation, checked.finding.deviation.differing is not None
    return (
        f"NaN or Inf: {found.unmatched}" if found.unmatched else shown(found.max_error, ".2e"),
        shown(found.mean_error, ".2e"),
        shown(found.cosine, ".7f"),
        shown(found.differing, ".2%"),
        shown(found.kl, ".2e"),
        shown(found.top1, ".2%"),
        f"{checked.budget.differing:.2%}" if exact else checked.budget.shown(),
        "ok" if checked.passed else "OVER BUDGET",
    )


def _json(accuracy_report: AccuracyReport, target: str, checked: Sequence[Checked]) -> str:
    rows: list[dict[str, Any]] = [
        {
            **each.finding.to_json(),
            "sizes": dict(accuracy_report.cases[each.finding.case].sizes),
            "budget": each.budget.to_json(),
            "passed": each.passed,
        }
        for each in checked
    ]
    return json.dumps({"target": target, "reference": accuracy_report.reference, "findings": rows}, indent=1)
