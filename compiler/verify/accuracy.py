"""The accuracy check: compiled code is compared with the reference on recorded inputs before the artifact is written (docs/proof.md)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llmos.compiler.backends.base import Backend, CompiledModel
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.backends.registry import backend_of
from llmos.compiler.execution.interpreter import reference_of
from llmos.compiler.execution.native import ERRORS, CompiledCode, aligned_copy, poisoned_array
from llmos.compiler.frontend.model import ImportedModel, Reference
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import EntryFunc
from llmos.compiler.ir.limits import largest_value, machine_bytes
from llmos.compiler.ir.weights import Weight
from llmos.compiler.support.versions import producer
from llmos.compiler.verify.perplexity import PerplexityCheck
from llmos.compiler.verify.quantized import ENGINE, STEP, QuantizedReference, has_quantized_activations, is_quantized
from llmos.compiler.verify.samples import GoldenSample, Signature, record, with_sensitivities
from llmos.runtime.artifact.accuracy import FAILED, NOT_RUN, PASSED, AccuracyReport, Case, Finding, RecordedOutput, TargetVerdict
from llmos.runtime.artifact.deviation import FIGURES, MAX_ERROR, ROUNDINGS, Deviation, Tolerance, measure
from llmos.runtime.artifact.dtypes import DTYPES
from llmos.runtime.artifact.manifest import EntrySpec
from llmos.runtime.errors import ToleranceError, UserError

# Largest error of an output relative to its scale. Half floats round at 1e-3, quantized values by 1/255 of their range.
FLOAT32_TOLERANCE, HALF_TOLERANCE, QUANTIZED_TOLERANCE = 1e-4, 2e-2, 5e-2
QUANTIZED_COSINE = 0.99  # smallest cosine of an output of a model that the compile quantizes
OF_LOGITS = ("kl", "top1")
_NAMES = {"cosine": "cosine", "kl": "divergence", "top1": "part of equal best elements"}
_ADVICE = "give the model with example inputs that it takes, or compile it where it runs"
HALF_DIFFERING = 0.25  # integers computed from rounded numbers, such as an argmax, may change


def tolerance_for(imported: ImportedModel, signature: Signature, options: CompileOptions) -> Tolerance:
    """Return the requested budget, or the default for the model's arithmetic: a largest error, and a cosine where the compile quantizes."""
    floats = tolerance_of_floats(imported, signature, options)
    default = QUANTIZED_TOLERANCE if is_quantized(imported, options) else floats.max_error
    asked = default if options.budget is None else options.budget
    tolerance = Tolerance(asked) if default == FLOAT32_TOLERANCE else Tolerance(asked, HALF_DIFFERING)
    if options.figure is None:
        return replace(tolerance, cosine=QUANTIZED_COSINE if options.quant and options.budget is None else None)
    figure, bound = options.figure
    if figure in OF_LOGITS and not any(is_logits(spec.name) for spec in signature.outputs):
        names = ", ".join(spec.name for spec in signature.outputs)
        raise UserError(f"--budget {figure}: the model has no output of logits by its name, only {names}; give an error or a cosine")
    return replace(tolerance, **{figure: bound})


def tolerance_of_floats(imported: ImportedModel, signature: Signature, options: CompileOptions) -> Tolerance:
    """Return the default for the model's arithmetic on floats: what code may be off by a reference that rounds to the same numbers."""
    dtypes = {weight.dtype for weight in imported.weights.values()}
    ends = {spec.dtype for spec in signature.inputs} | {spec.dtype for spec in signature.outputs}
    states = {each.dtype for each in EntryFunc.of(imported.module).results if each.updates}
    rounded = bool({"float16", "bfloat16"} & (dtypes | ends)) or "int8" in states  # a cache of quantized keys and values
    inexact = options.precision == "bf16" or rounded
    return Tolerance(HALF_TOLERANCE, HALF_DIFFERING) if inexact else Tolerance(FLOAT32_TOLERANCE)


def smallest(samples: Sequence[GoldenSample]) -> GoldenSample:
    """Return the sample of fewest elements, of those without a size of 1, at which broadcasting hides errors, where there are any."""
    return min(samples, key=lambda each: (min(each.sizes.values(), default=0) < 2, sum(array.size for array in each.inputs)))


def with_loaded_weights(compiled: CompiledModel) -> CompiledModel:
    """Load the weights into memory: code runs on them, and the artifact is written from them."""
    return replace(compiled, weights={name: _loaded(weight) for name, weight in compiled.weights.items()})


def _loaded(weight: Weight) -> Weight:
    array = aligned_copy(weight.load())
    return Weight(weight.dtype, weight.shape, lambda: array)


