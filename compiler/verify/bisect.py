"""Bisection of a miscompile: to the front end, a pass and its wrong dispatch, a weight's layout, a kernel, or the memory plan.

The module is interpreted after each pass (compiler/execution/interpreter.py) on recorded inputs. The first stage whose outputs are over
budget names the pass; the op is found by comparing the values before and after that pass (verify/fault_localization.py). If every stage
is correct, the compiled code runs in a checked run (verify/checked_run.py).

Of a quantized model, the stages that quantization comes after are compared with the source's reference, within the budget of floats, and
those behind it, like the code, with the quantized reference (verify/quantized.py): rounding is no miscompile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from llmos.compiler.analysis.loops import is_loop
from llmos.compiler.backends.common import float_passes, quantized_passes
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.execution.interpreter import OpCache
from llmos.compiler.execution.native import CompiledCode, aligned_copy
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.ir.attributes import FOLD, PackedLayout
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import DispatchFunc, EntryFunc, callee_of, functions_of, name_of
from llmos.compiler.ir.weights import BoundWeight, Weight
from llmos.compiler.verify.accuracy import QUANTIZED_TOLERANCE, AccuracyCheck, as_stored, gather, smallest
from llmos.compiler.verify.checked_run import CheckedRun, Observed
from llmos.compiler.verify.fault_localization import Comparison, Side
from llmos.compiler.verify.samples import GoldenSample
from llmos.compiler.verify.snapshots import Passed, Runner, snapshots_of
from llmos.runtime.artifact.deviation import Deviation, Tolerance, is_exact, measure
from llmos.runtime.errors import UserError

CLEAN, FRONT_END, PASS, WEIGHTS, KERNEL, MEMORY, OUTPUTS = "clean", "front end", "pass", "weights", "kernel", "memory plan", "outputs"
_SHARED = frozenset({"tensor.empty", "tensor.dim"})
_TIGHTER = 0.1  # of the budget: what is right to that is right, where values are told apart


@dataclass(frozen=True)
class Verdict:
    """The result of a bisection.

    kind: CLEAN, or where the error enters: FRONT_END, PASS (its name in `stage`), WEIGHTS (constants folded or packed at compile time),
    KERNEL, MEMORY or OUTPUTS (no dispatch is wrong). dispatch: the dispatch or op. source: its source positions in the model.
    error: the largest relative error of an output there. history: that error at each inspected stage. quantization: what quantization
    costs, the largest error of an output of the quantized reference against the source's; None where nothing is quantized.
    """

    kind: str
    stage: str = ""
    dispatch: str = ""
    label: str = ""
    source: tuple[str, ...] = ()
    error: float = 0.0
    detail: str = ""
    history: Mapping[str, float] = field(default_factory=dict)
    quantization: float | None = None

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    def line(self) -> str:
        """Format as one sentence."""
        costs = "" if self.quantization is None else f"; quantization itself costs {self.quantization:.2g}"
        if self.kind == CLEAN:
            beside = " beside the quantized reference" if costs else ""
            return f"no stage is over budget: the largest error{beside} is {self.error:.2g}{costs}"
        where = " in ".join(filter(None, (self.dispatch, self.stage)))
        named = f" ({self.label})" if self.label and self.label != self.dispatch else ""
        source = f", from {'; '.join(self.source[:4])}" if self.source else ""
        detail = f": {self.detail}" if self.detail else ""
        return f"the error enters in the {self.kind}: {where}{named}{source}{detail}"


def bisect(imported: ImportedModel, options: CompileOptions, say: Callable[[str], None], cache: OpCache | None = None) -> Verdict:
    """Compile a model stage by stage and find where its outputs diverge from the reference's. `say` reports progress.

    `cache`: compiled ops of an earlier bisection.

    Raises UserError if the reference fails on all inputs.
    """
    check = gather(imported, options, say)
    if not check.samples:
        raise UserError(f"nothing to compare with: {check.note}")
    passed = snapshots_of(imported, options)
    sample = smallest(check.samples)
    with imported.module.context:
        runner = Runner(sample.inputs, imported.weights, imported.module.context, cache or OpCache())
        return _Bisection(check, sample, passed, runner, say, _quantized_of(check, say)).verdict()


def _quantized_of(check: AccuracyCheck, say: Callable[[str], None]) -> AccuracyCheck | None:
    """The check against the quantized reference, with what one rounding changes in it; None where there is none to compare with."""
    if check.quantized is None or check.quantized.samples:
        return check.quantized and check.quantized.with_sensitivities()
    say(f"no quantized reference: {check.quantized.note}")
    return None


@dataclass(frozen=True)
class _Section:
    """Stages that are compared with one reference. first, last: their numbers. budgets: of each output; values: of what it is made of."""

    first: int
    last: int
    outputs: Sequence[np.ndarray]
    budgets: Sequence[Tolerance]

    @property
    def values(self) -> float:
        return max(each.max_error for each in self.budgets) * _TIGHTER

    def is_within(self, found: Sequence[Deviation]) -> bool:
        return all(each.within(budget) for each, budget in zip(found, self.budgets, strict=True))


@dataclass
class _Bisection:
    check: AccuracyCheck
    sample: GoldenSample
    passed: Passed
    runner: Runner
    say: Callable[[str], None]
    quantized: AccuracyCheck | None
    history: dict[str, float] = field(default_factory=dict)

    def verdict(self) -> Verdict:
        *_, last = sections = self._sections()
        wrong = next((each for each in sections if self._is_wrong(each.last, each)), None)
        found = self._in_stages(wrong) if wrong is not None else self._in_code(last)
        return replace(found, history=self.history, quantization=self._quantization())

    def _sections(self) -> list[_Section]:
        stages, options, quantized = self.passed.stages, self.passed.options, self.quantized
        budgets = [self.check.budget] * len(self.sample.outputs)
        if quantized is None:
            return [_Section(0, len(stages) - 1, self.sample.outputs, budgets)]
        floats, integers = len(float_passes(options)), len(quantized_passes(options))
        before = max(number for number, stage in enumerate(stages) if stage.index < floats)
        behind = max(number for number, stage in enumerate(stages) if stage.index < integers)
        if options.quant:
            budgets = [quantized.budget] * len(budgets)  # floats up to here: what the user allows is for quantization
        golden = quantized.samples[0]
        loosened = [quantized.budget.loosened(each) for each in golden.sensitivities]
        return [_Section(0, before, self.sample.outputs, budgets), _Section(behind, len(stages) - 1, golden.outputs, loosened)]

    def _quantization(self) -> float | None:
        if self.quantized is None or not self.passed.options.quant:
            return None
        found = self._deviations(self.quantized.samples[0].outputs, self.sample.outputs)
        return max((each.max_error for each in found), default=0.0)

    # -- passes
    def _is_wrong(self, number: int, section: _Section) -> bool:
        """Whether the outputs of a stage exceed the budget."""
        stage = self.passed.stages[number]
        self.say(f"interpreting the module after {stage.name}")
        found = self._deviations(self.runner.trace(self.runner.module(stage.text)).outputs, section.outputs)
        self.history[f"{number:02} {stage.name}"] = max((each.max_error for each in found), default=0.0)
        return not section.is_within(found)

    def _deviations(self, outputs: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> list[Deviation]:
        parts = zip(self.check.signature.outputs, outputs, wanted, strict=True)
        return [measure(got, as_stored(want, spec.dtype), spec.dtype) for spec, got, want in parts]

    def _in_stages(self, section: _Section) -> Verdict:
        """Find the first wrong stage by bisection, given that the last one of a section is wrong."""
        stages = self.passed.stages
        if self._is_wrong(section.first, section):
            name = stages[section.first].name
            error = self.history[f"{section.first:02} {name}"]
            if section.first == 0:
                return Verdict(FRONT_END, "import", error=error, detail="the imported module is not what the reference computes")
            return Verdict(PASS, name, error=error, detail="the quantized module is not what the same passes gave before")
        right, wrong = section.first, section.last
        while wrong - right > 1:
            middle = (right + wrong) // 2
            right, wrong = (right, middle) if self._is_wrong(middle, section) else (middle, wrong)
        step = stages[wrong].made_by
        assert step is not None
        self.say(f"comparing the values before and after {step.name}")
        before, after = self.runner.repeated(stages[right], step, self.passed.backend.context(self.passed.options))
        first, second = (Side(functions_of(module), self.runner.trace(module)) for module in (before, after))
        deviations = self._deviations(second.trace.outputs, section.outputs)
        worst = max(range(len(deviations)), key=lambda i: deviations[i].max_error)
        op = Comparison(first, second, section.values).fault(worst)
        name, label, source = self._described(after, op, stages[wrong].text)
        return Verdict(PASS, step.name, name, label, source, deviations[worst].max_error)

    def _described(self, module: ir.Module, op: ir.Operation | None, text: str) -> tuple[str, str, tuple[str, ...]]:
        """Return an op's name, label and source positions, read from the op at the same position in the text with locations."""
        if op is None:
            return "", "", ()
        position = [each.operation for each in op.block.operations].index(op)
        function = name_of(op.parent.operation)
        located = self.runner.module(text)
        functions = functions_of(located)
        ops = [each.operation for each in functions[function].regions[0].blocks[0].operations]
        return describe(ops[position], functions) if position < len(ops) and ops[position].name == op.name else (op.name, "", ())

    # -- compiled code
    def _in_code(self, section: _Section) -> Verdict:
        stages, model = self.passed.stages, self.passed.compiled
        module = self.runner.module(stages[-1].text)
        trace = self.runner.trace(module)
        functions = functions_of(module)
        wrong_fold = self._wrong_fold(functions, section.values)
        if wrong_fold:
            return wrong_fold
        backend = self.passed.backend
        target, data = next(((name, code) for name, code in model.code.items() if backend.parse_target(name).runs_here()), ("", b""))
        if not target:
            raise UserError(f"this machine runs none of {', '.join(model.code)}: bisect with --target native")
        self.say(f"running the code of {target} beside the interpreter")
        main = EntryFunc.of(module).op
        units = {op: kernel.name for op, kernel in zip(units_of(main), model.kernels, strict=True)}
        checked_run = CheckedRun(main, trace, [kernel.name for kernel in model.kernels])
        weights = [aligned_copy(weight.load()) for weight in model.weights.values()]
        outputs = checked_run.run(CompiledCode(data), model, weights, self.sample.inputs, self.sample.sizes)
        found = self._deviations(outputs, section.outputs)
        error = max((each.max_error for each in found), default=0.0)
        self.history[f"code {target}"] = error
        places = {name: describe(op, functions) for op, name in units.items()}
        blamed = self._faulty(checked_run.observed)
        if blamed is None:
            wrong = not section.is_within(found)
            return Verdict(OUTPUTS if wrong else CLEAN, "codegen" if wrong else "", error=error)
        kind, observed, detail = blamed
        name, label, source = places[observed.name]
        if kind == KERNEL:
            op = next(each for each, unit in units.items() if unit == observed.name)
            wrong_weight = self._wrong_weight(main, op, weights)
            kind, detail = (WEIGHTS, wrong_weight) if wrong_weight else (kind, detail)
        stage = {KERNEL: f"codegen for {target}", WEIGHTS: "packing", MEMORY: "plan-memory"}[kind]
        return Verdict(kind, stage, name, label, source, error, detail)

    def _faulty(self, observed: Sequence[Observed]) -> tuple[str, Observed, str] | None:
        if self.quantized is None:
            return faulty_pass(observed, self.check.budget, self.check.budget)
        return faulty_pass(observed, Tolerance(QUANTIZED_TOLERANCE), self.quantized.budget)

    def _wrong_fold(self, functions: Mapping[str, ir.Operation], tolerance: float) -> Verdict | None:
        """Find a weight that compile-time evaluation computed wrongly."""
        texts = [stage.text for stage in self.passed.stages if FOLD in stage.text]
        if not texts:
            return None
        expected = self.runner.folded(self.runner.module(texts[-1]))
        for name, array in expected.items():
            got = self.passed.planned.weights[name]
            error = measure(got.load(), array, got.dtype).max_error
            if error > (max(tolerance, QUANTIZED_TOLERANCE * _TIGHTER) if is_exact(got.dtype) else tolerance):
                return Verdict(WEIGHTS, "fold-weight-computation", name, error=error, detail="computed at compile time by our kernels")
        return None

    def _wrong_weight(self, main: ir.Operation, op: ir.Operation, weights: Sequence[np.ndarray]) -> str:
        """Return the weight of a dispatch whose packed panels differ from the weight; "" if there is none."""
        # states follow the weights that are arguments
        arguments = EntryFunc(main).arguments.weights
        for argument, array, (name, bound) in zip(arguments, weights, self.passed.compiled.weights.items(), strict=False):
            layout = bound.layout if isinstance(bound, BoundWeight) and argument.value in list(op.operands) else None
            if layout is not None and not _holds(array, self.passed.planned.weights[argument.name], layout):
                return f"{name} is not the weight in panels"
        return ""


