"""`llmos verify`"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmos.runtime.artifact.manifest import QUANT
from llmos.runtime.cli.tables import plural, table
from llmos.runtime.errors import ArtifactError

if TYPE_CHECKING:
    from llmos.runtime.artifact.accuracy import AccuracyReport, Case, Finding
    from llmos.runtime.artifact.deviation import Tolerance
    from llmos.runtime.artifact.perplexity import Perplexity
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
    own, quantized = _Part(accuracy_report, _checked(program, accuracy_report, asked)), None
    if accuracy_report.quantized is not None:
        quantized = _Part(accuracy_report.quantized, _checked(program, accuracy_report.quantized))
    text = _text(program, accuracy_report.perplexity) if accuracy_report.perplexity is not None else None
    if as_json:
        click.echo(_json(program.target, own, quantized, text))
    else:
        click.echo(_render(program.target, own, quantized, text, is_asked=QUANT in program.manifest.metadata))
    return 0 if all(each.passed for each in [*own.checked, *(quantized.checked if quantized else [])]) else 1


def _text(program: Program, perplexity: Perplexity) -> Perplexity:
    """The perplexity that the program has on the report's text."""
    import numpy as np

    from llmos.runtime.artifact.perplexity import Perplexity, StepShape

    generation, entry = program.manifest.metadata.get("generation"), program.default
    if not isinstance(generation, dict):
        raise ArtifactError(f"{program.manifest.name}: its accuracy report has a perplexity, and it is no language model")
    caches = [(tuple(int(dim) for dim in spec.shape[1:]), spec.dtype) for spec in entry.inputs if spec.updated]
    shape = StepShape.of(generation, caches)
    found = shape.perplexity(lambda inputs: np.asarray(entry(*inputs)), perplexity.tokens.load())
    return Perplexity(perplexity.tokens, perplexity.reference, {program.target: found})


@dataclass(frozen=True)
class _Part:
    """A report, and what its cases show on this machine: against the source's reference, or the quantized one."""

    report: AccuracyReport
    checked: Sequence[Checked]


def _checked(program: Program, report: AccuracyReport, asked: Tolerance | None = None) -> list[Checked]:
    return [Checked(each, asked or report.allowed(each)) for each in findings_of(program, report.cases)]


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


def _render(target: str, own: _Part, quantized: _Part | None, text: Perplexity | None, is_asked: bool) -> str:
    """Format all parts. is_asked: whether the compile has quantized the model, which its source's reference then isn't."""
    costs = "what quantization costs, " if is_asked and quantized is not None else ""
    lines = [f"{target} against {own.report.reference}: {costs}errors relative to an output's scale", _table(own)]
    if quantized is not None:
        lines += ["", f"{target} against {quantized.report.reference}: what code generation costs"]
        lines.append(_table(quantized) if quantized.checked else f"no numbers ({quantized.report.note})")
    if text is not None:
        lines += ["", text.summary()]
    return "\n".join(lines)


def _table(part: _Part) -> str:
    checked = part.checked
    rows = [(_sizes(part.report.cases[each.finding.case]), each.finding.output, *_figures(each)) for each in checked]
    failed, count = sum(1 for each in checked if not each.passed), plural(len(checked), "output")
    verdict = f"{failed} of {count} over budget" if failed else f"{count} within budget"
    return f"{table(rows, header=_HEADER)}\n{verdict}"


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


def _finite(number: float) -> float | None:
    """A number as JSON has it: infinity and NaN are null."""
    return number if math.isfinite(number) else None


def _json(target: str, own: _Part, quantized: _Part | None, text: Perplexity | None) -> str:
    found: dict[str, Any] = {"target": target, **_fields(own)}
    if quantized is not None:
        found["quantized"] = _fields(quantized)
    if text is not None:
        found["perplexity"] = {"tokens": text.num_tokens, "perplexity": _finite(text.targets[target]), "reference": text.reference}
    return json.dumps(found, indent=1)


def _fields(part: _Part) -> dict[str, Any]:
    rows: list[dict[str, Any]] = [
        {
            **each.finding.to_json(),
            "sizes": dict(part.report.cases[each.finding.case].sizes),
            "budget": each.budget.to_json(),
            "passed": each.passed,
        }
        for each in part.checked
    ]
    return {"reference": part.report.reference, "findings": rows}