@dataclass(frozen=True)
class AccuracyCheck:
    """All that an accuracy report is made of, but the compiled code: gathered before the passes change the module.

    strict: whether the budget was requested explicitly, and isn't raised by the model's sensitivity.
    moved: the reference after it is changed by one rounding in another place than the inputs, for its sensitivity. rounds: whether values
    in it are rounded to integers of 8 bits, which then may be others.
    quantized: of a quantized model, the check against the quantized reference, on one of the samples (verify/quantized.py).
    perplexity: of a language model, where text was given.
    """

    reference: Reference | None
    engine: str
    signature: Signature
    budget: Tolerance
    samples: tuple[GoldenSample, ...]
    versions: Mapping[str, str]
    backend: Backend
    note: str = ""
    strict: bool = False
    entry: str = "main"
    moved: Reference | None = None
    rounds: bool = False
    quantized: AccuracyCheck | None = None
    perplexity: PerplexityCheck | None = None

    def of_entry(self, entry: str) -> AccuracyCheck:
        """The same of an entry of that name."""
        return replace(self, entry=entry, quantized=self.quantized and self.quantized.of_entry(entry))

    def accuracy_report(self, compiled: CompiledModel) -> AccuracyReport:
        """Run every code variant that this machine supports. Raises ToleranceError, naming the worst output, if one exceeds the budget.

        What is wrong beside the quantized reference is told first: it is no rounding. `compiled` has its weights in memory
        (`with_loaded_weights`).
        """
        quantized = self.quantized.accuracy_report(compiled) if self.quantized is not None else None
        own = self._own_report(compiled)
        ran = {name: code for name, code in compiled.code.items() if self.backend.parse_target(name).runs_here()}
        perplexity = self.perplexity.measured(compiled, ran, run_entry) if self.perplexity is not None else None
        return replace(own, quantized=quantized, perplexity=perplexity)

    def _own_report(self, compiled: CompiledModel) -> AccuracyReport:
        if not self.samples:
            return self._accuracy_report(())
        seen: dict[bytes, TargetVerdict] = {}  # targets may share code
        accuracy_report = self._accuracy_report([self._run(name, code, compiled, seen) for name, code in compiled.code.items()])
        if _failed(accuracy_report) and not self.strict and self.reference is not None:
            accuracy_report = self.with_sensitivities()._accuracy_report(accuracy_report.targets)
        if _failed(accuracy_report):
            raise ToleranceError(self._complaint(accuracy_report))
        return accuracy_report

    def with_sensitivities(self) -> AccuracyCheck:
        """The same with what one rounding changes in each sample's outputs. Raises what the reference raises."""
        reference = self.moved or self.reference
        assert reference is not None
        measured = [with_sensitivities(each, reference, self.signature) for each in self.samples]
        if self.rounds:
            measured = [replace(each, sensitivities=tuple(map(_bounded, each.sensitivities))) for each in measured]
        return replace(self, samples=tuple(measured))

    def _accuracy_report(self, targets: Sequence[TargetVerdict]) -> AccuracyReport:
        """Build the accuracy report with a verdict for each target that ran."""
        made = AccuracyReport(self.engine, self.budget, tuple(map(self._case, self.samples)), (), self.versions, self.note)
        judged = [
            each if each.verdict == NOT_RUN else replace(each, verdict=PASSED if _within(made, each.findings) else FAILED)
            for each in targets
        ]
        return replace(made, targets=tuple(judged))

    def _run(self, name: str, code: bytes, compiled: CompiledModel, seen: dict[bytes, TargetVerdict]) -> TargetVerdict:
        target = self.backend.parse_target(name)
        if not target.runs_here():
            return TargetVerdict(name, NOT_RUN, reason=f"the machine that compiled it lacks {target.requirements}")
        if code in seen:
            return replace(seen[code], target=name)
        findings = []
        library, weights = CompiledCode(code), [weight.load() for weight in compiled.weights.values()]
        for number, sample in enumerate(self.samples):
            got = run_entry(library, compiled, weights, sample.inputs, sample.sizes)
            findings += [Finding(number, *each) for each in self._compare(sample, got)]
        seen[code] = TargetVerdict(name, PASSED, tuple(findings))
        return seen[code]

    def _compare(self, sample: GoldenSample, got: Sequence[np.ndarray]) -> Iterator[tuple[str, Deviation]]:
        for spec, ours, theirs in zip(self.signature.outputs, got, sample.outputs, strict=True):
            if ours.shape != theirs.shape:
                raise ToleranceError(
                    f"output {spec.name!r} has the shape {list(ours.shape)} where {self.engine} gives {list(theirs.shape)} "
                    f"({_at(sample.sizes)}): find out why with `llmos bisect`"
                )
            yield spec.name, measure(ours, as_stored(theirs, spec.dtype), spec.dtype, logits=is_logits(spec.name))

    def _case(self, sample: GoldenSample) -> Case:
        outputs = tuple(
            RecordedOutput.of(spec.name, spec.dtype, as_stored(array, spec.dtype), is_logits(spec.name), sample.sensitivity(number))
            for number, (spec, array) in enumerate(zip(self.signature.outputs, sample.outputs, strict=True))
        )
        return Case(sample.sizes, sample.recorded_inputs(self.signature.inputs), outputs, self.entry)

    def _complaint(self, accuracy_report: AccuracyReport) -> str:
        target, worst = max(
            ((target.target, each) for target in accuracy_report.targets for each in target.findings),
            key=lambda pair: excess(pair[1].deviation, accuracy_report.allowed(pair[1])),
        )
        found, allowed = worst.deviation, accuracy_report.allowed(worst)
        figure = allowed.figure
        side = "under" if FIGURES.get(figure) == ">=" else "over"
        amount = (
            f"differs in {found.differing:.2%} of its elements, over the budget of {allowed.differing:.2%},"
            if found.differing is not None
            else f"is NaN or infinite in {found.unmatched} of its elements where the reference is not, or the other way round,"
            if found.unmatched
            else f"has a {_NAMES[figure]} of {getattr(found, figure):.6f}, {side} the budget of {getattr(allowed, figure):g},"
            if figure != MAX_ERROR and getattr(found, figure) is not None
            else f"is off by {found.max_error:.2g} of its scale, over the budget of {allowed.max_error:.2g},"
        )
        return (
            f"output {worst.output!r} of the compiled model {amount} on {target} ({_at(self.samples[worst.case].sizes)}, against "
            f"{self.engine}): find where the error enters with `llmos bisect`, or allow it with --budget"
        )