def _holds(panels: np.ndarray, weight: Weight, layout: PackedLayout) -> bool:
    """Whether float32 panels [n/w][k][w] equal a weight; True for other layouts."""
    if panels.ndim != 3 or weight.dtype != "float32":
        return True
    axes = (*layout.n_axes, *layout.k_axes)
    if layout.tile is not None or sorted(axes) != list(range(len(weight.shape))):
        return True
    matrix = weight.array.transpose(axes).reshape(-1, panels.shape[1])  # [n, k]
    columns = panels.transpose(0, 2, 1).reshape(-1, panels.shape[1])[: len(matrix)]
    return bool(np.array_equal(columns, matrix, equal_nan=True))


def faulty_pass(observed: Sequence[Observed], integers: Tolerance, floats: Tolerance) -> tuple[str, Observed, str] | None:
    """Find the first dispatch that is wrong by itself or reads an overwritten operand: (kind, dispatch, description)."""
    for each in observed:
        if each.overwritten:
            detail = f"{each.overwritten_by} overwrote the result of {each.overwritten} before {each.name} read it"
            return MEMORY, each, detail
        if each.alone is not None and each.alone.max_error > (floats if each.alone.differing is None else integers).max_error:
            return KERNEL, each, f"off by {each.alone.max_error:.2g} on right operands"
    return None


