"""`accuracy.json`: the reference's outputs on recorded inputs, and the deviation of the compiled code (docs/proof.md)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from llmos.runtime.artifact.deviation import FIGURES, MAX_ERROR, Deviation, Tolerance, measure, scale_of
from llmos.runtime.artifact.fields import Fields, fail, parse_json
from llmos.runtime.artifact.perplexity import Perplexity
from llmos.runtime.artifact.recorded import RecordedArray, sample_rows
from llmos.runtime.errors import ArtifactError

if TYPE_CHECKING:
    from llmos.runtime.artifact.reader import Artifact

ACCURACY_MEMBER = "accuracy.json"
EARLIER_MEMBER = "certificate.json"  # of artifacts made before it had this name
ACCURACY_FORMAT = 1
SAMPLE_LIMIT = 8192  # most elements stored of an output

PASSED, FAILED, NOT_RUN = "passed", "over budget", "not run"


@dataclass(frozen=True)
class RecordedOutput:
    """One output of the reference: `sample` is the whole output, [rows, width], or evenly spaced rows (recorded.sample_rows).

    shape, scale: of the whole output. logits: whether its last dimension holds logits. sensitivity: the reference's own relative change
    when its inputs change by one rounding, if measured; else 0.
    """

    shape: tuple[int, ...]
    scale: float
    logits: bool
    sample: RecordedArray
    sensitivity: float = 0.0

    @property
    def name(self) -> str:
        return self.sample.name

    @classmethod
    def of(cls, name: str, dtype: str, array: np.ndarray, logits: bool, sensitivity: float = 0.0) -> RecordedOutput:
        sample = RecordedArray.of(name, dtype, sample_rows(array, SAMPLE_LIMIT))
        return cls(tuple(array.shape), scale_of(array, dtype), logits, sample, sensitivity)

    def deviation(self, got: np.ndarray) -> Deviation:
        """Measure a whole output of the same shape at the stored samples. Raises ArtifactError for another shape."""
        if tuple(got.shape) != self.shape:
            raise fail(f"output {self.name!r} has the shape {list(got.shape)}, the accuracy report's reference {list(self.shape)}")
        sample = self.sample
        return measure(sample_rows(got, SAMPLE_LIMIT), sample.load(), sample.dtype, scale=self.scale, logits=self.logits)

    def to_json(self) -> dict[str, Any]:
        return {
            "shape": list(self.shape),
            "scale": self.scale,
            "logits": self.logits,
            "sensitivity": self.sensitivity,
            "sample": self.sample.to_json(),
        }

    @classmethod
    def parse(cls, fields: Fields) -> RecordedOutput:
        logits = bool(fields.get("logits", bool, "true or false"))
        sample = RecordedArray.parse(fields.record("sample"))
        return cls(fields.integers("shape"), fields.number("scale"), logits, sample, fields.number("sensitivity"))


@dataclass(frozen=True)
class Case:
    """One call: inputs in the entry's order, and the reference's outputs. sizes: of the symbols, for reports."""

    sizes: Mapping[str, int]
    inputs: tuple[RecordedArray, ...]
    outputs: tuple[RecordedOutput, ...]
    entry: str = "main"

    def to_json(self) -> dict[str, Any]:
        return {
            "entry": self.entry,
            "sizes": dict(self.sizes),
            "inputs": [each.to_json() for each in self.inputs],
            "outputs": [each.to_json() for each in self.outputs],
        }

    @classmethod
    def parse(cls, fields: Fields) -> Case:
        sizes = {name: int(size) for name, size in fields.mapping("sizes").items() if isinstance(size, int)}
        inputs = tuple(RecordedArray.parse(each) for each in fields.records("inputs"))
        return cls(sizes, inputs, tuple(RecordedOutput.parse(each) for each in fields.records("outputs")), fields.string("entry"))


@dataclass(frozen=True)
class Finding:
    """The deviation of one output of one case on one target."""

    case: int
    output: str
    deviation: Deviation

    def to_json(self) -> dict[str, Any]:
        return {"case": self.case, "output": self.output, **self.deviation.to_json()}

    @classmethod
    def parse(cls, fields: Fields) -> Finding:
        return cls(fields.integer("case"), fields.string("output"), Deviation.parse(fields))


@dataclass(frozen=True)
class TargetVerdict:
    """The compile-time result of one code variant: PASSED, FAILED, or NOT_RUN with the reason."""

    target: str
    verdict: str
    findings: tuple[Finding, ...] = ()
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        extra = {"reason": self.reason} if self.reason else {}
        return {"target": self.target, "verdict": self.verdict, "findings": [each.to_json() for each in self.findings], **extra}

    @classmethod
    def parse(cls, fields: Fields) -> TargetVerdict:
        reason = fields.string("reason") if "reason" in fields.value else ""
        findings = tuple(Finding.parse(each) for each in fields.records("findings"))
        return cls(fields.string("target"), fields.string("verdict"), findings, reason)


@dataclass(frozen=True)
class AccuracyReport:
    """The content of the report, without times; `parse` inverts `to_json`.

    reference: the implementation that computed the outputs, such as "torch eager". note: the reason if there are no cases.
    quantized: of a quantized model, the report against the quantized reference: what code generation costs, where this one has what
    quantization costs as well. perplexity: of a language model that was compiled with a text.
    """

    reference: str
    budget: Tolerance
    cases: tuple[Case, ...] = ()
    targets: tuple[TargetVerdict, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    quantized: AccuracyReport | None = None
    perplexity: Perplexity | None = None

    def to_json(self) -> bytes:
        fields = {"format": ACCURACY_FORMAT, **self._to_json()}
        return json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()

    def _to_json(self) -> dict[str, Any]:
        return {
            "reference": self.reference,
            "budget": self.budget.to_json(),
            "note": self.note,
            "versions": dict(self.versions),
            "targets": [each.to_json() for each in self.targets],
            "cases": [each.to_json() for each in self.cases],
            **({"quantized": self.quantized._to_json()} if self.quantized is not None else {}),
            **({"perplexity": self.perplexity.to_json()} if self.perplexity is not None else {}),
        }

    @classmethod
    def parse(cls, data: bytes) -> AccuracyReport:
        """Parse the JSON. Raises ArtifactError that names the invalid field."""
        fields = Fields("accuracy_report", parse_json(data, "accuracy_report"))
        if fields.integer("format") > ACCURACY_FORMAT:
            raise fail(f"its accuracy report has format {fields.integer('format')}: install a newer llmos")
        return cls._parse(fields)

    @classmethod
    def _parse(cls, fields: Fields) -> AccuracyReport:
        return cls(
            reference=fields.string("reference"),
            budget=Tolerance.parse(fields.record("budget")),
            cases=tuple(Case.parse(each) for each in fields.records("cases")),
            targets=tuple(TargetVerdict.parse(each) for each in fields.records("targets")),
            versions={name: str(version) for name, version in fields.mapping("versions").items()},
            note=fields.string("note"),
            quantized=cls._parse(fields.record("quantized")) if "quantized" in fields.value else None,
            perplexity=Perplexity.parse(fields.record("perplexity")) if "perplexity" in fields.value else None,
        )

    def allowed(self, finding: Finding) -> Tolerance:
        """Return the budget of one output of one case, raised by its sensitivity."""
        outputs = self.cases[finding.case].outputs
        return self.budget.loosened(max((each.sensitivity for each in outputs if each.name == finding.output), default=0.0))

    def worst(self) -> Finding | None:
        """Return the finding with the largest error over all targets."""
        return worst_of(finding for target in self.targets for finding in target.findings)

    def _figure(self, worst: Finding) -> str:
        """Format the worst figure that is judged, and its bound."""
        figure, error = self.budget.figure, f"max error {worst.deviation.max_error:.2g}"
        each = [getattr(finding.deviation, figure) for target in self.targets for finding in target.findings]
        found, bound = [number for number in each if number is not None], getattr(self.budget, figure)
        if figure == MAX_ERROR or not found:
            return f"{error} of {self.budget.max_error:.2g}"
        if FIGURES[figure] == ">=":
            return f"{figure} {min(found):.5f} of at least {bound:g}, {error}"
        return f"{figure} {max(found):.2g} of at most {bound:g}, {error}"

    def summary(self) -> str:
        """Summarize in one line."""
        text = f"; {self.perplexity.summary()}" if self.perplexity is not None else ""
        return f"{self._figures()}{text}"

    def _figures(self) -> str:
        if self.quantized is None:
            return self._summary()
        worst = self.quantized.worst()
        figure = f"max error {worst.deviation.max_error:.2g}" if worst is not None else f"no numbers ({self.quantized.note})"
        return f"{self._summary()}; {figure} against {self.quantized.reference}"

    def _summary(self) -> str:
        worst = self.worst()
        if worst is None:
            return f"no numbers ({self.note or 'no target could run here'})"
        names: Sequence[str] = [target.target for target in self.targets if target.verdict == PASSED]
        skipped = [target.target for target in self.targets if target.verdict == NOT_RUN]
        rest = f"; not run: {', '.join(skipped)}" if skipped else ""
        return (
            f"{self._figure(worst)} against {self.reference}, "
            f"{len(self.cases)} case{'s' if len(self.cases) != 1 else ''}, on {', '.join(names) or 'no target'}{rest}"
        )


def accuracy_report_of(artifact: Artifact) -> AccuracyReport | None:
    """Return the accuracy report in an artifact, or None. Raises ArtifactError if it can't be read."""
    member = next((name for name in (ACCURACY_MEMBER, EARLIER_MEMBER) if name in artifact.manifest.members), None)
    if member is None:
        return None
    try:
        return AccuracyReport.parse(bytes(artifact.member(member)))
    except ArtifactError as error:
        raise ArtifactError(f"{artifact.path}: {error}") from error


def worst_of(findings: Iterable[Finding]) -> Finding | None:
    """Return the finding with the largest deviation: by differing elements for integers, else by maximum error."""
    return max(findings, key=lambda each: (each.deviation.differing or 0.0, each.deviation.max_error), default=None)
