"""A model fitted to calibration data before its passes run: smoothed, with a plan of what is quantized, or with rounded weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from llmos.compiler.backends.common import quantization
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.backends.planning import before_integers, before_quantizing
from llmos.compiler.backends.registry import backend_of
from llmos.compiler.calibration.advisor import budget_text, decide, require_faster, speedup
from llmos.compiler.calibration.data import Call, calibration_inputs
from llmos.compiler.calibration.fitted import Fitted, with_fitted
from llmos.compiler.calibration.native import NativeProgram
from llmos.compiler.calibration.plan import Choice, Plan
from llmos.compiler.calibration.ranges import activation_ranges, with_ranges
from llmos.compiler.calibration.rounding import fitted_bytes, fitted_rounding
from llmos.compiler.calibration.sensitivity import Judge, SwitchedProgram
from llmos.compiler.calibration.smoothing import corrections, smoothing_vectors
from llmos.compiler.calibration.statistics import Observation, activation_statistics
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import EntryFunc
from llmos.compiler.quant.scheme import AUTO, ROUNDINGS, SMOOTHED, STATIC, Scheme, parse_scheme
from llmos.compiler.support.progress import Progress
from llmos.compiler.verify.accuracy import tolerance_for, unit_of
from llmos.compiler.verify.samples import EXAMPLE_BYTES, Signature
from llmos.passes.quant._candidates import Product, products_of, weight_products_of
from llmos.passes.quant._fitted import CORRECT, NUMBERS, SCALE, SMOOTH, fitted_of
from llmos.runtime.artifact.manifest import QUANT_PLAN
from llmos.runtime.errors import UnsupportedError, UserError

_FIGURES = {"max_error": "largest error", "cosine": "1 - cosine", "kl": "largest divergence", "top1": "1 - equal best ones"}
NUM_EXAMPLES = 4  # calibration calls that the accuracy report is made on


def fit(imported: ImportedModel, options: CompileOptions, progress: Progress) -> tuple[ImportedModel, CompileOptions]:
    """Return the model and the options that follow from calibration data; both as they are where the scheme needs none.

    The model has what was fitted among its weights (passes/quant/_fitted.py), for `auto` in its metadata the plan, and some of the data as
    examples, where the user gave data. Raises UserError for data that doesn't fit or is missing, and where no plan is within the budget
    and faster than float.
    """
    if not needs_data(options):
        return imported, options
    scheme = parse_scheme(options.quant)
    _require_data(scheme, options)
    if any(each.state for each in EntryFunc.of(imported.module).arguments):
        raise UnsupportedError(f"--quant {options.quant}: models with state aren't calibrated yet; --quant w8a8 needs no calibration")
    progress.phase("calibration")
    calls = calibration_inputs(imported, options)
    if scheme.numbers == STATIC:
        found = activation_ranges(before_integers(imported, options, backend_of(options)), calls, options, progress.update)
        return _with_examples(with_ranges(imported, found), calls), options
    prepared, costs = before_quantizing(imported, options, backend_of(options)), backend_of(options).context(options).costs
    if scheme.group:
        observed = Observation.of(prepared, options, partial(weight_products_of, costs=costs, group=scheme.group))
        return _with_examples(with_fitted(imported, fitted_rounding(observed, calls, scheme, progress)), calls), options
    fitted = with_fitted(
        imported, _fitted_bytes(Observation.of(prepared, options, partial(products_of, costs=costs)), calls, options, progress)
    )
    if options.calibrate is not None:
        fitted = _with_examples(fitted, calls)
    if options.quant != AUTO:
        return fitted, replace(options, quant=str(replace(scheme, is_smoothed=not scheme.rounding)))
    plan = _Advice(fitted, calls, options, progress).plan()
    return replace(fitted, metadata={**fitted.metadata, QUANT_PLAN: plan.to_json()}), replace(options, keep=plan.keep)


def _fitted_bytes(observed: Observation, calls: list[Call], options: CompileOptions, progress: Progress) -> Fitted:
    """Return what `w8a8` and `auto` fit: random examples, where there is no data, say nothing of how to round weights."""
    scheme = parse_scheme(options.quant)
    activations = activation_statistics(observed, calls, progress.update)
    progress.phase("smoothing")
    smooth = smoothing_vectors(activations, progress.update)
    is_rounded = bool(scheme.rounding) or (scheme.numbers == AUTO and options.calibrate is not None)
    rounded = fitted_bytes(observed, calls, smooth, progress) if is_rounded else {}
    weights = {each.weight: each for each in observed.products}
    return {
        SMOOTH: smooth,
        NUMBERS: {number: weights[number].as_stored(each.numbers) for number, each in rounded.items()},
        SCALE: {number: each.scale for number, each in rounded.items()},
        CORRECT: corrections(activations, smooth, rounded) if scheme.numbers == AUTO else {},
    }


def needs_data(options: CompileOptions) -> bool:
    """Whether a scheme looks at data, or data is given for it."""
    if not options.quant:
        return False
    scheme = parse_scheme(options.quant)
    return scheme.numbers in (AUTO, STATIC) or bool(scheme.rounding) or scheme.is_smoothed or options.calibrate is not None


def _require_data(scheme: Scheme, options: CompileOptions) -> None:
    """Raises UserError for data that a scheme has no use for, and for rounding without data: random examples say nothing of a model's."""
    if scheme.rounding and options.calibrate is None:
        raise UserError(f"--quant {scheme} rounds weights by what the model sees: give texts or arrays with --calibrate FILE")
    if scheme.numbers == STATIC and options.calibrate is None:
        raise UserError(f"--quant {scheme} takes the ranges of activations from data: give some with --calibrate FILE")
    if options.calibrate is not None and not (scheme.rounding or scheme.numbers in (AUTO, STATIC, *SMOOTHED)):
        roundings = ROUNDINGS.get(scheme.numbers, ()) if scheme.group else ()
        better = f"; with data there are {' and '.join(f'{scheme}:{each}' for each in roundings)}" if roundings else ""
        raise UserError(f"--quant {scheme} rounds to nearest and takes no --calibrate{better}")