def describe(op: ir.Operation, functions: Mapping[str, ir.Operation]) -> tuple[str, str, tuple[str, ...]]:
    """Return name, label and source positions of a dispatch or another op."""
    if op.name != "func.call":
        return op.name, "", _places([op])
    name = callee_of(op)
    callee = functions[name]
    label = DispatchFunc(callee).label
    return name, label, _places([each.operation for each in callee.regions[0].blocks[0].operations])


def _places(ops: Sequence[ir.Operation]) -> tuple[str, ...]:
    """Return the source positions of ops, without constants, sizes and fills, which are shared and have that of their first user."""
    texts = [
        str(op.location) for op in ops if op.name.startswith(("linalg.generic", "tensor.", "scf.", "tm_tensor.")) and op.name not in _SHARED
    ]
    return tuple(dict.fromkeys(text[5:-2] for text in texts if text.startswith('loc("') and text.endswith('")')))


def units_of(main: ir.Operation) -> list[ir.Operation]:
    """Return the ops that the host function launches, in the order of the manifest's kernels."""
    ops = [op.operation for op in main.regions[0].blocks[0].operations]
    return [op for op in ops if op.name == "func.call" or is_loop(op)]


__all__ = ["CLEAN", "FRONT_END", "KERNEL", "MEMORY", "OUTPUTS", "PASS", "WEIGHTS", "Verdict", "bisect", "describe", "faulty_pass"]