def joined(reports: Sequence[AccuracyReport]) -> AccuracyReport:
    """Merge the accuracy reports of several entries: all cases, the findings of each target, and the largest budget."""
    quantized = [each.quantized for each in reports if each.quantized is not None]
    first, *others = reports
    for other in others:
        first = _joined(first, other)
    perplexity = next((each.perplexity for each in reports if each.perplexity is not None), None)
    return replace(first, quantized=joined(quantized) if quantized else None, perplexity=perplexity)


def _joined(first: AccuracyReport, second: AccuracyReport) -> AccuracyReport:
    offset, targets = len(first.cases), {each.target: each for each in first.targets}
    for each in second.targets:
        moved = tuple(replace(finding, case=finding.case + offset) for finding in each.findings)
        before = targets.get(each.target)
        targets[each.target] = replace(each, findings=(*before.findings, *moved) if before else moved)
    return replace(
        first,
        reference=", ".join(dict.fromkeys([first.reference, second.reference])),
        budget=_loosest(first.budget, second.budget),
        cases=(*first.cases, *second.cases),
        targets=tuple(targets.values()),
        note=" ".join(filter(None, (first.note, second.note))),
    )


def _loosest(first: Tolerance, second: Tolerance) -> Tolerance:
    """Return what is within one of two tolerances; figures of logits are judged where there are any."""
    loosest = max(first, second, key=lambda budget: (budget.max_error, -(budget.cosine or 0.0)))
    kl, top1 = (first.kl if first.kl is not None else second.kl), (first.top1 if first.top1 is not None else second.top1)
    others = [each.cosine for each in (first, second) if each.figure not in OF_LOGITS]
    cosines = [cosine for cosine in others if cosine is not None]
    return replace(loosest, kl=kl, top1=top1, cosine=min(cosines) if cosines and len(cosines) == len(others) else None)


def _within(accuracy_report: AccuracyReport, findings: Sequence[Finding]) -> bool:
    return all(each.deviation.within(accuracy_report.allowed(each)) for each in findings)


def _failed(accuracy_report: AccuracyReport) -> bool:
    return any(target.verdict == FAILED for target in accuracy_report.targets)


def excess(found: Deviation, allowed: Tolerance) -> float:
    """Return the ratio of a deviation to its budget: above 1 it is over."""
    figure = allowed.figure
    value = getattr(found, figure)
    if found.differing is None and figure != MAX_ERROR and value is not None:
        if found.unmatched:
            return math.inf
        return float(1.0 - value if FIGURES[figure] == ">=" else value) / unit_of(allowed)
    part, whole = (found.max_error, allowed.max_error) if found.differing is None else (found.differing, allowed.differing)
    return part / whole if whole else part and math.inf


def unit_of(allowed: Tolerance) -> float:
    """Return what an excess of 1 is: an error, a divergence, or 1 less a cosine or a part of rows."""
    bound: float = getattr(allowed, allowed.figure)
    return bound if allowed.figure == MAX_ERROR else max(1.0 - bound if FIGURES[allowed.figure] == ">=" else bound, 1e-9)


