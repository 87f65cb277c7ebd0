"""Weights in 4 bits rounded on calibration data: by GPTQ, or to nearest behind AWQ's scaling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.calibration.fitted import Fitted
from llmos.compiler.calibration.statistics import Activation, Observation, ProductsOf, Read, Step, activation_statistics
from llmos.compiler.frontend.model import ImportedModel
from llmos.compiler.quant.awq import scale_search
from llmos.compiler.quant.gptq import gptq
from llmos.compiler.quant.nibbles import Nibbles
from llmos.compiler.quant.scheme import Scheme
from llmos.compiler.support.progress import Progress
from llmos.passes.quant._fitted import NUMBERS, SCALE, SMOOTH, ZERO_POINT

HESSIAN_BYTES = 1 << 30  # of second moments that are held together; what needs more takes further runs over the data


def fitted_rounding(
    prepared: ImportedModel,
    inputs: Sequence[Sequence[np.ndarray]],
    scheme: Scheme,
    options: CompileOptions,
    products: ProductsOf,
    progress: Progress,
) -> Fitted:
    """Return what makes the products by rounded weights nearest to those of floats.

    prepared: what `before_quantizing` gave. products: those whose weights are rounded. Raises UserError where an activation is NaN or
    infinite.
    """
    if scheme.rounding == "gptq":
        return _by_hessians(Observation.of(prepared, options, products), inputs, scheme.group, progress)
    progress.phase("calibration")
    activations = activation_statistics(prepared, inputs, options, products, progress.update)
    progress.phase("scale search")
    return {SMOOTH: dict(_vectors(activations, scheme.group, progress.update))}


def _vectors(activations: Mapping[int, Activation], group: int, step: Step) -> Iterator[tuple[int, np.ndarray]]:
    for done, (number, each) in enumerate(activations.items(), 1):
        vector = scale_search(each.rows, np.concatenate(list(each.weights.values())), group)
        if vector is not None:
            yield number, vector
        step(done, len(activations))


class _Hessian:
    """Σ xᵀ x over the rows of some activations: float64 [k, k]."""

    def __init__(self, k: int) -> None:
        self.matrix = np.zeros((k, k))

    def add(self, rows: np.ndarray) -> None:
        wide = rows.astype(np.float64)
        self.matrix += wide.T @ wide


def _by_hessians(observation: Observation, inputs: Sequence[Sequence[np.ndarray]], group: int, progress: Progress) -> Fitted:
    """GPTQ on the activations of the float model."""
    done, made = 0, {NUMBERS: dict[int, np.ndarray](), SCALE: dict[int, np.ndarray](), ZERO_POINT: dict[int, np.ndarray]()}
    readers = _readers(observation)
    for parts in _rounds(readers):
        progress.phase("calibration")
        hessians = {activations: _Hessian(products[0].channels) for activations, products in parts.items()}
        collectors = dict[int, list[_Hessian]]()
        for activations, hessian in hessians.items():
            for activation in activations:
                collectors.setdefault(activation, []).append(hessian)
        observation.run(inputs, collectors, progress.update)
        progress.phase("GPTQ")
        for activations, products in parts.items():
            weights = [observation.weight(product) for product in products]
            rounded = gptq(np.concatenate(weights), hessians.pop(activations).matrix, group)
            for product, part in zip(products, _split(rounded, [len(each) for each in weights]), strict=True):
                for prefix, array in ((NUMBERS, part.numbers), (SCALE, part.scale), (ZERO_POINT, part.zero_point)):
                    made[prefix][product.weight] = np.ascontiguousarray(array if product.axes[1] else array.T)
            done += 1
            progress.update(done, len(readers))
    return made


Readers = Mapping[tuple[int, ...], list[Read]]  # a product of each weight, by all activations that meet it


def _readers(observation: Observation) -> Readers:
    met: dict[int, list[Read]] = {}
    for product in observation.products:
        met.setdefault(product.weight, []).append(product)
    found: dict[tuple[int, ...], list[Read]] = {}
    for products in met.values():
        found.setdefault(tuple(sorted({each.activation for each in products})), []).append(products[0])
    return found


def _rounds(readers: Readers) -> Iterator[Readers]:
    """Parts whose second moments take HESSIAN_BYTES together, or which are one."""
    part: dict[tuple[int, ...], list[Read]] = {}
    total = 0
    for activations, products in readers.items():
        size = 8 * products[0].channels ** 2
        if part and total + size > HESSIAN_BYTES:
            yield part
            part, total = {}, 0
        part[activations] = products
        total += size
    if part:
        yield part


def _split(rounded: Nibbles, lengths: Sequence[int]) -> Iterator[Nibbles]:
    """The rows of several weights."""
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        yield Nibbles(rounded.numbers[rows], rounded.scale[rows], rounded.zero_point[rows])
        start += length