def _with_examples(fitted: ImportedModel, calls: list[Call]) -> ImportedModel:
    """With evenly spaced calls as its examples, of those that an accuracy report takes."""
    small = [call for call in calls if sum(array.nbytes for array in call) <= EXAMPLE_BYTES] or calls
    return replace(fitted, examples=tuple(small[:: -(-len(small) // NUM_EXAMPLES)]))


@dataclass(frozen=True)
class _Advice:
    """What the advisor needs of a smoothed model."""

    fitted: ImportedModel
    calls: list[Call]
    options: CompileOptions
    progress: Progress

    def plan(self) -> Plan:
        """Raises UserError where there is none."""
        backend = backend_of(self.options)
        prepared = before_quantizing(self.fitted, self.options, backend)
        with prepared.module.context, ir.Location.unknown():
            entry = EntryFunc.of(prepared.module)
            products, smoothed = products_of(entry, backend.context(self.options).costs), set(fitted_of(entry, SMOOTH))
            work, labels = [each.work for each in products], [(each.label, _is_smoothed(each, smoothed)) for each in products]
        if not products:
            raise UserError("--quant auto: the model has no product of activations and weights that is large enough to quantize")
        self.progress.phase("sensitivity")
        budget = tolerance_for(self.fitted, Signature.of(self.fitted.module), self.options)
        plain = NativeProgram.of(prepared, [], self.options)
        judge = Judge.of(plain, self.calls, budget)
        decision = decide(SwitchedProgram.of(prepared, len(work), self.options), judge, work, self.progress.update)
        self.progress.phase("speed of the plan")
        quantized = NativeProgram.of(prepared, quantization(replace(self.options, keep=decision.keep)), self.options)
        ratio = speedup(plain, quantized, self.calls)
        require_faster(ratio, len(decision.keep), len(work), budget)
        unit = unit_of(budget)
        choices = tuple(
            Choice(label, number in decision.keep, is_smoothed, decision.alone[number].worst * unit)
            for number, (label, is_smoothed) in enumerate(labels)
        )
        figure = _FIGURES[budget.figure]
        return Plan(choices, budget_text(budget), figure, judge.excess(quantized).worst * unit, ratio, len(self.calls))


def _is_smoothed(product: Product, smoothed: set[int]) -> bool:
    return product.activation in smoothed and product.channel_axes is not None
