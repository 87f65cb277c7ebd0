"""What activations look like on calibration inputs: the largest magnitude of each channel, and a sample of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.calibration.native import NativeProgram
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.ir.attributes import result_attributes, tensor_attributes, type_of
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import EntryFunc
from llmos.passes import CostModel
from llmos.passes.quant._candidates import products_of
from llmos.runtime.errors import UserError

MAX_ROWS = 512  # that are kept of an activation

Step = Callable[[int, int], None]  # told how many of how many are done


@dataclass(frozen=True)
class Activation:
    """The left side of products, its channels last.

    largest: float32 [k], of magnitudes. rows: float32 [at most MAX_ROWS, k]. weights: float32 [n, k], the right sides of the products that
    read it, by `Product.number`.
    """

    largest: np.ndarray
    rows: np.ndarray
    weights: Mapping[int, np.ndarray]


def activation_statistics(
    prepared: ImportedModel, inputs: Sequence[Sequence[np.ndarray]], options: CompileOptions, costs: CostModel, step: Step
) -> dict[int, Activation]:
    """Run what `before_quantizing` gave on calibration inputs; return what each activation was, by `Product.activation`.

    Those whose products sum along several axes are left out. Raises UserError where one is NaN or infinite.
    """
    with prepared.module.context, ir.Location.unknown():
        module = ir.Module.parse(str(prepared.module))
        observed = _Observed.of(EntryFunc.of(module), costs)
    if not observed.products:
        return {}
    program = NativeProgram.of(ImportedModel(prepared.name, module, prepared.weights), [], options)
    collected = {number: _Collector(each.label) for number, each in observed.activations.items()}
    results: list[np.ndarray] = []
    for done, each in enumerate(inputs, 1):
        results = program.run(each)
        for (number, product), array in zip(observed.activations.items(), results, strict=False):
            collected[number].add(_channels_last(array, product.axes[0]))
        step(done, len(inputs))
    weights = observed.weights(results[len(collected) :], prepared)
    return {number: each.activation(weights[number]) for number, each in collected.items()}


@dataclass(frozen=True)
class _Read:
    """A product without its ops. axes: of the channels on both sides; source: the weight that its right side is, or ""."""

    number: int
    activation: int
    label: str
    axes: tuple[int, int]
    source: str


@dataclass(frozen=True)
class _Observed:
    """An entry that returns, before its own results, each activation and then each right side that isn't a weight as it is stored."""

    products: list[_Read]

    @classmethod
    def of(cls, entry: EntryFunc, costs: CostModel) -> _Observed:
        """Changes the entry."""
        names = {each.value: each.name for each in entry.arguments.weights}
        pairs = [(each, axes) for each in products_of(entry, costs) if (axes := each.channel_axes) is not None]
        made = cls([_Read(each.number, each.activation, each.label, axes, names.get(each.contraction.rhs, "")) for each, axes in pairs])
        lefts = {each.activation: each.contraction.lhs for each, _ in pairs}
        rights = [each.contraction.rhs for each, _ in pairs if each.contraction.rhs not in names]
        values = [*lefts.values(), *rights]
        _prepend_results(entry, values, [tensor_attributes(f"observed.{number}", "float32") for number in range(len(values))])
        return made

    @property
    def activations(self) -> dict[int, _Read]:
        """A product that reads each activation, in the order of the results."""
        found: dict[int, _Read] = {}
        for each in self.products:
            found.setdefault(each.activation, each)
        return found

    def weights(self, results: Sequence[np.ndarray], model: ImportedModel) -> dict[int, dict[int, np.ndarray]]:
        """The right sides [n, k] of the products that read each activation. results: those behind the activations."""
        computed, found = iter(results), dict[int, dict[int, np.ndarray]]()
        for each in self.products:
            array = model.weights[each.source].load() if each.source else next(computed)
            found.setdefault(each.activation, {})[each.number] = _channels_last(array, each.axes[1])
        return found


def _channels_last(array: np.ndarray, axis: int) -> np.ndarray:
    """As [others, channels]."""
    return np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])


def _prepend_results(entry: EntryFunc, values: Sequence[ir.Value], attributes: Sequence[ir.DictAttr]) -> None:
    before = [ir.DictAttr.get(each) for each in result_attributes(entry.op)]
    kind, last = type_of(entry.op), entry.ops[-1]
    with ir.InsertionPoint(last), last.location:
        ir.Operation.create("func.return", operands=[*values, *last.operands])
    last.erase()
    results = [*(each.type for each in values), *kind.results]
    entry.op.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get(kind.inputs, results))
    entry.op.attributes["res_attrs"] = ir.ArrayAttr.get([*attributes, *before])


@dataclass
class _Collector:
    """What was seen of one activation. Each row gets a random key, and those of the smallest keys are kept: all are as likely."""

    label: str

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(0)
        self._largest: np.ndarray | None = None
        self._kept = np.empty(0)  # keys
        self._rows: np.ndarray | None = None

    def add(self, rows: np.ndarray) -> None:
        largest = np.abs(rows).max(0, initial=0)
        if not np.isfinite(largest).all():
            raise UserError(f"calibration inputs make NaN or infinite values in front of {self.label}: leave them out of the data")
        self._largest = largest if self._largest is None else np.maximum(self._largest, largest)
        keys = np.concatenate([self._kept, self._random.random(len(rows))])
        chosen = np.sort(np.argsort(keys)[:MAX_ROWS])
        before = len(self._kept)
        if self._rows is None or chosen[-1] >= before:
            old = rows[:0] if self._rows is None else self._rows
            self._rows = np.concatenate([old[chosen[chosen < before]], rows[chosen[chosen >= before] - before]])
            self._kept = keys[chosen]

    def activation(self, weights: Mapping[int, np.ndarray]) -> Activation:
        assert self._largest is not None and self._rows is not None
        return Activation(self._largest, self._rows, weights)
