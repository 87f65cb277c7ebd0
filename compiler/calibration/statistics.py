"""What activations look like on calibration inputs: the largest magnitude of each channel, a sample of rows, second moments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.calibration.native import NativeProgram
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.ir.attributes import result_attributes, tensor_attributes, type_of
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import EntryFunc
from llmos.passes.quant._candidates import Product
from llmos.runtime.errors import UserError

MAX_ROWS = 512  # that are kept of an activation

Step = Callable[[int, int], None]  # told how many of how many are done


@dataclass(frozen=True)
class Activation:
    """The left side of products, its channels last.

    largest: float32 [k], of magnitudes. rows: float32 [at most MAX_ROWS, k]. weights: float32 [n, k], the right sides of the products that
    read it, by `Product.number`; numbers: `Product.weight` of these, likewise.
    """

    largest: np.ndarray
    rows: np.ndarray
    weights: Mapping[int, np.ndarray]
    numbers: Mapping[int, int]


ProductsOf = Callable[[EntryFunc], list[Product]]  # those that quantization takes


def activation_statistics(observation: Observation, inputs: Sequence[Sequence[np.ndarray]], step: Step) -> dict[int, Activation]:
    """Run an observed model on calibration inputs; return what each activation was, by `Product.activation`.

    Those whose products sum along several axes are left out. Raises UserError where one is NaN or infinite.
    """
    collected = {number: _Collector() for number in observation.activations}
    observation.run(inputs, {number: [each] for number, each in collected.items()}, step)
    found = dict[int, dict[int, np.ndarray]]()
    numbers = dict[int, dict[int, int]]()
    for each in observation.products:
        found.setdefault(each.activation, {})[each.number] = observation.weight(each)
        numbers.setdefault(each.activation, {})[each.number] = each.weight
    return {number: each.activation(found[number], numbers[number]) for number, each in collected.items()}


class Collector(Protocol):
    """Takes the rows of one activation, call by call: float32 [rows, k], all finite."""

    def add(self, rows: np.ndarray) -> None: ...


@dataclass
class Observation:
    """What `before_quantizing` gave, compiled to return the activations. products: those whose sums go along one axis."""

    products: list[Read]
    _prepared: ImportedModel
    _program: NativeProgram | None
    _rights: list[np.ndarray] = field(default_factory=list)  # those that aren't weights as they are stored, of the last call

    @classmethod
    def of(cls, prepared: ImportedModel, options: CompileOptions, products: ProductsOf) -> Observation:
        with prepared.module.context, ir.Location.unknown():
            module = ir.Module.parse(str(prepared.module))
            found = _observed(EntryFunc.of(module), products)
        program = NativeProgram.of(ImportedModel(prepared.name, module, prepared.weights), [], options) if found else None
        return cls(found, prepared, program)

    @property
    def activations(self) -> dict[int, Read]:
        """A product that reads each activation, in the order of the results."""
        found: dict[int, Read] = {}
        for each in self.products:
            found.setdefault(each.activation, each)
        return found

    def run(self, inputs: Sequence[Sequence[np.ndarray]], collectors: Mapping[int, Sequence[Collector]], step: Step) -> None:
        """Give the collectors of each activation its rows in all calls. Raises UserError where an activation is NaN or infinite."""
        if self._program is None:
            return
        activations = self.activations
        for done, call in enumerate(inputs, 1):
            results = self._program.run(call)
            for (number, product), array in zip(activations.items(), results, strict=False):
                if number in collectors:
                    rows = _finite(_channels_last(array, product.axes[0]), product.label)
                    for each in collectors[number]:
                        each.add(rows)
            self._rights = results[len(activations) : len(activations) + sum(not each.source for each in self.products)]
            step(done, len(inputs))

    def weight(self, product: Read) -> np.ndarray:
        """Return the right side of a product as float32 [n, k], after a run."""
        computed = [each.number for each in self.products if not each.source]
        stored = self._prepared.weights[product.source].load() if product.source else self._rights[computed.index(product.number)]
        return _channels_last(stored, product.axes[1])


def _finite(rows: np.ndarray, label: str) -> np.ndarray:
    if not np.isfinite(rows).all():
        raise UserError(f"calibration inputs make NaN or infinite values in front of {label}: leave them out of the data")
    return rows


@dataclass(frozen=True)
class Read:
    """A product without its ops.

    axes: of the channels on both sides. source: the weight that its right side is, or "". is_matrix: whether the right side is one.
    """

    number: int
    activation: int
    weight: int
    label: str
    axes: tuple[int, int]
    channels: int
    source: str
    is_matrix: bool

    def as_stored(self, array: np.ndarray) -> np.ndarray:
        """Return [n, k] with the axes of the right side, a matrix."""
        return np.ascontiguousarray(array if self.axes[1] else array.T)


def _observed(entry: EntryFunc, products: ProductsOf) -> list[Read]:
    """Let an entry return, before its own results, each activation and then each right side that isn't a weight as it is stored."""
    names = {each.value: each.name for each in entry.arguments.weights}
    pairs = [(each, axes) for each in products(entry) if (axes := each.channel_axes) is not None]
    found = [_read(each, axes, names.get(each.contraction.rhs, "")) for each, axes in pairs]
    lefts = {each.activation: each.contraction.lhs for each, _ in pairs}
    rights = [each.contraction.rhs for each, _ in pairs if each.contraction.rhs not in names]
    values = [*lefts.values(), *rights]
    prepend_results(entry, values, [tensor_attributes(f"observed.{number}", "float32") for number in range(len(values))])
    return found


def _read(product: Product, axes: tuple[int, int], source: str) -> Read:
    shape = product.contraction.rhs.type.shape
    return Read(product.number, product.activation, product.weight, product.label, axes, int(shape[axes[1]]), source, len(shape) == 2)


def _channels_last(array: np.ndarray, axis: int) -> np.ndarray:
    """As [others, channels]."""
    return np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])


def prepend_results(entry: EntryFunc, values: Sequence[ir.Value], attributes: Sequence[ir.DictAttr]) -> None:
    """Let an entry return some of its values before its own results. attributes: of these results."""
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

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(0)
        self._largest: np.ndarray | None = None
        self._kept = np.empty(0)  # keys
        self._rows: np.ndarray | None = None

    def add(self, rows: np.ndarray) -> None:
        largest = np.abs(rows).max(0, initial=0)
        self._largest = largest if self._largest is None else np.maximum(self._largest, largest)
        keys = np.concatenate([self._kept, self._random.random(len(rows))])
        chosen = np.sort(np.argsort(keys)[:MAX_ROWS])
        before = len(self._kept)
        if self._rows is None or chosen[-1] >= before:
            old = rows[:0] if self._rows is None else self._rows
            self._rows = np.concatenate([old[chosen[chosen < before]], rows[chosen[chosen >= before] - before]])
            self._kept = keys[chosen]

    def activation(self, weights: Mapping[int, np.ndarray], numbers: Mapping[int, int]) -> Activation:
        assert self._largest is not None and self._rows is not None
        return Activation(self._largest, self._rows, weights, numbers)