def gather(imported: ImportedModel, options: CompileOptions, say: Callable[[str], None]) -> AccuracyCheck:
    """Run the reference. If it fails on all inputs, report that; the accuracy report then holds the reason instead of cases."""
    signature = Signature.of(imported.module)
    note = ""
    samples: tuple[GoldenSample, ...] = ()
    reference = imported.reference
    try:
        _require_room(imported.module)
        reference = reference or reference_of(imported.module, imported.weights)
        samples = tuple(record(reference, imported.examples, signature))
    except UserError as error:
        note = str(error)
        say(f"the artifact's accuracy report is empty: {note}; {_ADVICE}")
    budget = tolerance_for(imported, signature, options)
    versions = {"numpy": np.__version__, **producer()}
    strict = options.budget is not None or options.figure is not None
    engine = engine_of(imported.reference)
    perplexity = PerplexityCheck.of(imported, options.perplexity) if options.perplexity is not None else None
    made = AccuracyCheck(reference, engine, signature, budget, samples, versions, backend_of(options), note, strict, perplexity=perplexity)
    return replace(made, quantized=_against_quantized(made, imported, options)) if is_quantized(imported, options) and samples else made


def _against_quantized(check: AccuracyCheck, imported: ImportedModel, options: CompileOptions) -> AccuracyCheck:
    """The check against the quantized reference, on the smallest sample: plain loops are slow. It holds the reason where that fails."""
    sample = smallest(check.samples)
    budget = tolerance_of_floats(imported, check.signature, options)
    made = replace(check, engine=ENGINE, budget=budget, samples=(), versions={}, strict=False)
    try:
        reference = QuantizedReference.of(imported, options)
        outputs = tuple(reference(list(sample.inputs)))
    except UserError as error:
        return replace(made, reference=None, note=str(error))
    golden = (replace(sample, outputs=outputs),)
    return replace(made, reference=reference, moved=reference.moved, rounds=has_quantized_activations(options), samples=golden)


def _bounded(sensitivity: float) -> float:
    """Bound the sensitivity of a model that rounds to integers: by the step of one of them, and, since what has grown through all layers
    grows no more, such that twice itself is allowed rather than more than QUANTIZED_TOLERANCE."""
    return min(max(sensitivity, STEP / ROUNDINGS), max(2 * sensitivity, QUANTIZED_TOLERANCE) / ROUNDINGS)


def _require_room(module: ir.Module) -> None:
    """Raise UserError if a single value exceeds this machine's memory."""
    num_bytes, kind = largest_value(module)
    if num_bytes > machine_bytes():
        raise UserError(f"a value of type {kind} has {num_bytes:,} bytes, more than this machine's memory")


def engine_of(reference: Reference | None) -> str:
    """Return the display name of a reference implementation."""
    return "MLIR's reference lowering" if reference is None else str(getattr(reference, "engine", "torch eager"))


def run_entry(
    code: CompiledCode, compiled: CompiledModel, weights: Sequence[np.ndarray], inputs: Sequence[np.ndarray], sizes: Mapping[str, int]
) -> list[np.ndarray]:
    """Run the entry; return outputs, then updated inputs; bfloat16 as uint16. Raises ToleranceError if the code reports an error."""
    entry = compiled.entries[0]
    given, outputs = given_arrays(entry, inputs), empty_outputs(code, compiled, entry, sizes)
    status = code.call(entry.symbol, given, outputs, weights)
    if status:
        problem = ERRORS.get(status, str(status))
        raise ToleranceError(
            f"the compiled model reports '{problem}' on inputs that the reference takes ({_at(sizes)}): try `llmos bisect`"
        )
    return [*outputs, *[given[position] for position in entry.updated]]


def given_arrays(entry: EntrySpec, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return dense arrays for a call; inputs that it updates are copied."""
    return [(np.array if i in entry.updated else np.asarray)(array, order="C") for i, array in enumerate(inputs)]


def empty_outputs(code: CompiledCode, compiled: CompiledModel, entry: EntrySpec, sizes: Mapping[str, int]) -> list[np.ndarray]:
    """Allocate poisoned arrays of the sizes that the code's shape function returns."""
    dims = iter(
        code.dims(entry.shapes, [sizes.get(s.name, s.min) for s in compiled.symbols], sum(len(spec.shape) for spec in entry.outputs))
    )
    return [poisoned_array([next(dims) for _ in spec.shape], np.dtype(DTYPES[spec.dtype].storage)) for spec in entry.outputs]


def as_stored(array: np.ndarray, dtype: str) -> np.ndarray:
    """Convert a reference's output to the manifest's dtype: some references lack bfloat16, or return wider integers."""
    storage = np.dtype(DTYPES[dtype].storage)
    if array.dtype.name == "bfloat16":
        return array.view(np.uint16)
    return array if array.dtype == storage else array.astype(storage)


def is_logits(name: str) -> bool:
    """Whether an output holds logits, by its name."""
    return "logits" in name.lower()


def _at(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items()) or "static sizes"
